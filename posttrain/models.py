"""Policies: loading, sizing and saving a causal language model, or one that sees, with its tokenizer.

A name is as posttrain.places takes it.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import (
    AddedToken,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from posttrain import places
from posttrain.files import written_aside
from posttrain.multimodal import body, parts, sees
from posttrain.recipe import Model, Vision
from posttrain.types import Message, PosttrainError, Prompt

if TYPE_CHECKING:
    from posttrain.vision.processor import Reader

log = logging.getLogger(__name__)

PER_LAYER = ("layer_types", "mlp_layer_types", "no_rope_layers")  # lists in configs, an item a layer


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
    where = places.resolve(name)
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


def check(model: Model) -> None:
    """That the model a recipe asks for can be had, as far as that can be told without its weights.

    Raises:
        PosttrainError: no such model, tower or connector, or settings that do not fit.
    """
    places.resolve(model.name)
    if model.vision is not None:
        _vision().check(**model.vision.model_dump())


def of_recipe(model: Model) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """The model that a recipe asks for, with its tokenizer; raises as `load`."""
    return load(model.name, tokens=model.tokens, layers=model.layers, vision=model.vision)


def _kind(where: str) -> Any:
    """The Auto class of a checkpoint: of language models, or of such that see."""
    config, _ = PreTrainedConfig.get_config_dict(where)
    if "vision_config" not in config:
        return AutoModelForCausalLM
    import posttrain.vision  # noqa: F401  its models are known to transformers from then on

    return AutoModelForImageTextToText


def _vision() -> Any:
    """posttrain.vision.model, which takes packages of its own."""
    try:
        from posttrain.vision import model
    except ImportError as error:
        raise PosttrainError(
            f"model.vision: images need more ({error}); run: pip install 'posttrain[vision]'"
        ) from None
    return model


def _with_vision(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, vision: Vision
) -> PreTrainedModel:
    assemble = _vision().assemble
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


def size(model: Model) -> tuple[dict[str, int], Any]:
    """Of the model that a recipe asks for, without its weights: parameters by part ("language" alone where it
    reads text alone), and its config, which has nothing of `vision`. Raises as `check`."""
    where = places.resolve(model.name)
    kind = _kind(where)
    config = AutoConfig.from_pretrained(where)
    text = config.get_text_config()
    if model.layers is not None:
        text.num_hidden_layers = model.layers
        if getattr(text, "layer_types", None):
            text.layer_types = text.layer_types[: model.layers]
    with torch.device("meta"):
        made = kind.from_config(config)
    by_part = parts(made) if sees(made) else {"language": made.parameters()}
    counts = {part: sum(p.numel() for p in some) for part, some in by_part.items()}
    if model.vision is not None:
        counts |= _vision().check(**model.vision.model_dump(), hidden=text.hidden_size)
    return counts, config


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
    return reader(model, tokenizer) or text_encoder(tokenizer)


def reader(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> Reader | None:
    """What reads the pictures of examples for a model; None for one that sees none."""
    if not sees(model):
        return None
    from posttrain.vision.hub import HubReader
    from posttrain.vision.model import VisionLanguageModel
    from posttrain.vision.processor import Processor

    if isinstance(model, VisionLanguageModel):
        return Processor(model.config, tokenizer)
    return HubReader(model, tokenizer, getattr(model, "processor_files", {}))


def text_encoder(tokenizer: PreTrainedTokenizerFast) -> Callable[[Prompt], list[int]]:
    def encoded(prompt: Prompt) -> list[int]:
        if prompt.pictures:
            raise PosttrainError(
                f"{prompt.id} shows a picture, but the model reads text alone; name one that sees, or give "
                "it a tower (model.vision)"
            )
        return encode(tokenizer, prompt.content)

    return encoded

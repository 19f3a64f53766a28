"""What a model that sees is made of, for code that runs any policy: language model, pictures' features.

Works with models of transformers that have `get_image_features`, a language model that reads embeddings, and
one id that marks the places in a prompt where features go. A text-only model is its own language model.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from posttrain.types import Encoded, PosttrainError

# What a tower takes of one picture: {"pixel_values": [1, 3, H, W]}, or its tiles [N, 3, H, W], or its patches
# [N, D] and {"image_grid_thw": [1, 3]}. Those of several are joined at dimension 0.
Seen = dict[str, Tensor]

BANNED = -3e4  # the logit of a token that must not be drawn; finite in every type, so that p log p is 0
_MARKS = ("image_token_id", "video_token_id")
_KINDS = ("mm_token_type_ids", "token_type_ids")  # 1 where an image's token stands
_PARTS = {  # what transformers' models call them; the connector first, for it may be inside of the tower
    "connector": ("multi_modal_projector", "connector", "visual.merger", "visual.deepstack_merger_list"),
    "tower": ("vision_tower", "vision_model", "visual"),
}


def body(model: PreTrainedModel) -> PreTrainedModel:
    """The language model, without its head."""
    base: Any = model.base_model
    for name in ("language_model", "text_model"):
        if hasattr(base, name):
            return getattr(base, name)
    return base


def sees(model: PreTrainedModel) -> bool:
    return hasattr(model, "get_image_features") and image_token(model) is not None


def image_token(model: PreTrainedModel) -> int | None:
    """The id that stands where a picture's features go."""
    return getattr(model.config, "image_token_id", None)


def banned(model: PreTrainedModel) -> list[int]:
    """Ids that stand for features and so are no text: never drawn, and of no probability."""
    marks = (getattr(model.config, name, None) for name in _MARKS)
    return sorted({mark for mark in marks if isinstance(mark, int)}) if sees(model) else []


def seen(
    model: PreTrainedModel, prompts: Sequence[list[int]], starts: Sequence[int]
) -> tuple[Tensor, Tensor] | None:
    """Where image tokens stand in a packed row, [K], and the embeddings that go there, [K, H]; None without
    pictures. starts: where in the row each prompt begins. Each picture is encoded once, whatever follows it.
    """
    pictures = shown(prompts)
    if not pictures:
        return None
    token = image_token(model)
    at = [
        start + i
        for prompt, start in zip(prompts, starts, strict=True)
        for i, t in enumerate(prompt)
        if t == token
    ]
    return torch.tensor(at, device=model.device), features(model, pictures, len(at))


def shown(prompts: Sequence[list[int]]) -> list[Seen]:
    """The pictures of some prompts, in order."""
    return [picture for prompt in prompts if isinstance(prompt, Encoded) for picture in prompt.pictures]


def features(model: PreTrainedModel, pictures: Sequence[Seen], tokens: int) -> Tensor:
    """Embeddings [tokens, H] of pictures, in order; those of like shape go through the tower together.

    Raises:
        PosttrainError: the tower makes more or fewer of them than the prompt has image tokens.
    """
    device = model.device
    parts: list[Tensor] = []
    for some in _alike(pictures):
        inputs: dict[str, Any] = {name: torch.cat([p[name] for p in some]).to(device) for name in some[0]}
        made = model.get_image_features(**inputs, return_dict=True).pooler_output  # pyright: ignore[reportCallIssue]
        parts += [part.reshape(-1, part.shape[-1]) for part in made]
    out = torch.cat(parts)
    if len(out) != tokens:
        raise PosttrainError(
            f"{len(pictures)} pictures come to {len(out)} embeddings, but the prompts have {tokens} image "
            "tokens; were they encoded for another model?"
        )
    return out


def put(base: Any, tokens: Tensor, pictures: tuple[Tensor, Tensor] | None) -> dict[str, Tensor]:
    """What a language model's forward takes for tokens [1, T] and pictures as `seen` gives them."""
    if pictures is None:
        return {"input_ids": tokens}
    at, made = pictures
    embedded = base.get_input_embeddings()(tokens)
    return {"inputs_embeds": embedded.index_copy(1, at, made[None].to(embedded.dtype))}


def _alike(pictures: Sequence[Seen]) -> Iterator[list[Seen]]:
    """Runs of pictures whose tensors can be joined at their first dimension."""
    for _, run in groupby(pictures, key=lambda p: [(name, x.shape[1:]) for name, x in sorted(p.items())]):
        yield list(run)


def joined(pictures: Sequence[Seen]) -> dict[str, Tensor]:
    """What a model's own forward takes of some pictures.

    Raises:
        PosttrainError: they are of several shapes.
    """
    runs = list(_alike(pictures))
    if len(runs) > 1:
        raise PosttrainError("pictures of several shapes do not go through a model's own forward together")
    return {name: torch.cat([p[name] for p in runs[0]]) for name in runs[0][0]} if runs else {}


def inputs(model: PreTrainedModel, ids: Tensor, prompts: Sequence[list[int]]) -> dict[str, Tensor]:
    """What a model's own forward takes for rows ids [B, T] that begin with these prompts, B of them."""
    pictures = shown(prompts)
    if len(list(_alike(pictures))) > 1:
        there = ids == image_token(model)
        embedded: Any = model.get_input_embeddings()(ids)
        made = features(model, pictures, int(there.sum())).to(embedded.dtype)
        return {"inputs_embeds": embedded.masked_scatter(there[..., None], made)}
    return {"input_ids": ids, **beside(model, ids, pictures)}


def beside(model: PreTrainedModel, ids: Tensor, pictures: Sequence[Seen]) -> dict[str, Tensor]:
    """What a model's own forward takes beside rows of ids; raises as `joined`."""
    if not pictures:
        return {}
    there = (ids == image_token(model)).long()
    taken = inspect.signature(type(model).forward).parameters
    given = {name: x.to(ids.device) for name, x in joined(pictures).items()}
    return given | {name: there for name in _KINDS if name in taken}


def turns_by_axes(model: PreTrainedModel) -> bool:
    """Whether an image's tokens have a row and a column for a position (M-RoPE, arXiv 2409.12191), which only
    the model's own forward gives them."""
    return hasattr(model.base_model, "get_rope_index")


def example(model: PreTrainedModel) -> Encoded | None:
    """A prompt with one picture, from a fixed pattern: to compare one way of running a model with another.
    None where the model takes pictures in a form that is not known here."""
    token = image_token(model)
    assert token is not None
    try:
        picture = _pattern(model)
        with torch.no_grad():
            made: Any = model.get_image_features(**picture, return_dict=True)  # pyright: ignore[reportCallIssue]
        count = sum(len(part.reshape(-1, part.shape[-1])) for part in made.pooler_output)
    except Exception:  # each family fails in its own way
        return None
    others = [i for i in range(1, 8) if i not in banned(model)]
    return Encoded([*others[:2], *[token] * count, *others[2:4]], [picture])


def _pattern(model: PreTrainedModel) -> Seen:
    vision, device, makes = model.config.vision_config, model.device, cast(Any, model.get_image_features)
    takes = inspect.signature(makes).parameters
    if "image_grid_thw" in takes:
        merge = vision.spatial_merge_size
        grid = torch.tensor([[1, 2 * merge, 3 * merge]], device=device)
        values = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
        pattern = torch.linspace(-1, 1, int(grid.prod()) * values, device=device)
        return {"pixel_values": pattern.view(-1, values), "image_grid_thw": grid}
    channels, side = getattr(vision, "num_channels", 3), vision.image_size
    height, width = (side, side) if isinstance(side, int) else side
    pattern = torch.linspace(-1, 1, channels * height * width, device=device)
    pixels = pattern.view(1, channels, height, width).roll(width // 3, -1)
    if "pixel_attention_mask" not in takes:
        return {"pixel_values": pixels}
    there = torch.ones(1, 1, height, width, dtype=torch.long, device=device)
    return {"pixel_values": pixels[:, None], "pixel_attention_mask": there}


def parts(model: PreTrainedModel) -> dict[str, list[nn.Parameter]]:
    """Parameters by part: tower, connector, and language, which is all the rest."""
    base: Any = model.base_model
    modules = dict(base.named_modules())
    taken: set[int] = set()
    found: dict[str, list[nn.Parameter]] = {}
    for part, names in _PARTS.items():
        all_of = [p for name in names if name in modules for p in modules[name].parameters()]
        found[part] = [p for p in all_of if id(p) not in taken]
        taken |= {id(p) for p in found[part]}
    return found | {"language": [p for p in model.parameters() if id(p) not in taken]}

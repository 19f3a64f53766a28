"""Any vision model of transformers as a tower: its patches' tokens, without class and register tokens."""

from __future__ import annotations

import inspect
import math
from contextlib import nullcontext
from dataclasses import fields
from threading import Lock
from typing import Any

import torch
from torch import Tensor
from transformers import (
    CONFIG_MAPPING,
    MODEL_MAPPING,
    AutoConfig,
    PreTrainedConfig,
    PreTrainedModel,
    ViTConfig,
)
from transformers.models.swin.modeling_swin import SwinLayer

from posttrain.types import PosttrainError
from posttrain.vision.towers import Pixel, Tower
from posttrain.words import did_you_mean

HALF: tuple[Pixel, Pixel] = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
IMAGENET: tuple[Pixel, Pixel] = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLIP: tuple[Pixel, Pixel] = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
# What a family was trained on: IMAGENET where it is not named.
NORMALIZED = {"clip": CLIP, "clip_vision_model": CLIP}
NORMALIZED |= dict.fromkeys(("siglip", "siglip_vision_model", "vit"), HALF)
SAMPLE = 512  # pixels each way: a multiple of every stride of a network that shrinks its maps by twos
MOST_REGISTERS = 16  # tokens before the patches', the class token among them
_SHIFTS = Lock()  # Swin's layers change theirs in the forward, and train.ahead runs it in two threads


class PretrainedTower(Tower):
    """A model of transformers, in `.model`; what a token of it stands for is measured, not listed."""

    def __init__(self, config: PreTrainedConfig, image_size: int | None = None):
        super().__init__()
        self.width, self.stride, self.prefix = _measured(config)
        self.hold(_made(config))
        self.native = _native(config)
        self.image_size = image_size or self.native
        if _shrinks(config):
            self.image_size = math.ceil(self.image_size / self.stride) * self.stride
        self.mean, self.std = usual(config)

    def hold(self, model: Any) -> None:
        """Put a model of the same configuration in, for instance one with trained weights."""
        self.model = model
        self._interpolates = _takes(self.model, "interpolate_pos_encoding")
        self._windows = [
            (layer, layer.window_size, layer.shift_size)
            for layer in self.model.modules()
            if isinstance(layer, SwinLayer)
        ]

    def forward(self, pixels: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, rows * columns, D].

        Raises:
            PosttrainError: an image that is too small, or that the model does not cut into whole tokens.
        """
        height, width = pixels.shape[-2:]
        rows, columns = self.grid(height, width)
        least = max((window for _, window, _ in self._windows), default=1)
        if min(rows, columns) < least:
            raise PosttrainError(
                f"{self._name} takes images of {least * self.stride} pixels each way or more, "
                f"not {height} × {width}"
            )
        resized = self._interpolates and (height, width) != (self.native, self.native)
        more = {"interpolate_pos_encoding": True} if resized else {}
        with _SHIFTS if self._windows else nullcontext():
            for layer, window, shift in self._windows:  # an image of one window leaves them without a shift
                layer.window_size, layer.shift_size = window, shift
            found = self.model(pixels.to(self.model.dtype), **more).last_hidden_state
        tokens = _tokens(found)[:, self.prefix :]
        if tokens.shape[1] != rows * columns:
            raise PosttrainError(
                f"{self._name} does not cut an image of {height} × {width} pixels into whole tokens; "
                f"use multiples of {self.stride}"
            )
        return tokens

    @property
    def _name(self) -> str:
        return f"a {self.model.config.model_type} tower"


def build(*, config: dict[str, Any], image_size: int | None = None) -> Tower:
    """A vision model of transformers, with fresh weights.

    Args:
        config: its configuration as transformers writes it, `model_type` included.
        image_size: where not given, what the model's family was trained on. It is rounded up to whole tokens
            in a network that shrinks its maps. `mean` and `std` (towers.COMMON) are the family's too.

    Raises:
        PosttrainError: no configuration of a model that takes pixels and nothing else.
    """
    kind: Any = config.get("model_type")
    if kind not in CONFIG_MAPPING:
        hint = did_you_mean(kind, CONFIG_MAPPING, "; did you mean")
        raise PosttrainError(f"tower pretrained: transformers has no model_type {kind!r}{hint}")
    try:
        inner = AutoConfig.for_model(kind, **{k: v for k, v in config.items() if k != "model_type"})
    except Exception as error:  # each family checks its own values in its own way
        raise PosttrainError(f"tower pretrained: config: {' '.join(str(error).split())[:200]}") from None
    return PretrainedTower(inner, image_size)


def image_model(config: PreTrainedConfig) -> type[PreTrainedModel]:
    """transformers' class of a configuration.

    Raises:
        PosttrainError: it has none, or that takes no pixels, or more than them.
    """
    try:
        found: Any = MODEL_MAPPING[type(config)]
    except KeyError:
        raise PosttrainError(f"transformers has no bare model for {config.model_type!r}") from None
    takes = inspect.signature(found.forward).parameters
    if "pixel_values" not in takes or "input_ids" in takes:
        raise PosttrainError(
            f"{config.model_type!r} is no vision model: {found.__name__} reads no image alone"
        )
    empty, kinds = inspect.Parameter.empty, (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    more = [n for n, p in takes.items() if p.default is empty and p.kind not in kinds]
    if more := [name for name in more if name not in ("self", "pixel_values")]:
        raise PosttrainError(
            f"{config.model_type!r} takes {', '.join(more)} beside the pixels; name a checkpoint of a fixed "
            "resolution"
        )
    return found


def vision_part(config: Any) -> PreTrainedConfig:
    """The configuration that reads images: itself, or the vision half of a pair such as CLIP's.

    A ViTMAE becomes a ViT, whose weights have the same names: its own class shuffles the patches.
    """
    inner = getattr(config, "vision_config", None) or config
    if inner.model_type == "vit_mae":
        known = {field.name for field in fields(ViTConfig)}
        inner = ViTConfig(**{k: v for k, v in inner.to_dict().items() if k in known - {"model_type"}})
    return inner


def usual(config: PreTrainedConfig) -> tuple[Pixel, Pixel]:
    """Mean and standard deviation that a model's family was trained with."""
    return NORMALIZED.get(config.model_type, IMAGENET)


def without_pooler(config: PreTrainedConfig) -> dict[str, bool]:
    """What to give to the class of a configuration for a model that ends at its tokens."""
    if config.model_type == "siglip_vision_model":
        config.vision_use_head = False  # no field of the class, and yet read
    return (
        {"add_pooling_layer": False} if _takes(image_model(config), "add_pooling_layer", "__init__") else {}
    )


def _made(config: PreTrainedConfig) -> Any:
    return image_model(config)._from_config(config, **without_pooler(config))


def _takes(model: Any, name: str, method: str = "forward") -> bool:
    return name in inspect.signature(getattr(model, method)).parameters


def _native(config: PreTrainedConfig) -> int:
    size = getattr(config, "image_size", None)
    return size if isinstance(size, int) else 224


def _shrinks(config: PreTrainedConfig) -> bool:
    """Whether the maps get smaller from stage to stage; else a token is a patch."""
    return hasattr(config, "depths") or not isinstance(getattr(config, "patch_size", None), int)


def _tokens(found: Tensor) -> Tensor:
    """[B, N, D] as it is, [B, D, rows, columns] row by row."""
    return found.flatten(2).transpose(1, 2) if found.dim() == 4 else found


def _measured(config: PreTrainedConfig) -> tuple[int, int, int]:
    """(D, stride, tokens before the patches'), seen on an image without values."""
    size = SAMPLE if _shrinks(config) else _native(config)
    fixed = not _takes(image_model(config), "interpolate_pos_encoding")
    more = {} if fixed else {"interpolate_pos_encoding": True}
    try:
        with torch.device("meta"), torch.no_grad():
            found = _made(config).eval()(torch.empty(1, 3, size, size), **more).last_hidden_state
    except Exception as error:  # any of a few hundred models
        raise PosttrainError(
            f"{config.model_type!r} cannot be a tower: it fails on an image of {size} × {size} pixels "
            f"({' '.join(str(error).split())[:100]})"
        ) from None
    tokens = _tokens(found)
    if found.dim() == 4:
        rows = found.shape[2]
    else:
        rows = math.isqrt(tokens.shape[1]) if _shrinks(config) else size // config.patch_size
    prefix = tokens.shape[1] - rows * rows
    if not 0 <= prefix <= MOST_REGISTERS:
        raise PosttrainError(
            f"{config.model_type!r} cannot be a tower: an image of {size} × {size} pixels comes to "
            f"{tokens.shape[1]} tokens, which are no square"
        )
    return tokens.shape[2], size // rows, prefix

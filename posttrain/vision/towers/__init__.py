"""Towers: networks that turn an image into a grid of tokens. A file of this folder with a `build` is one."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError
from torch import Tensor, nn

from posttrain.types import PosttrainError
from posttrain.words import did_you_mean

Pixel = tuple[float, float, float]
"""Red, green, blue, of pixels scaled to 0..1."""
COMMON: dict[str, Any] = {"mean": Pixel | None, "std": Pixel | None}
"""Settings that every kind takes beside its own. What fresh eyes see most of is best made zero: drawings on
white are learned much sooner with a mean near 1."""


class Tower(nn.Module):
    """What `build` returns. Its constructor gives every parameter its first value."""

    width: int
    """D, of the tokens that come out."""
    stride: int
    """Pixels of the image that one token stands for, each way."""
    image_size: int
    """The square size that images are resized to by default, in pixels."""
    mean: Pixel
    std: Pixel

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of tokens of an image of so many pixels."""
        return height // self.stride, width // self.stride

    def forward(self, pixels: Tensor) -> Tensor:
        """[B, 3, H, W], normalized by `mean` and `std` -> [B, rows * columns, D], row by row.

        No class token is among them, and the final norm is applied.
        """
        raise NotImplementedError


def names() -> list[str]:
    """Every kind of tower, sorted."""
    files = sorted(Path(__file__).parent.glob("[!_]*.py"))
    return [f.stem for f in files if re.search(r"^def build\(", f.read_text(encoding="utf-8"), re.MULTILINE)]


def complete(kind: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """All settings of a kind: what is given, checked, and the defaults of the rest.

    Raises:
        PosttrainError: no such kind or setting (with the nearest right one), a value of the wrong type, or
            one that is missing.
    """
    build_it = _builder(kind)
    hints = get_type_hints(build_it) | COMMON
    known = {name: p.default for name, p in inspect.signature(build_it).parameters.items()}
    known |= dict.fromkeys(COMMON)
    for name in settings:
        if name not in known:
            hint = did_you_mean(name, known, "; did you mean")
            raise PosttrainError(f"tower {kind} takes no {name!r}{hint}; it takes {', '.join(known)}")
    found: dict[str, Any] = {}
    for name, default in known.items():
        if name not in settings and default is inspect.Parameter.empty:
            raise PosttrainError(f"tower {kind} needs {name!r}; it takes {', '.join(known)}")
        value = settings.get(name, default)
        config = ConfigDict(arbitrary_types_allowed=True, allow_inf_nan=False)
        try:
            found[name] = TypeAdapter(hints[name], config=config).validate_python(value)
        except ValidationError as error:
            said = error.errors()[0]["msg"].replace("Input should", "should")
            raise PosttrainError(f"tower {kind}: {name} {said}, not {value!r}") from None
    if found["std"] is not None and min(found["std"]) <= 0:
        raise PosttrainError(f"tower {kind}: std {found['std']} is divided by: it has to be above 0")
    return found


def build(kind: str, settings: Mapping[str, Any] | None = None) -> Tower:
    """A tower with fresh weights. Raises PosttrainError as `complete`, or for settings that do not fit."""
    given = complete(kind, settings or {})
    common = {name: given.pop(name) for name in COMMON}
    tower = _builder(kind)(**given)
    for name, value in common.items():
        if value is not None:
            setattr(tower, name, value)
    return tower


def _builder(kind: str) -> Any:
    known = names()
    if kind not in known:
        hint = did_you_mean(kind, known, "; did you mean")
        raise PosttrainError(f"no kind of tower {kind!r}{hint}; there are {', '.join(known)}")
    return importlib.import_module(f"{__name__}.{kind}").build

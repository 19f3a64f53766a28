"""Made visual tasks: a picture drawn from a seed, a question about it, and its exact answer.

One file a task, found by its name. Row i hangs on (seed, i) and the arguments alone. No torch here.
"""

from __future__ import annotations

import importlib
import inspect
import io
import pkgutil
import random
from collections.abc import Callable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from posttrain.errors import PosttrainError
from posttrain.words import did_you_mean

if TYPE_CHECKING:
    from PIL import Image

Row = dict[str, Any]


@cache
def names() -> tuple[str, ...]:
    """The tasks, by name."""
    return tuple(
        sorted(found.name for found in pkgutil.iter_modules(__path__) if not found.name.startswith("_"))
    )


def make(name: str, index: int, seed: int, args: Mapping[str, Any] | None = None) -> Row:
    """Row `index` of a task: {"image": {"bytes": PNG, "path": None}, "task": name, "question", "answer"}.

    A task is a function `draw(rng, *, pixels=64, …) -> (image, row without it)` in the file of its name; its
    keywords are the arguments.

    Raises:
        PosttrainError: no such task or argument, with the nearest name, or a value that cannot be.
    """
    draw, known = _task(name)
    for key in args or {}:
        if key not in known:
            hint = did_you_mean(key, known) or f"it takes {', '.join(known)}"
            raise PosttrainError(f"scenes:{name} has no argument {key!r}; {hint}")
    try:
        image, row = draw(random.Random(f"{seed}/{name}/{index}"), **(args or {}))
    except PosttrainError as error:
        raise PosttrainError(f"scenes:{name}: {error}") from None
    except ImportError as error:
        raise PosttrainError(f"scenes:{name} needs {error.name}: pip install 'posttrain[vision]'") from None
    return {"image": {"bytes": _png(image), "path": None}, "task": name, **row}


@cache
def _task(name: str) -> tuple[Callable[..., tuple[Image.Image, Row]], list[str]]:
    """A task's function, and the names of its arguments."""
    if name not in names():
        hint = did_you_mean(name, names(), most=3) or f"there are {', '.join(names())}"
        raise PosttrainError(f"scenes has no task {name!r}; {hint}")
    draw = importlib.import_module(f"posttrain.scenes.{name}").draw
    known = [key for key, p in inspect.signature(draw).parameters.items() if p.kind is p.KEYWORD_ONLY]
    return draw, known


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)
    return file.getvalue()

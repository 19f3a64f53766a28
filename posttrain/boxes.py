"""Boxes [x1, y1, x2, y2] in an image: read them, and how far two overlap.

x runs to the right and y down, so x1 < x2 and y1 < y2: corners given in another order are no box, and
neither is one without area. Numbers are read as points of a plane and not as pixels that have a width. They
may be pixels or shares of the image (0 to 1); two boxes are compared as they are written, so both have to
be of one kind.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

from posttrain.types import PosttrainError

Box = tuple[float, float, float, float]

LARGEST = 10**6  # no image is wider; what is larger could make an area infinite
WINDOW = 20_000  # characters at the end of a text that are searched

_NUMBER = r"\s*([+-]?\d{1,9}(?:\.\d{1,20})?)\s*"


def read_box(value: Any) -> Box | None:
    """A list of four numbers as a box, or None where it is none."""
    if not isinstance(value, list | tuple) or len(value) != 4:
        return None
    if any(isinstance(number, bool) or not isinstance(number, int | float) for number in value):
        return None
    if not all(-LARGEST <= number <= LARGEST for number in value):  # NaN fails too
        return None
    x1, y1, x2, y2 = map(float, value)
    return (x1, y1, x2, y2) if x1 < x2 and y1 < y2 and area((x1, y1, x2, y2)) > 0 else None


def gold_box(answer: Any) -> Box:
    """A row's gold box, given as a list or as its JSON. Raises PosttrainError where it is none."""
    value = answer
    if isinstance(answer, str):
        try:
            value = json.loads(answer)
        except (ValueError, RecursionError):
            value = None
    box = read_box(value)
    if box is None:
        raise PosttrainError(
            f"the answer {str(answer)[:80]!r} is no box [x1, y1, x2, y2] with x1 < x2 and y1 < y2"
        )
    return box


def last_numbers(text: str, count: int) -> list[float] | None:
    """The last `count` numbers that stand alone in brackets, (3, 4) or [3, 4]; None where there are none."""
    inner = ",".join([_NUMBER] * count)
    found = None
    for match in re.finditer(rf"\[{inner}\]|\({inner}\)", text[-WINDOW:]):
        found = match
    return [float(number) for number in found.groups() if number is not None] if found else None


def area(box: Box) -> float:
    x1, y1, x2, y2 = box
    return (x2 - x1) * (y2 - y1)


def overlap(a: Box, b: Box) -> float:
    """Intersection over union, 0 to 1."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    shared = width * height
    value = shared / (area(a) + area(b) - shared)
    return min(1.0, value) if math.isfinite(value) else 0.0

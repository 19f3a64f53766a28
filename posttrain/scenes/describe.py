"""What there is to see, said in a fixed order: captions, to teach a fresh tower and connector. No reward.

With `boxes` every shape is told by itself, with its box in whole percent of the picture. The order is that of
names and not of places: it teaches where a thing is, and not only what is at a place.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from typing import TYPE_CHECKING

from posttrain.errors import PosttrainError
from posttrain.scenes._draw import box_of, canvas, check_room, put, scatter, sorts, whole

if TYPE_CHECKING:
    from PIL import Image


def draw(
    rng: random.Random,
    *,
    pixels: int = 64,
    most: int = 5,
    boxes: bool = False,
    colors: int = 6,
    shapes: int = 3,
) -> tuple[Image.Image, dict[str, str]]:
    """One to `most` shapes, half of the time of at most three sorts, so that there are several of one."""
    if not isinstance(boxes, bool):
        raise PosttrainError(f"boxes is {boxes!r}: choose true or false")
    image = canvas(pixels)
    check_room(pixels, whole("most", most, 1, 20))
    known = sorts(colors, shapes)
    some = rng.sample(known, min(3, len(known))) if rng.random() < 0.5 else known
    shown = [rng.choice(some) for _ in range(rng.randint(1, most))]
    spots = scatter(rng, pixels, len(shown), max(3, pixels // 16), pixels // 8)
    for (color, shape), spot in zip(shown, spots, strict=True):
        put(image, shape, color, spot)
    if boxes:
        told = [
            f"{c} {s} {json.dumps([round(100 * edge / pixels) for edge in box_of(spot)])}"
            for (c, s), spot in sorted(
                zip(shown, spots, strict=True), key=lambda one: (known.index(one[0]), one[1])
            )
        ]
        return image, {"question": "What is where in the picture?", "answer": "; ".join(told)}
    counted = sorted(Counter(shown).items(), key=lambda one: known.index(one[0]))
    told = [f"{number} {c} {s}{'s' if number > 1 else ''}" for (c, s), number in counted]
    return image, {"question": "What is in the picture?", "answer": ", ".join(told)}

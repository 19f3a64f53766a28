"""How many shapes of one colour and kind there are among others. Reward: count.

Every number from 0 to `most` is the answer equally often.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from posttrain.scenes._draw import canvas, check_room, put, scatter, sorts, whole

if TYPE_CHECKING:
    from PIL import Image


def draw(
    rng: random.Random,
    *,
    pixels: int = 64,
    most: int = 5,
    distractors: int = 5,
    colors: int = 6,
    shapes: int = 3,
) -> tuple[Image.Image, dict[str, str]]:
    """Up to `most` shapes that are asked for, up to `distractors` others; half share kind or colour."""
    image = canvas(pixels)
    number = rng.randint(0, whole("most", most, 1, 20))
    whole("distractors", distractors, 0, 20)
    others = rng.randint(0 if number else min(1, distractors), distractors)  # nothing at all says nothing
    check_room(pixels, most + distractors)
    known = sorts(colors, shapes, 2 if distractors else 1)
    color, shape = rng.choice(known)
    pairs = [pair for pair in known if pair != (color, shape)]
    alike = [pair for pair in pairs if color in pair or shape in pair]
    shown = [(color, shape)] * number + [rng.choice(rng.choice((pairs, alike))) for _ in range(others)]
    for (c, s), spot in zip(
        shown, scatter(rng, pixels, len(shown), max(3, pixels // 16), pixels // 10), strict=True
    ):
        put(image, s, c, spot)
    return image, {"question": f"How many {color} {shape}s are there?", "answer": str(number)}

"""Which colour there is more of, which of two shapes is larger, which is left. Reward: accuracy.

Kinds: number (answer: a colour), size (a colour), place (left or right). Both answers that a question allows
are equally likely.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

from posttrain.scenes._draw import SHAPES, canvas, check_room, kind_of, pick, put, scatter, whole

if TYPE_CHECKING:
    from PIL import Image

KINDS = ("number", "size", "place")


def draw(
    rng: random.Random,
    *,
    pixels: int = 64,
    kinds: Sequence[str] | str | None = None,
    most: int = 5,
    gap: int = 3,
) -> tuple[Image.Image, dict[str, str]]:
    """Two colours; up to `most` shapes each where numbers are compared, `gap` pixels between two sizes."""
    image, kind = canvas(pixels), kind_of(rng, kinds, KINDS)
    whole("most", most, 2, 10)
    check_room(pixels, 2 * most)
    least, largest = max(3, pixels // 16), pixels // 5
    whole("gap", gap, 1, largest - least)
    one, other = pick(rng, 2)
    shape = rng.choice(SHAPES)
    if kind == "number":
        counts = rng.sample(range(1, most + 1), 2)
        shown = [one] * counts[0] + [other] * counts[1]
        for color, spot in zip(shown, scatter(rng, pixels, len(shown), least, pixels // 10), strict=True):
            put(image, rng.choice(SHAPES), color, spot)
        answer = one if counts[0] > counts[1] else other
        question = f"Are there more {one} or more {other} shapes?"
    elif kind == "size":
        spots = scatter(rng, pixels, 2, largest, largest)  # room for the larger one in either place
        small = rng.randint(least, largest - gap)
        sides = [small, rng.randint(small + gap, largest)]
        rng.shuffle(sides)
        for color, (x, y, _), side in zip((one, other), spots, sides, strict=True):
            put(image, shape, color, (x, y, side))
        answer = one if sides[0] > sides[1] else other
        question = f"Which {shape} is larger, the {one} one or the {other} one?"
    else:
        a, b = scatter(rng, pixels, 2, least, pixels // 8)
        while abs(a[0] - b[0]) < pixels // 8:
            a, b = scatter(rng, pixels, 2, least, pixels // 8)
        kinds_shown = rng.choice(SHAPES), rng.choice(SHAPES)
        put(image, kinds_shown[0], one, a)
        put(image, kinds_shown[1], other, b)
        answer = "left" if a[0] < b[0] else "right"
        question = f"Is the {one} {kinds_shown[0]} left or right of the {other} {kinds_shown[1]}?"
    return image, {"question": question, "answer": answer, "kind": kind}

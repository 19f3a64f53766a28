"""A bar chart: a bar's value, or which bar is the tallest or the shortest. Reward: accuracy.

Kinds: value (answer: a number, each equally likely), tallest and shortest (a colour, each equally likely).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

from posttrain.errors import PosttrainError
from posttrain.scenes._draw import COLORS, LETTER, LINES, canvas, kind_of, pick, whole, width_of, write

if TYPE_CHECKING:
    from PIL import Image

KINDS = ("value", "tallest", "shortest")


def draw(
    rng: random.Random,
    *,
    pixels: int = 64,
    kinds: Sequence[str] | str | None = None,
    bars: int = 4,
    most: int = 9,
) -> tuple[Image.Image, dict[str, str]]:
    """`bars` bars in colours of their own, from 1 to `most` high, a line at every whole number."""
    from PIL import ImageDraw

    image, kind = canvas(pixels), kind_of(rng, kinds, KINDS)
    whole("bars", bars, 2, len(COLORS))
    whole("most", most, 3, 99)
    unit = (pixels - LETTER[1] - 1) // most
    left = width_of(len(str(most))) + 2
    wide = (pixels - left) // bars
    if unit < 3 or wide < 5:
        raise PosttrainError(
            f"{bars} bars of up to {most} do not fit into {pixels} x {pixels} pixels; choose more pixels"
        )
    colors = pick(rng, bars)
    values = [rng.randint(1, most) for _ in range(bars)]
    while kind != "value" and values.count(_end(kind, values)) > 1:
        values = [rng.randint(1, most) for _ in range(bars)]
    pen, floor = ImageDraw.Draw(image), pixels - LETTER[1] // 2 - 1
    for number in range(most + 1):
        pen.line((left - 1, floor - number * unit, pixels - 1, floor - number * unit), fill=LINES)
    step = -(-(LETTER[1] + 1) // unit)
    for number in range(0, most + 1, step):
        write(image, (0, floor - number * unit - LETTER[1] // 2), str(number))
    for place, (color, value) in enumerate(zip(colors, values, strict=True)):
        x = left + place * wide
        pen.rectangle((x + 1, floor - value * unit, x + wide - 2, floor), fill=COLORS[color])
    if kind == "value":
        at = rng.randrange(bars)
        return image, {
            "question": f"How high is the {colors[at]} bar?", "answer": str(values[at]), "kind": kind
        }  # fmt: skip
    answer = colors[values.index(_end(kind, values))]
    return image, {"question": f"Which bar is the {kind}?", "answer": answer, "kind": kind}


def _end(kind: str, values: Sequence[int]) -> int:
    return max(values) if kind == "tallest" else min(values)

"""The box of the one shape of a colour and kind. Rewards: iou; point for its middle.

`answer` is JSON, [x1, y1, x2, y2], as posttrain/boxes.py has it: edges of pixels, so x2 - x1 is the width.
"""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING

from posttrain.scenes._draw import among, box_of, canvas, put, scatter, sorts, whole

if TYPE_CHECKING:
    from PIL import Image


def draw(
    rng: random.Random,
    *,
    pixels: int = 64,
    distractors: int = 3,
    unit: str = "pixels",
    colors: int = 6,
    shapes: int = 3,
) -> tuple[Image.Image, dict[str, str]]:
    """One shape that is asked for among `distractors` others; unit: "pixels", or "percent" of the picture."""
    image = canvas(pixels)
    among("unit", unit, ("pixels", "percent"))
    number = 1 + whole("distractors", distractors, 0, 8)
    pairs = rng.sample(sorts(colors, shapes, number), number)
    spots = scatter(rng, pixels, len(pairs), max(3, pixels // 16), pixels // 6)
    for (color, shape), spot in zip(pairs, spots, strict=True):
        put(image, shape, color, spot)
    box: list[int] = list(box_of(spots[0]))
    scale = "percent of the picture."
    if unit == "percent":
        box = [round(100 * edge / pixels) for edge in box]
    else:
        scale = f"pixels; the picture is {pixels} x {pixels}."
    named = " ".join(pairs[0])
    question = f"Where is the {named}? Give its box as [x1, y1, x2, y2] in {scale}"
    return image, {"question": question, "answer": json.dumps(box)}

"""The sum or the difference of two numbers in real handwriting. Reward: accuracy.

The digits are scikit-learn's load_digits, a part of the test set of UCI's Optical Recognition of Handwritten
Digits: 1,797 of 8 x 8 pixels. Every possible answer is equally likely.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

from posttrain.scenes._draw import among, canvas, kind_of, whole, write

if TYPE_CHECKING:
    from PIL import Image

KINDS = ("sum", "difference")
PARTS = ("train", "test")


@cache
def written(part: str) -> list[list[Image.Image]]:
    """The drawings of each digit, 0 first; every fifth is in "test", the others in "train"."""
    from PIL import Image
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    found: list[list[Image.Image]] = [[] for _ in range(10)]
    for index, (ink, label) in enumerate(zip(images, labels, strict=True)):
        if (index % 5 == 0) == (part == "test"):
            grey = bytes(255 - min(255, int(value) * 16) for value in ink)  # ink goes from 0 to 16
            framed = Image.new("L", (10, 10), 255)
            framed.paste(Image.frombytes("L", (8, 8), grey), (1, 1))
            found[int(label)].append(framed)
    return found


def draw(
    rng: random.Random,
    *,
    pixels: int = 64,
    kinds: Sequence[str] | str | None = None,
    digits: int = 1,
    part: str = "train",
) -> tuple[Image.Image, dict[str, str]]:
    """One number above the other, of up to `digits` digits; `part` says whose drawings: "train" or "test"."""
    image, kind = canvas(pixels), kind_of(rng, kinds, KINDS)
    top = 10 ** whole("digits", digits, 1, 3) - 1
    hands = written(among("part", part, PARTS))
    if kind == "sum":
        answer = rng.randint(0, 2 * top)
        first = rng.randint(max(0, answer - top), min(top, answer))
        second = answer - first
    else:
        answer = rng.randint(0, top)
        second = rng.randint(0, top - answer)
        first = answer + second
    side = pixels // (digits + 1)
    _write(image, rng, hands, first, side, pixels // 2 - side)
    _write(image, rng, hands, second, side, pixels - side)
    scale = max(1, side // 16)
    write(image, (1, pixels - side // 2 - 6 * scale), "+" if kind == "sum" else "-", "black", scale)
    question = f"What is the {kind} of the two numbers?"
    if kind == "difference":
        question = "What is the upper number minus the lower number?"
    return image, {"question": question, "answer": str(answer), "kind": kind}


def _write(
    image: Image.Image, rng: random.Random, hands: list[list[Image.Image]], number: int, side: int, y: int
) -> None:
    """A number in handwriting, at the right edge."""
    from PIL.Image import Resampling

    text = str(number)
    for place, digit in enumerate(text):
        drawn = rng.choice(hands[int(digit)]).resize((side, side), Resampling.BICUBIC)
        image.paste(drawn.convert("RGB"), (image.width - side * (len(text) - place), y))

"""What is written in the picture. Reward: accuracy.

Kinds: digits (a number of `length` digits), letters (so many capitals), word (one of a list).
"""

from __future__ import annotations

import random
import string
from collections.abc import Sequence
from typing import TYPE_CHECKING

from posttrain.errors import PosttrainError
from posttrain.scenes._draw import LETTER, canvas, kind_of, pick, whole, width_of, write

if TYPE_CHECKING:
    from PIL import Image

KINDS = ("digits", "letters", "word")
WORDS = (  # noqa: SIM905 - a list of words is read as such
    "apple bread chair cloud dance eagle field glass green horse house juice knife lemon light money mouse "
    "music night ocean paper piano plant queen river salad sheep shoes smile snake spoon stone sugar table "
    "tiger train truck water wheel woman world zebra"
).split()


def draw(
    rng: random.Random, *, pixels: int = 64, kinds: Sequence[str] | str | None = None, length: int = 3
) -> tuple[Image.Image, dict[str, str]]:
    """A text in a colour at a place of its own, as large as fits or smaller."""
    image, kind = canvas(pixels), kind_of(rng, kinds, KINDS)
    whole("length", length, 1, 8)
    if kind == "digits":
        text = str(rng.randrange(10 ** (length - 1) if length > 1 else 0, 10**length))
    elif kind == "letters":
        text = "".join(rng.choices(string.ascii_uppercase, k=length))
    else:
        text = rng.choice(WORDS)
    fitting = [scale for scale in range(1, 9) if width_of(len(text), scale) <= pixels >= LETTER[1] * scale]
    if not fitting:
        raise PosttrainError(f"{len(text)} letters do not fit into {pixels} pixels; choose more pixels")
    scale = rng.choice(fitting[-3:])
    x = rng.randint(0, pixels - width_of(len(text), scale))
    y = rng.randint(0, pixels - LETTER[1] * scale)
    write(image, (x, y), text, pick(rng, 1)[0], scale)
    noun = {"digits": "number", "letters": "letters", "word": "word"}[kind]
    verb = "are" if kind == "letters" else "is"
    return image, {"question": f"What {noun} {verb} written here?", "answer": text, "kind": kind}

"""What the tasks draw with: colours, shapes that do not touch, a font of fixed pixels; checks of arguments.

Nothing is smoothed at its edges, so a pixel has one of the named colours or the background's.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from posttrain.errors import PosttrainError
from posttrain.words import did_you_mean

if TYPE_CHECKING:
    from PIL import Image

COLORS = {
    "red": (220, 40, 40),
    "green": (40, 160, 60),
    "blue": (50, 90, 220),
    "yellow": (240, 200, 40),
    "purple": (150, 60, 180),
    "black": (0, 0, 0),
}
SHAPES = ("circle", "square", "triangle")
WHITE, LINES = (255, 255, 255), (205, 205, 205)
LETTER = (6, 11)  # width and height of a letter at scale 1
_TRIES = 30

Spot = tuple[int, int, int]  # x and y of the middle pixel, and how many pixels lie on each side of it


def whole(name: str, value: Any, least: int, most: int) -> int:
    """An argument that is a whole number from `least` to `most`, or PosttrainError."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise PosttrainError(f"{name} is {value!r}: choose a whole number from {least} to {most}")
    return value


def among(name: str, value: Any, known: Iterable[str]) -> str:
    """An argument that is one of the known words, or PosttrainError with the nearest."""
    known = list(known)
    if value in known:
        return value
    hint = did_you_mean(value, known) or f"choose {', '.join(known[:-1])} or {known[-1]}"
    raise PosttrainError(f"{name} is {value!r}; {hint}")


def kind_of(rng: random.Random, kinds: Any, known: Sequence[str]) -> str:
    """One of the kinds of question that an argument names, a word or a list of them; None: of all."""
    chosen = known if kinds is None else [kinds] if isinstance(kinds, str) else kinds
    if not isinstance(chosen, list | tuple) or not chosen:
        raise PosttrainError(f"kinds is {kinds!r}: choose a list of {', '.join(known)}")
    return rng.choice([among("kinds", kind, known) for kind in chosen])


def sorts(colors: int, shapes: int, least: int = 1) -> list[tuple[str, str]]:
    """Every pair of the first few colours and the first few kinds of shape: the fewer, the easier.

    Raises:
        PosttrainError: fewer than `least`.
    """
    some = list(COLORS)[: whole("colors", colors, 1, len(COLORS))]
    pairs = [(c, s) for c in some for s in SHAPES[: whole("shapes", shapes, 1, len(SHAPES))]]
    if len(pairs) < least:
        raise PosttrainError(
            f"colors {colors} and shapes {shapes} make {len(pairs)} sorts of things; choose more of them, or "
            "fewer distractors"
        )
    return pairs


def canvas(pixels: Any) -> Image.Image:
    """White, pixels x pixels. PosttrainError outside of 32 to 1024."""
    from PIL import Image

    side = whole("pixels", pixels, 32, 1024)
    return Image.new("RGB", (side, side), WHITE)


def check_room(pixels: int, shapes: int) -> int:
    """The cell of a grid with room for so many shapes, in pixels. PosttrainError where that is too small."""
    cell = pixels // (math.isqrt(max(0, shapes - 1)) + 1)
    if cell < 9:
        raise PosttrainError(
            f"{shapes} shapes do not fit into {pixels} x {pixels} pixels; choose more pixels"
        )
    return cell


def scatter(rng: random.Random, pixels: int, count: int, least: int, most: int) -> list[Spot]:
    """Spots of `least` to `most` pixels a side, at least two pixels between them.

    Raises:
        PosttrainError: so many do not fit.
    """
    cell = check_room(pixels, count)
    for smaller in range(most - least + 1):
        spots: list[Spot] = []
        for _ in range(_TRIES * count):
            if len(spots) == count:
                return spots
            side = rng.randint(least, most - smaller)
            x, y = (rng.randint(side + 1, pixels - side - 2) for _ in range(2))
            if all(max(abs(x - a), abs(y - b)) > side + other + 2 for a, b, other in spots):
                spots.append((x, y, side))
    # Random places were too crowded: those of a grid are not.
    side, across = min(least, (cell - 3) // 2), pixels // cell
    cells = rng.sample(range(across * across), count)
    return [(at % across * cell + cell // 2, at // across * cell + cell // 2, side) for at in cells]


def box_of(spot: Spot) -> tuple[int, int, int, int]:
    """[x1, y1, x2, y2] of a spot, with the edges of its pixels and not their middles."""
    x, y, side = spot
    return (x - side, y - side, x + side + 1, y + side + 1)


def put(image: Image.Image, shape: str, color: str, spot: Spot) -> None:
    """Draw a shape that touches all four sides of its spot's box."""
    from PIL import ImageDraw

    draw, fill = ImageDraw.Draw(image), COLORS[color]
    x, y, side = spot
    edges = (x - side, y - side, x + side, y + side)
    if shape == "circle":
        draw.ellipse(edges, fill=fill)
    elif shape == "square":
        draw.rectangle(edges, fill=fill)
    else:
        draw.polygon([(x, y - side), (x + side, y + side), (x - side, y + side)], fill=fill)


@cache
def _font() -> Any:
    from PIL import ImageFont

    return ImageFont.load_default_imagefont()


def write(image: Image.Image, at: tuple[int, int], text: str, color: str = "black", scale: int = 1) -> None:
    """Write a text with its upper left corner at a pixel, each pixel of a letter `scale` wide."""
    from PIL import Image, ImageDraw

    (x, y), (width, height) = at, LETTER
    for letter in text:
        small = Image.new("1", LETTER)
        ImageDraw.Draw(small).text((0, 0), letter, fill=1, font=_font())
        mask = small.resize((width * scale, height * scale), Image.Resampling.NEAREST)
        image.paste(COLORS[color], (x, y), mask)
        x += width * scale + 1


def width_of(letters: int, scale: int = 1) -> int:
    """How wide so many letters are, with a pixel between two."""
    return letters * (LETTER[0] * scale + 1) - 1


def pick(rng: random.Random, count: int) -> list[str]:
    """So many colours, all different."""
    return rng.sample(list(COLORS), count)

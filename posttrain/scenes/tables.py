"""A table of numbers: one cell, or the sum of a column. Reward: accuracy.

Kinds: cell (each number equally likely), sum.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

from posttrain.errors import PosttrainError
from posttrain.scenes._draw import LETTER, LINES, canvas, kind_of, whole, width_of, write

if TYPE_CHECKING:
    from PIL import Image

KINDS = ("cell", "sum")


def draw(
    rng: random.Random,
    *,
    pixels: int = 64,
    kinds: Sequence[str] | str | None = None,
    rows: int = 3,
    columns: int = 3,
    digits: int = 1,
) -> tuple[Image.Image, dict[str, str]]:
    """`rows` x `columns` numbers of up to `digits` digits; columns have letters, rows numbers."""
    from PIL import ImageDraw

    image, kind = canvas(pixels), kind_of(rng, kinds, KINDS)
    top = 10 ** whole("digits", digits, 1, 3) - 1
    whole("rows", rows, 1, 9)
    whole("columns", columns, 1, 9)
    wide, high = pixels // (columns + 1), pixels // (rows + 1)
    if wide < width_of(digits) + 2 or high < LETTER[1] + 1:
        raise PosttrainError(
            f"{rows} rows of {columns} numbers do not fit into {pixels} x {pixels} pixels; choose more pixels"
        )
    numbers = [[rng.randint(0, top) for _ in range(columns)] for _ in range(rows)]
    pen = ImageDraw.Draw(image)

    def put(row: int, column: int, text: str, color: str) -> None:
        x = column * wide + (wide - width_of(len(text))) // 2 + 1
        write(image, (x, row * high + (high - LETTER[1]) // 2 + 1), text, color)

    for column in range(columns):
        put(0, column + 1, _letter(column), "blue")
    for row in range(rows):
        put(row + 1, 0, str(row + 1), "blue")
        for column in range(columns):
            put(row + 1, column + 1, str(numbers[row][column]), "black")
    for line in range(1, columns + 1):
        pen.line((line * wide, 0, line * wide, (rows + 1) * high - 1), fill=LINES)
    for line in range(1, rows + 1):
        pen.line((0, line * high, (columns + 1) * wide - 1, line * high), fill=LINES)
    column, row = rng.randrange(columns), rng.randrange(rows)
    if kind == "cell":
        question = f"What number is in column {_letter(column)}, row {row + 1}?"
        answer = numbers[row][column]
    else:
        question = f"What is the sum of column {_letter(column)}?"
        answer = sum(line[column] for line in numbers)
    return image, {"question": question, "answer": str(answer), "kind": kind}


def _letter(column: int) -> str:
    return chr(ord("A") + column)

"""Boxes: what is one, and how far two overlap."""

from __future__ import annotations

import random

import pytest

from posttrain.boxes import gold_box, last_numbers, overlap, read_box
from posttrain.types import PosttrainError


@pytest.mark.parametrize(
    "value",
    [
        None, 1, "1234", [], [1, 2, 3], [1, 2, 3, 4, 5], [3, 2, 1, 4], [1, 4, 3, 2], [1, 2, 1, 4], [1, 2, 3,
        2],
        [1, 2, 3, "4"], [0, 0, True, True], [0, 0, float("nan"), 1], [0, 0, float("inf"), 1], [0, 0,
        10**400, 1],
        [0, 0, 1e308, 1e308], [0, 0, 5e-324, 5e-324], {"x1": 0}, [[0, 0], [1, 1]],
    ],
)  # fmt: skip
def test_what_is_no_box(value: object) -> None:
    assert read_box(value) is None
    with pytest.raises(PosttrainError, match="no box"):
        gold_box(value)


def test_gold_boxes_come_as_lists_or_json() -> None:
    assert gold_box([1, 2, 3, 4]) == gold_box("[1, 2, 3.0, 4]") == (1.0, 2.0, 3.0, 4.0)
    for text in ("", "[", "[" * 10**5, "[NaN, 0, 1, 1]", "(1, 2, 3, 4)"):
        with pytest.raises(PosttrainError, match="no box"):
            gold_box(text)


@pytest.mark.parametrize(
    ("a", "b", "value"),
    [
        ((0, 0, 2, 2), (0, 0, 2, 2), 1.0),
        ((0, 0, 2, 2), (1, 0, 3, 2), 1 / 3),
        ((0, 0, 2, 2), (1, 1, 3, 3), 1 / 7),
        ((0, 0, 4, 4), (1, 1, 3, 3), 1 / 4),
        ((0, 0, 1, 1), (1, 0, 2, 1), 0.0),  # they touch
        ((0, 0, 1, 1), (5, 5, 6, 6), 0.0),
        ((0.0, 0.0, 0.2, 0.2), (0.1, 0.0, 0.3, 0.2), 1 / 3),
        ((-1, -1, 1, 1), (0, 0, 1, 1), 1 / 4),
    ],
)
def test_overlap(a, b, value) -> None:
    assert overlap(a, b) == overlap(b, a) == pytest.approx(value)


def test_overlap_against_counting_cells() -> None:
    draw = random.Random(0)
    for _ in range(50):
        a, b = (
            (x, y, x + draw.randrange(1, 6), y + draw.randrange(1, 6))
            for x, y in [(draw.randrange(6), draw.randrange(6)) for _ in range(2)]
        )
        cells = [{(x, y) for x in range(c[0], c[2]) for y in range(c[1], c[3])} for c in (a, b)]
        assert overlap(a, b) == pytest.approx(len(cells[0] & cells[1]) / len(cells[0] | cells[1]))


@pytest.mark.parametrize(
    ("text", "count", "numbers"),
    [
        ("(3, 4)", 2, [3, 4]),
        ("from [1,2] to [ 3.5 , -4 ]", 2, [3.5, -4]),
        ("[[1, 2, 3, 4]]", 4, [1, 2, 3, 4]),
        ("在 (3, 4) 处。", 2, [3, 4]),
        ("(3, 4]", 2, None),
        ("(3, 4, 5)", 2, None),
        ("(3,)", 2, None),
        ("(3, x)", 2, None),
        ("(1e3, 4)", 2, None),
        ("(NaN, 4)", 2, None),
        ("(" + "9" * 10**6 + ", 4)", 2, None),
        ("(" * 10**6, 2, None),
        ("(1," * 10**5, 2, None),
        ("( " * 10**5 + " " * 10**5, 2, None),
        ("", 4, None),
    ],
)
def test_last_numbers(text: str, count: int, numbers: list[float] | None) -> None:
    assert last_numbers(text, count) == numbers

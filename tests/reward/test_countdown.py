"""Expressions that make the target, worked out by a reader of sums alone."""

import pytest

from posttrain.types import PosttrainError


@pytest.mark.parametrize(
    ("said", "value"),
    [
        ("(1 + 2) * 3", 1.0),
        ("3 × (2 + 1)", 1.0),
        ("$3 \\times \\left(2 + 1\\right) = 9$", 1.0),
        ("9 = (1+2)*3", 1.0),
        ("1 + 2 + 3", 0.0),
        ("9", 0.0),
        ("3 * 3", 0.0),  # not those numbers
        ("3 * (2 + 1) + 0", 0.0),
        ("3 * 3 = 9 = (1+2)*3", 0.0),
        ("3 ** 2 * 1", 0.0),
        ("12 - 3", 0.0),  # 1 and 2 are two numbers
        ("(1 + 2) * 3 = 8", 0.0),
        ("(1 + 2) * 3.0", 0.0),
        ("3 / (1 - 1)", 0.0),
        ("__import__('os')", 0.0),
        ("(" * 400, 0.0),
        ("(" * 120 + "1" + ")" * 120, 0.0),
        ("", 0.0),
    ],
)
def test_expressions(reward, said, value):
    assert reward([f"So <answer>{said}</answer>"], nums=[[3, 2, 1]], target=[9]) == [value]


def test_fractions_are_exact(reward):
    """8 / (3 - 8 / 3) is 24; in floating point it is 23.999999999999993."""
    assert reward(["<answer>8 / (3 - 8 / 3)</answer>"], nums=[[8, 3, 8, 3]], target=[24]) == [1.0]


def test_rows(reward):
    about = {"numbers": [4, 5], "target": 20, "source_dataset": "countdown"}
    assert reward(["\\boxed{4 * 5}", "4 * 5"], metadata=[about, about], form="boxed", answer=["", ""]) == [
        1.0,
        0.0,
    ]
    assert reward(["<answer>1</answer>"]) == [None]
    assert reward(["x"], nums=[[1]]) == [None]
    with pytest.raises(PosttrainError, match="not whole numbers"):
        reward(["<answer>1</answer>"], nums=["1 2"], target=[3])

"""A point in the gold box."""

import pytest

from posttrain.types import PosttrainError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("(15, 25)", 1.0),
        ("Click at [15.5, 25].", 1.0),
        ("(10, 20)", 1.0),  # the edge is inside
        ("(20, 40)", 1.0),
        ("点击 (15, 25)。", 1.0),
        ('<answer>{"point_2d": [15, 25]}</answer> (0, 0)', 1.0),
        ("<think>(0, 0)</think>(15, 25)", 1.0),
        ("(25, 15)", 0.0),  # y and x
        ("(20.001, 40)", 0.0),
        ("(9, 25)", 0.0),
        ("(15, 25) or (0, 0)", 0.0),  # the last one counts
        ("<think>(15, 25)</think>", 0.0),
        ("(15, 25, 30)", 0.0),
        ("[10, 20, 20, 40]", 0.0),  # the box is no point
        ("(NaN, NaN)", 0.0),
        ("(Infinity, 25)", 0.0),
        ("(1e1, 25)", 0.0),
        ("(15, " + "9" * 10**6 + ")", 0.0),
        ("15, 25", 0.0),
        ("", 0.0),
        ("{", 0.0),
        ("(15," * 10**6, 0.0),
    ],
)
def test_point(reward, text, value):
    assert reward([text], answer=[[10, 20, 20, 40]]) == [value]
    assert reward([[{"role": "assistant", "content": text}]], answer=["[10, 20, 20, 40]"]) == [value]


def test_gold(reward):
    assert reward(["(0.5, 0.5)"] * 2, answer=[[0, 0, 1, 1], None]) == [1.0, None]
    with pytest.raises(PosttrainError, match="no box"):
        reward(["(15, 25)"], answer=["(10, 20, 20, 40)"])

"""Intersection over union with the gold box."""

import pytest

from posttrain.types import PosttrainError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("[0, 0, 2, 2]", 1.0),
        ("The box is [1, 0, 3, 2].", 1 / 3),
        ("<think>[0, 0, 2, 2]</think><answer>[1, 0, 3, 2]</answer>", 1 / 3),
        ("<think>[1, 0, 3, 2]</think>[0, 0, 2, 2]", 1.0),
        ('<answer>{"bbox_2d": [0, 0, 2, 2], "label": "猫"}</answer>', 1.0),
        ("边框是 (0, 0, 2, 2)。", 1.0),
        ("[0, 0, 2, 2] or rather [5, 5, 6, 6]", 0.0),  # the last one counts
        ("<answer>[5, 5, 6, 6]</answer> [0, 0, 2, 2]", 0.0),
        ("<think>[0, 0, 2, 2]</think>", 0.0),
        ("[2, 2, 0, 0]", 0.0),  # swapped corners
        ("[0, 2, 2, 0]", 0.0),
        ("[0, 0, 0, 2]", 0.0),
        ("[0, 0, 2]", 0.0),
        ("[0, 0, 2, 2, 2]", 0.0),
        ("[0, 0, 2, NaN]", 0.0),
        ("[0, 0, 2, 1e308]", 0.0),
        ("[0, 0, 2, " + "9" * 10**6 + "]", 0.0),
        ("[-1000000, -1000000, 1000000, 1000000]", 1e-12),
        ("[0, 0, 2, 2", 0.0),
        ("", 0.0),
        ("{", 0.0),
        ("[0," * 10**6, 0.0),
    ],
)
@pytest.mark.parametrize("gold", [[0, 0, 2, 2], "[0, 0, 2.0, 2]"])
def test_iou(reward, text, value, gold):
    assert reward([text], answer=[gold]) == [pytest.approx(value)]
    assert reward([[{"role": "assistant", "content": text}]], answer=[gold]) == [pytest.approx(value)]


def test_shares_of_the_image_do_not_meet_pixels(reward):
    assert reward(["[0.1, 0.1, 0.3, 0.3]", "[10, 10, 30, 30]"], answer=[[0.1, 0.1, 0.3, 0.3]] * 2) == [
        1.0,
        0.0,
    ]


def test_threshold(reward):
    texts = ["[0, 0, 2, 2]", "[0, 0, 2, 1]", "[1, 0, 3, 2]", ""]
    assert reward(texts, answer=[[0, 0, 2, 2]] * 4, threshold=0.5) == [1.0, 1.0, 0.0, 0.0]
    for threshold in (0, 1.5, float("nan")):
        with pytest.raises(PosttrainError, match="threshold"):
            reward(texts, answer=[[0, 0, 2, 2]] * 4, threshold=threshold)


def test_gold(reward):
    assert reward(["[0, 0, 2, 2]"], answer=[None]) == [None]
    with pytest.raises(PosttrainError, match="no box"):
        reward(["[0, 0, 2, 2]"], answer=["a cat"])

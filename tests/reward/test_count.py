"""The count reward."""

import pytest

from posttrain.types import PosttrainError


@pytest.mark.parametrize(
    ("said", "gold"),
    [
        ("7", 7), ("7", "7"), ("7.", "7"), ("7 dogs", "7"), ("There are 7 dogs.", "7"), ("**7**", 7), ("07",
        "7"),
        ("1,234", 1234), ("1234", "1,234"), ("0", 0), ("٧", 7), ("共有 7 只狗。", 7), ("7只", 7), ("7.0", 7),
        ("7", 7.0),
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    ("form", "layout"),
    [
        ("the_answer_is", "3 + 4 = 7\nThe answer is: {}"),
        ("answer_tag", "<think>3 or 4</think><answer>{}</answer>"),
        ("boxed", "so \\boxed{{{}}}"),
    ],
)
def test_the_right_count(reward, said, gold, form, layout):
    text = layout.format(said)
    assert reward([text], answer=[gold], form=form) == [1.0]
    assert reward([[{"role": "assistant", "content": text}]], answer=[gold], form=form) == [1.0]
    assert reward([text], answer=[8], form=form) == [0.0]


@pytest.mark.parametrize(
    "said",
    [
        "", " ", "{", "N", "seven", "6", "8", "77", "-7", "−7", "7.5", "0.7", "7,5", "7e0", "x7", "7th",
        "7/1", "14/2",
        "3 + 4", "6 or 7", "7 or 8", "6, 7", "7-8", "7 dozen", "7 hundred", "about 7", "at least 7",
        "more than 7",
        "not 7", "isn't 7", "7%", "7!", "7^1", "约 7", "7万", "NaN", "9" * 10**6, "7" + "0" * 200,
        "7 " + "x" * 400,
    ],
)  # fmt: skip
def test_anything_else(reward, said):
    assert reward([f"<answer>{said}</answer>"], answer=["7"], form="answer_tag") == [0.0]
    assert reward([said], answer=["7"], form="answer_tag") == [0.0]


def test_gold(reward):
    assert reward(["<answer>7</answer>"], answer=[None], form="answer_tag") == [None]
    for gold in ("many", "7.5", "-7", ""):
        with pytest.raises(PosttrainError, match="not a whole number"):
            reward(["<answer>7</answer>"], answer=[gold], form="answer_tag")

"""Cosine length scaling, against its closed form and against the bugs that its copies are known for."""

import math

import pytest

from posttrain.types import PosttrainError

RIGHT, WRONG = "The answer is: 12", "The answer is: 13"


def pay(reward, text, tokens, answer=("12",), **args):
    args = {"max_tokens": 100, **args}
    return reward([text], completion_ids=[[7] * tokens], answer=list(answer), **args)[0]


@pytest.mark.parametrize(
    ("text", "tokens", "value"),
    [
        (RIGHT, 0, 2.0),
        (RIGHT, 25, 1.5 + math.sqrt(2) / 4),
        (RIGHT, 50, 1.5),
        (RIGHT, 75, 1.5 - math.sqrt(2) / 4),
        (RIGHT, 99, 1.5 + 0.5 * math.cos(0.99 * math.pi)),
        (RIGHT, 100, -10.0),
        (WRONG, 0, -10.0),
        (WRONG, 25, -5 - 2.5 * math.sqrt(2)),
        (WRONG, 50, -5.0),
        (WRONG, 75, -5 + 2.5 * math.sqrt(2)),
        (WRONG, 100, -10.0),
        (WRONG, 10**6, -10.0),
        ("", 50, -5.0),
        ("答案是十二", 50, -5.0),
    ],
)
def test_the_closed_form(reward, text, tokens, value):
    assert pay(reward, text, tokens) == pytest.approx(value, abs=1e-12)
    said = [{"role": "assistant", "content": text}]
    assert pay(reward, said, tokens) == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize("tokens", [0, 1, 20, 50, 99])
def test_every_wrong_answer_is_below_every_right_one(reward, tokens):
    """In one copy of it each answer counted as right."""
    assert pay(reward, WRONG, tokens) < pay(reward, RIGHT, 99) < pay(reward, RIGHT, 0)


def test_right_answers_fall_and_wrong_ones_rise_with_their_length(reward):
    """In others minimum and maximum of wrong answers were swapped: short wrong answers paid best."""
    right = [pay(reward, RIGHT, tokens) for tokens in range(100)]
    wrong = [pay(reward, WRONG, tokens) for tokens in range(100)]
    assert right == sorted(right, reverse=True)
    assert wrong == sorted(wrong)
    assert wrong[0] < wrong[10] < wrong[90]
    with pytest.raises(PosttrainError, match="wrong_at_0"):
        pay(reward, WRONG, 5, wrong_at_0=-0.5, wrong_at_max=-1.0)


@pytest.mark.parametrize("text", [RIGHT, WRONG])
def test_nothing_is_won_past_the_limit(reward, text):
    """The cosine itself would rise again there; and where lengths were characters, most texts were there."""
    assert {pay(reward, text, tokens) for tokens in (100, 101, 150, 200, 300)} == {-10.0}
    long_text = "word " * 500 + "\n" + text
    assert pay(reward, long_text, 50) == pytest.approx(1.5 if text == RIGHT else -5.0)


def test_values_and_form_of_ones_own(reward):
    args = {
        "correct_at_0": 1.0,
        "correct_at_max": 0.5,
        "wrong_at_0": -1.0,
        "wrong_at_max": -0.5,
        "exceed": -2.0,
    }
    assert pay(reward, "\\boxed{12}", 50, form="boxed", **args) == pytest.approx(0.75)
    assert pay(reward, "12", 50, form="boxed", **args) == pytest.approx(-0.75)
    assert pay(reward, "\\boxed{12}", 100, form="boxed", **args) == -2.0


def test_none_without_a_gold_answer(reward):
    assert pay(reward, RIGHT, 5, answer=[None]) is None


def test_a_limit_that_makes_no_sense_is_refused(reward):
    with pytest.raises(PosttrainError, match="max_tokens"):
        pay(reward, RIGHT, 5, max_tokens=0)

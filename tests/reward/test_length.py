"""Kimi k1.5's length reward, against its equation by hand."""

import pytest

RIGHT, WRONG = "The answer is: 12", "The answer is: 13"


def pay(reward, rows, **args):
    """rows: (prompt, text, tokens, gold)"""
    prompts, texts, tokens, gold = map(list, zip(*rows, strict=True))
    ids = [[7] * n for n in tokens]
    return reward(texts, prompts=prompts, completion_ids=ids, answer=gold, **args)


def test_the_equation(reward):
    rows = [("?", text, tokens, "12") for text in (RIGHT, WRONG) for tokens in (10, 20, 30, 40, 50)]
    assert pay(reward, rows) == [0.5, 0.25, 0.0, -0.25, -0.5, 0.0, 0.0, 0.0, -0.25, -0.5]


@pytest.mark.parametrize(
    "prompts", [("a?", "b?"), ([{"role": "user", "content": "a?"}], [{"role": "user", "content": "乙?"}])]
)
def test_each_prompt_has_its_own_range_wherever_its_rows_stand(reward, prompts):
    a, b = prompts
    rows = [(a, RIGHT, 10, "12"), (b, RIGHT, 1000, "12"), (a, RIGHT, 20, "12"), (b, WRONG, 2000, "12")]
    assert pay(reward, rows) == [0.5, 0.5, -0.5, -0.5]


def test_equal_lengths_and_a_row_alone_are_worth_nothing(reward):
    assert pay(reward, [("?", RIGHT, 10, "12"), ("?", WRONG, 10, "12")]) == [0.0, 0.0]
    assert pay(reward, [("?", RIGHT, 10, "12")]) == [0.0]
    assert pay(reward, [("?", "", 0, "12"), ("?", "{", 0, "12")]) == [0.0, 0.0]


def test_a_short_wrong_answer_gains_nothing(reward):
    rows = [("?", "", 0, "12"), ("?", WRONG, 1, "12"), ("?", RIGHT, 100, "12")]
    assert pay(reward, rows) == [0.0, 0.0, -0.5]


def test_form_and_none_without_a_gold_answer(reward):
    rows = [
        ("?", "\\boxed{12}", 10, "12"),
        ("?", "12", 20, "12"),
        ("!", RIGHT, 10, None),
        ("!", RIGHT, 90, None),
    ]
    assert pay(reward, rows, form="boxed") == [0.5, -0.5, None, None]

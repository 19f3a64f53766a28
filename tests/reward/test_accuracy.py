"""The accuracy reward: gold answers score full, and what is not an answer scores nothing."""

import pytest

ECHO = "What is 3 + 4 + 5?\nFinish with a line 'The answer is: N'."


@pytest.mark.parametrize(
    "gold", ["12", "-3", "0.5", "3/4", "1,234", "50%", "$12", "12 apples", "Paris", "x^2 + 1"]
)
@pytest.mark.parametrize(
    ("form", "layout"),
    [
        ("the_answer_is", "some work\nThe answer is: {}"),
        ("boxed", "so $\\boxed{{{}}}$."),
        ("answer_tag", "<think>work</think><answer>{}</answer>"),
        ("hashes", "some work\n#### {}"),
    ],
)
def test_gold_answers_score_full(reward, gold, form, layout):
    assert reward([layout.format(gold)], answer=[gold], form=form) == [1.0]


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "{", "}", "12", "The answer is 12", "The answer is:", "The answer is: N", ECHO,
        "The answer is: 3 + 4 + 5", "The answer is: 12 or 13", "The answer is: 1" + "0" * 10**7, "9" * 10**7,
        "The answer is: 9**9**9", "The answer is: 1e999999999", "The answer is: 12\nNo, wait.",
        "The answer is: 12x", "The answer is: -12", "\\boxed{12}", "The answer is: \\frac{24}{2}",
    ],
)  # fmt: skip
def test_false_positives(reward, text):
    assert reward([text], answer=["12"]) == [0.0]


@pytest.mark.parametrize("form", ["the_answer_is", "boxed", "answer_tag", "hashes", "last_number"])
def test_empty_texts_score_nothing_in_any_form(reward, form):
    assert (
        reward(["", "{", "\\boxed{}", "<answer></answer>", "####"], answer=["12"] * 5, form=form) == [0.0] * 5
    )


def test_none_without_a_gold_answer(reward):
    assert reward(["The answer is: 4"] * 2, answer=[None, "4"]) == [None, 1.0]


def test_messages_and_whole_solutions(reward):
    said = [{"role": "assistant", "content": "20 ÷ 2 = 10\n答案:\nThe answer is: 10 元"}]
    assert reward([said], answer=["20 / 2 = <<20/2=10>>10\n#### 10"], prompts=["?"]) == [1.0]
    assert reward([said], answer=[10]) == [1.0]


def test_loose_pays_for_a_right_answer_in_another_form(reward):
    completions = ["The answer is: 12", "So she has 12.", "So she has 13.", "I do not know"]
    assert reward(completions, answer=["12"] * 4, loose=0.5) == [1.0, 0.5, 0.0, 0.0]
    assert reward(completions, answer=["12"] * 4) == [1.0, 0.0, 0.0, 0.0]

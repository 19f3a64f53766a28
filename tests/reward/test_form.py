"""The form reward: right or wrong, the completion has to end in the form."""

import pytest


@pytest.mark.parametrize(
    ("text", "form", "value"),
    [
        ("work\nThe answer is: 7", "the_answer_is", 1.0),
        ("work\nThe answer is: wrong", "the_answer_is", 1.0),
        ("The answer is: 7\nmore", "the_answer_is", 0.0),
        ("The answer is: " + "long " * 100, "the_answer_is", 0.0),
        ("so $\\boxed{7}$.", "boxed", 1.0),
        ("\\boxed{7} is it, said she", "boxed", 0.0),
        ("<answer>7</answer>", "answer_tag", 1.0),
        ("#### 7", "hashes", 1.0),
        ("", "the_answer_is", 0.0),
        ("9" * 10**7, "the_answer_is", 0.0),
    ],
)
def test_form(reward, text, form, value):
    assert reward([text], form=form, prompts=["?"]) == [value]
    assert reward([[{"role": "assistant", "content": text}]], form=form) == [value]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3 + 4 = 7\nThe answer is: 7", 1.0),
        ("3 + 4 = 7\nThe answer is: 8", 1.0),
        ("3 + 4 = 8\nThe answer is: 8", 0.0),  # the step does not hold
        ("The answer is: 3 + 4 = 7", 0.0),  # … or comes after the answer has begun
        ("The answer is: 7", 0.0),
        ("3 + 4 = 7", 0.0),
    ],
)
def test_worked_asks_for_a_step_that_holds(reward, text, value):
    assert reward([text], worked=True) == [value]

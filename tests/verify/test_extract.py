"""What is found as the answer of a text, in each form, and that nothing odd is slow or found by accident."""

import time

import pytest

from posttrain.types import PosttrainError
from posttrain.verify import FORMS, ends_in_form, extract, gold_of, text_of, working


@pytest.mark.parametrize(
    ("form", "text", "answer"),
    [
        ("the_answer_is", "3 + 4 = 7\nThe answer is: 7", "7"),
        ("the_answer_is", "The answer is: 7\n\n  ", "7"),
        ("the_answer_is", "**The final answer is: $12**", "$12"),
        ("the_answer_is", "the answer is: $\\boxed{\\frac{1}{2}}$.", "\\frac{1}{2}"),
        ("the_answer_is", "The answer is: 北京", "北京"),
        ("the_answer_is", "The answer is: -3\r\n", "-3"),
        ("the_answer_is", "The answer is 7", None),  # the asked-for form has a colon
        ("the_answer_is", "The answer is: 7\nor is it", None),
        ("the_answer_is", "So The answer is: 7", None),  # a line of its own
        ("the_answer_is", "The answer is:", None),
        ("the_answer_is", "Finish with a line 'The answer is: N'.", None),  # the prompt, echoed
        ("the_answer_is", "", None),
        ("hashes", "48 / 2 = 24\n#### 1,024", "1,024"),
        ("hashes", "#### 7\nmore", None),
        ("boxed", "so \\boxed{7}", "7"),
        ("boxed", "\\boxed{7} or \\boxed{8}", "8"),
        ("boxed", "\\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
        ("boxed", "\\boxed{\\boxed{5}}", "5"),
        ("boxed", "\\boxed {\\{1, 2\\}}", "\\{1, 2\\}"),
        ("boxed", "\\boxed{7", None),
        ("boxed", "\\boxed{", None),
        ("boxed", "} \\boxed{5} {", "5"),
        ("boxed", "\\boxed{ }", None),
        ("answer_tag", "<think>2+2</think>\n<answer> 4 </answer>", "4"),
        ("answer_tag", "<answer>3</answer> no: <answer>4</answer>", "4"),
        ("answer_tag", "<answer>\\boxed{4}</answer>", "4"),
        ("answer_tag", "<answer>4", None),
        ("answer_tag", "</answer><answer>", None),
        # Within a box or a tag, the words "the answer is" are no part of the answer.
        ("boxed", "\\boxed{The answer is 5 apples}", "5 apples"),
        ("boxed", "\\boxed{\\text{The final answer is } \\frac12}", "\\frac12"),
        ("boxed", "\\boxed{The answer is not 5}", "The answer is not 5"),
        ("answer_tag", "<answer>Answer: B</answer>", "B"),
        # What is still being thought is no answer, nor is what was thought: it may have been dropped.
        ("boxed", "<think>is it \\boxed{7}?</think> It is \\boxed{8}.", "8"),
        ("boxed", "<think>is it \\boxed{7}?</think> It is 8.", None),
        ("boxed", "is it \\boxed{7}?</think> It is 8.", None),  # chat templates open the thought themselves
        ("boxed", "<think>so \\boxed{7}", None),
        ("boxed", "\\boxed{6} <think>or \\boxed{7}", "6"),
        ("answer_tag", "<think><answer>7</answer>", None),
        ("the_answer_is", "<think>\nThe answer is: 7", None),
        ("the_answer_is", "<think>7?</think>\nThe answer is: 7", "7"),
        ("hashes", "<think>\n#### 7", None),
        ("last_number", "<think>so 7", "7"),  # the lenient form
        ("any", "\\boxed{7}, no, <answer>8</answer>", "8"),
        ("any", "<answer>8</answer>, no: \\boxed{7}", "7"),
        ("any", "\\boxed{7}\nThe answer is: 8", "8"),
        ("any", "<answer>\\boxed{7}</answer>", "7"),
        ("any", "\\boxed{7}\n#### 9", "9"),
        ("any", "So the answer is 7, I think.", "7, I think"),
        ("any", "The answer is 6. Wait, the answer is 7.", "7"),
        ("any", "The answer is **(B)** because A is too large.", "(B)"),
        ("any", "Answer: B. Paris\nas I said", "B"),
        ("any", "**Answer:** 3.14", "3.14"),
        ("any", "\\boxed{7}. The answer is clear.", "7"),  # a form counts for more than a sentence
        ("any", "<think>\\boxed{7}</think>", None),
        ("any", "12", None),
        ("last_number", "She has 3 apples and 12 pears.", "12"),
        ("last_number", "It costs $1,234.50.", "$1,234.50"),
        ("last_number", "x is -3.", "-3"),
        ("last_number", "between 5-7", "7"),
        ("last_number", "3/4.", "3/4"),
        ("last_number", "-\\frac{3}{4}", "-\\frac{3}{4}"),
        ("last_number", "it is 50%", "50%"),
        ("last_number", "答案是42。", "42"),
        ("last_number", "Ответ: 42.", "42"),
        ("last_number", "the area is 12 m2", "12"),
        ("last_number", "the area is 12 cm^2", "12"),
        ("last_number", "1e999999999", None),  # not 1, not 999999999
        ("last_number", "none at all", None),
        ("last_number", "{", None),
    ],
)
def test_extract(form, text, answer):
    assert extract(text, form) == answer


def test_an_unknown_form_names_the_nearest():
    with pytest.raises(PosttrainError, match="Did you mean 'boxed'"):
        extract("7", "boxd")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "text",
    [
        "9" * 10**7,
        "\\boxed{" * 10**6,
        "<answer>" * 10**6,
        "The answer is: " * 10**6,
        "1," * 10**6,
        "{" * 10**6,
    ],
)
def test_huge_texts_are_quick_and_hold_no_answer(form, text):
    start = time.process_time()
    answer = extract(text, form)
    assert time.process_time() - start < 1
    assert answer is None or len(answer) < 10


@pytest.mark.parametrize("form", FORMS)
def test_an_answer_far_into_a_long_text_is_found(form):
    text = (
        "word 1\n" * 100_000
        + {
            "the_answer_is": "The answer is: 7",
            "boxed": "\\boxed{7}",
            "answer_tag": "<answer>7</answer>",
            "hashes": "#### 7",
            "any": "so \\boxed{7}",
            "last_number": "7",
        }[form]
    )
    assert extract(text, form) == "7"
    assert ends_in_form(text, form)


def test_ends_in_form():
    assert ends_in_form("so \\(\\boxed{7}\\).", "boxed")
    assert not ends_in_form("so \\boxed{7} apples, then more", "boxed")
    assert ends_in_form("<answer>7</answer>\n", "answer_tag")
    assert not ends_in_form("<answer>7</answer> bye", "answer_tag")
    assert not ends_in_form("", "boxed")


def test_working_is_the_text_before_the_final_answer():
    assert working("3 + 4 = 7\nThe answer is: 7") == "3 + 4 = 7\n"
    assert working("a <answer>\\boxed{7}</answer>") == "a "
    assert working("no answer") == "no answer"
    assert working("The answer is: 7") == ""


def test_gold_answers_come_bare_or_at_the_end_of_a_solution():
    assert gold_of("48 / 2 = <<48/2=24>>24\n#### 72") == "72"
    assert gold_of("Thus $x = \\boxed{\\frac{1}{2}}$.") == "\\frac{1}{2}"
    assert gold_of(" 12 ") == "12"
    assert gold_of(12) == "12"
    assert gold_of({"a": [1, None]}) == '{"a": [1, null]}'


def test_text_of_takes_both_of_trls_shapes():
    assert text_of("plain") == "plain"
    assert text_of([{"role": "assistant", "content": "said"}]) == "said"
    assert text_of([{"role": "assistant", "content": [{"type": "text", "text": "in parts"}]}]) == "in parts"
    turns = [
        {"role": "assistant", "content": "a"},
        {"role": "tool", "content": "7"},
        {"role": "assistant", "content": "b"},
    ]
    assert text_of(turns) == "a\nb"
    assert text_of([]) == ""
    assert text_of([{"role": "assistant", "content": None}]) == ""

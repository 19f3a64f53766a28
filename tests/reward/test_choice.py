"""The choice reward: every way to write a letter, and none to write two."""

import pytest

from posttrain.types import PosttrainError


@pytest.mark.parametrize(
    "text",
    [
        "B", "(B)", "B)", "B.", "[B]", "b", "(b)", " B \n", "**B**", "B. Paris", "(B) Paris", "B) A dog",
        "B: Paris",
        "B. Vitamin D", "(B) I think so", "Answer: B", "answer: (B)", "The answer is B.", "The answer is: B",
        "The correct answer is (B) Paris.", "**Answer:** B", "The correct option is B", "Final answer: **B**",
        "work\nmore work\nAnswer: B", "A looks right.\nAnswer: B", "\\boxed{B}", "so $\\boxed{\\text{B}}$.",
        "\\boxed{(B)}", "\\boxed{B. Paris}", "<think>A?</think><answer>B</answer>",
        "<answer>(B) Paris</answer>",
        "<think>A</think>\nB", "答案：B", "答案是 B。", "正确答案为（B）",
        "Ответ: B", "Réponse : B", "정답: B", "答え：B",
        "The answer is B, because it is the capital.", "\\boxed{A} no, \\boxed{B}", "Answer: B. It's B.",
    ],
)  # fmt: skip
def test_the_right_letter(reward, text):
    assert reward([text], answer=["B"]) == [1.0]
    assert reward([[{"role": "assistant", "content": text}]], answer=["(b)"]) == [1.0]
    assert reward([text], answer=["C"]) == [0.0]


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "{", "A", "(A)", "A or B", "B or A", "A, B", "B, A", "A/B", "(A) (B)", "(B) (C)", "B) C)",
        "B. C. D.",
        "A B C D", "ABCD", "Answer: A or B", "Answer: B and C", "Answer: not B",
        "Answer: B is wrong, it is C",
        "Answer: B, no, C", "Answer: (B) or (C)", "Answer: B or maybe A.", "答案：A 或 B", "\\boxed{A, B}",
        "\\boxed{AB}", "\\boxed{B} no, \\boxed{A}", "<answer>B</answer><answer>A</answer>",
        "<answer></answer>",
        "<think>B</think>", "<think>The answer is B</think>", "Answer: B\nNo, wait, it is A.",
        "Both are right.",
        "Bad", "Because", "b is a letter", "Answer:", "Answer: Paris", "B" * 10**6, "(" * 10**6,
        "Answer: " * 10**5,
        "A. Paris\nB. Rome\nC. Berlin\nWhich one?", "The answer is either (A) or (B).",
        "Answer: B" + " x" * 400,
        "answer:B answer:" * 10**4, "Ｂ", "В",  # a wide letter, and a Cyrillic one
    ],
)  # fmt: skip
def test_no_letter_a_wrong_one_or_several(reward, text):
    assert reward([text], answer=["B"]) == [0.0]


def test_words_that_are_letters(reward):
    assert reward(["A dog", "I think so", "Answer: A because I saw it"], answer=["A", "I", "A"]) == [
        0.0,
        0.0,
        1.0,
    ]


def test_gold(reward):
    assert reward(["B", "B"], answer=[None, "b."]) == [None, 1.0]
    with pytest.raises(PosttrainError, match="not a letter"):
        reward(["B"], answer=["Paris"])

"""Worked steps: which are found, whether they hold, and that padding and nonsense are none."""

import time
from fractions import Fraction

import pytest

from posttrain.verify import has_step
from posttrain.verify.equations import Equation, equations, numbers


def found(text):
    return [(equation.stated, equation.holds) for equation in equations(text)]


@pytest.mark.parametrize(
    ("text", "stated"),
    [
        ("3 + 4 = 7", 7), ("so 3+4=7.", 7), ("12*2 = 24", 24), ("5 × 6 = 30", 30), ("5x6=30", 30),
        ("5 x 6 = 30", 30),
        ("7 - 2 + 1 = 6", 6), ("7 − 2 = 5", 5), ("2 + 3 * 4 = 14", 14), ("(2 + 3) * 4 = 20", 20),
        ("8 ÷ 2 = 4", 4),
        ("2^3 = 8", 8), ("10 - -3 = 13", 13), ("10 - (-3) = 13", 13), ("-3 + 4 = 1", 1), ("7 = 3 + 4", 7),
        ("$3 + $4 = $7.00", 7), ("1,234 + 1 = 1,235.", 1235), ("0.5 * 3 = 1.5", Fraction(3, 2)),
        ("20% * 50 = 10", 10), ("10 / 3 = 3.33", Fraction(333, 100)), ("3 apples + 4 apples = 7 apples", 7),
        ("\\(3 \\times 4 = 12\\)", 12), ("\\frac{1}{2} + \\frac{1}{4} = \\frac{3}{4}", Fraction(3, 4)),
        ("- 3 + 4 = 7", 7), ("* 3 + 4 = 7", 7), ("1. 3 + 4 = 7", 7), ("1) 3 + 4 = 7", 7),
        ("**3 + 4 = 7**", 7),
        ("3+4=<<3+4=7>>7", 7), ("in 2019, 3 + 4 = 7", 7), ("答案是3 + 4 = 7。", 7), ("3 + 4 = 7 - done", 7),
    ],
)  # fmt: skip
def test_steps_that_hold(text, stated):
    assert found(text) == [(stated, True)]
    assert has_step(text)


@pytest.mark.parametrize(
    "text", ["3 + 4 = 8", "12 * 2 = 42", "10 / 3 = 3", "10 / 3 = 3.34", "3 + 4 = 70", "7 = 3 + 5"]
)
def test_steps_that_do_not_hold(text):
    assert [holds for _, holds in found(text)] == [False]
    assert not has_step(text)


@pytest.mark.parametrize(
    "text",
    [
        "", "=", "7 = 7", "1 + 0 = 1", "0 + 7 = 7", "7 - 0 = 7", "7 * 1 = 7", "7 / 1 = 7", "0 * 9 = 0",
        "1^5 = 1",
        "x + 3 = 7", "2x - 3 = 7", "2x + 3 + 4 = 7", "f(2) + 3 = 5", "3 + 4 == 7", "3 + 4 >= 7", "3 + 4 != 7",
        "4 / 0 = 0", "9**9**9 = 3", "9^99 + 4 = 7", "3 + 4\n= 7", "2 = two", "5 + 5 = 1e1", "1.2.3 + 4 = 7",
        "12345678901234567890 + 1 = 12345678901234567891", "((((( = )))))", "+ = +", "3 + = 3",
    ],
)  # fmt: skip
def test_no_steps(text):
    assert found(text) == []


def test_a_repeated_step_counts_once():
    text = "3 + 4 = 7\n4 + 3 = 7, 3.0 + 4 = 7\n3 + 4 + 0 = 7\n7 = 3 + 4\n" * 50
    assert equations(text) == [Equation((Fraction(3), Fraction(4)), Fraction(7), Fraction(7), True)]
    assert found("3 + 4 = 7, 3 + 4 = 8") == [(7, True), (8, False)]


def test_a_running_sum_is_read_link_by_link():
    assert found("3 + 4 = 7 = 2 + 5") == [(7, True), (7, True)]
    assert found("3 + 4 = 7 + 2 = 9") == [(9, True)]  # 3 + 4 is not 7 + 2


def test_the_final_answer_is_no_step():
    assert not has_step("The answer is: 3 + 4 = 7")
    assert has_step("3 + 4 = 7\nThe answer is: 7")


@pytest.mark.parametrize(
    "text",
    ["= " * 10**5, "1+" * 10**6 + "1=2", "9" * 10**7, "(" * 10**6 + "=", "3 + 4 = 8\n" * 10**5,
    "- " * 10**6 + "=5",
     "1 =" * 10**6, "-" * 10**6 + "1 = 1", "9 apples " * 10**5 + "= 9"],
)  # fmt: skip
def test_huge_texts_are_quick(text):
    start = time.monotonic()
    assert not has_step(text)
    assert time.monotonic() - start < 1.5


def test_numbers():
    assert numbers("3 apples, 1,234.5 for $12; 10% of -4") == {
        Fraction(3), Fraction(2469, 2), Fraction(12), Fraction(1, 10), Fraction(4)
    }  # fmt: skip
    assert numbers("none") == set()

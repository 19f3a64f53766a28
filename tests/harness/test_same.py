"""Which answers vote together."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from posttrain.harness.same import SPEC, groups
from posttrain.rewards import Rewards


@pytest.fixture(scope="module")
def judge() -> Iterator[Rewards]:
    with Rewards([SPEC], deadline=5.0) as rewards:
        yield rewards


@pytest.mark.parametrize(
    ("samples", "numbers"),
    [
        ([], []),
        ([(None, False), (None, None)], [None, None]),
        ([("1/2", True), ("0.5", True), ("7", False)], [0, 0, 1]),
        # A verdict decides before a comparison: an answer that was judged wrong never joins the right ones.
        ([("0.5", False), ("0.5", True)], [0, 1]),
        ([("3", False), ("x+1", False), ("3.0", False), ("1+x", False), (None, False)], [0, 1, 0, 1, None]),
        ([("Grüße", False), ("grüße", False), ("三", False)], [0, 0, 1]),
        ([("\\frac{2}{4}", False), ("1/2", False), ("50\\%", False)], [0, 0, 0]),
        ([("", False), ("", False)], [0, 0]),
    ],
)
def test_answers_vote_together_as_the_verifier_sees_them(samples, numbers, judge: Rewards) -> None:
    assert groups([samples], judge) == [numbers]


def test_questions_do_not_mix_and_many_answers_end(judge: Rewards) -> None:
    many = [(str(n % 90), False) for n in range(180)]
    found = groups([many, [("5", False), ("5.0", False)]], judge)
    assert found[1] == [0, 0]
    assert found[0] == [*range(90), *range(90)]


def test_an_answer_that_cannot_be_compared_stands_alone(judge: Rewards) -> None:
    hostile = "9**9**9**9+" * 50 + "1"
    assert groups([[(hostile, False), ("3", False), ("3.0", False)]], judge) == [[0, 1, 1]]

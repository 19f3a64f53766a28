"""From verdicts to numbers, on cases small enough to count by hand."""

from __future__ import annotations

from typing import Any

import pytest

from posttrain.harness import facts
from posttrain.harness.answer import Answer
from posttrain.harness.judge import NO_ANSWER


def verdict(
    id: str, sample: int, right: bool | None, group: int | None = None, **more: Any
) -> dict[str, Any]:
    value = None if right is None else float(right)
    made = {"id": id, "sample": sample, "value": value, "right": right, "group": group}
    return made | {"extracted": None, "span": None, "failure": None} | more


def given(*rights: str) -> dict[str, list[dict[str, Any]]]:
    """Questions of a letter a sample: "Rab" is a right answer and two different wrong ones; "-" is none."""
    return {
        str(q): [verdict(str(q), i, c == "R", None if c == "-" else ord(c)) for i, c in enumerate(rights)]
        for q, rights in enumerate(rights)
    }


def test_the_metrics_of_four_samples() -> None:
    found = facts.metrics(given("RRRR", "Raab", "Rabc", "----"), 4, "cons@3")
    value = {name: metric["value"] for name, metric in found.items()}
    assert value["avg@4"] == pytest.approx((1 + 0.25 + 0.25 + 0) / 4)
    assert value["pass@4"] == pytest.approx(3 / 4)
    assert value["pass@2"] == pytest.approx((1 + 0.5 + 0.5 + 0) / 4)
    assert value["cons@4"] == pytest.approx((1 + 0 + 0.25 + 0) / 4)  # the tie of four is broken by chance
    assert value["g_pass@4_0.5"] == pytest.approx(1 / 4) == value["g_pass@4_1.0"]
    # Raab in threes: Rab twice, a third each; Raa and aab go to a.  Rabc: abc is 0, the others a third each
    assert value["cons@3"] == pytest.approx((1 + (2 / 3) / 4 + (3 / 3) / 4 + 0) / 4)
    assert all(metric["n"] == 4 for metric in found.values())


def test_one_sample_is_an_accuracy() -> None:
    found = facts.metrics(given("R", "a", "a", "a"), 1, "pass@1")
    assert list(found) == ["accuracy", "pass@1"]
    assert found["accuracy"] == found["pass@1"] and found["accuracy"]["value"] == 0.25
    assert facts.metrics({}, 1, "accuracy") == {}


def test_failed_requests_are_neither_right_nor_wrong() -> None:
    verdicts = [verdict("a", 0, True, 0), verdict("a", 1, None), verdict("b", 0, None), verdict("b", 1, None)]
    questions = facts.by_question(verdicts)
    assert list(questions) == ["a"] and facts.shares(questions) == [1.0]
    found = facts.metrics(questions, 2, "avg@2")
    assert found["avg@2"]["n"] == 1 and "pass@2" not in found  # no question has two samples


def test_what_more_tokens_bring() -> None:
    questions = given("Ra", "RR")
    answers = [
        Answer(q, i, "", n, "stop") for q, i, n in (("0", 0, 20), ("0", 1, 5), ("1", 0, 40), ("1", 1, 200))
    ]
    found = facts.metrics(questions, 2, "avg@2")
    curves = facts.curves(found, questions, answers, 2)
    assert [(at["tokens"], at["accuracy"]) for at in curves["budget"]] == [
        (32, 0.25), (64, 0.5), (128, 0.5), (256, 0.75)
    ]  # fmt: skip
    assert curves["k"] == [{"k": 1, "pass": 0.75, "cons": 0.75}, {"k": 2, "pass": 1.0, "cons": 0.75}]
    untold = [Answer(answer.id, answer.sample, "", None, "stop") for answer in answers]
    assert facts.curves(found, questions, untold, 2)["budget"] == []


def test_the_best_by_a_reward() -> None:
    questions = {"0": [verdict("0", i, i == 1, score=score) for i, score in enumerate((0.2, 0.9, None))]}
    found = facts.metrics(questions, 3, "best_of@2")
    assert found["best_of@3"]["value"] == 1.0
    assert found["best_of@2"]["value"] == pytest.approx(2 / 3)  # of the three pairs two hold the best


def test_each_reason_for_doubt_is_said() -> None:
    answers = [
        Answer("a", 0, "x", 9, "length"),
        Answer("a", 1, "x", 3, "stop"),
        Answer("b", 0, "", None, "error", "503"),
    ]
    verdicts = [
        verdict("a", 0, False, failure=NO_ANSWER),
        verdict("a", 1, False, failure="took longer than 10 s"),
        verdict("b", 0, None, failure="request failed: 503"),
    ]
    found = facts.facts(verdicts, answers)
    assert (found["truncated"], found["no_answer"], found["failed"]) == (0.5, 0.5, 1)
    assert (found["verifier_failed"], found["not_judged"], found["mean_tokens"]) == (1, 0, 6.0)
    assert found["finish"] == {"stop": 1, "length": 1, "error": 1}
    assert found["accuracy_if_complete"]["n"] == 1
    told = facts.warnings(found, questions=1, of=2, data="mine.jsonl", limit=5)
    for word in (
        "cut off",
        "no answer",
        "failed after",
        "verifier failed",
        "1 of 2",
        "tell little",
        "mine.jsonl",
    ):
        assert any(word in one for one in told), word
    assert len(told) == 8 and all(one.endswith(".") for one in told)


def test_nothing_to_doubt() -> None:
    answers = [Answer(str(q), 0, "x", 3, "stop") for q in range(30)]
    verdicts = [verdict(str(q), 0, q > 3) for q in range(30)]
    found = facts.facts(verdicts, answers)
    assert facts.warnings(found, questions=30, of=30, data=None, limit=None) == []
    assert facts.facts([], [])["accuracy_if_complete"] is None

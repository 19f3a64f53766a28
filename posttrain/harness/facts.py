"""From verdicts to numbers: a task's metrics with their intervals, and all that makes a number unsafe."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from posttrain.harness.answer import Answer
from posttrain.harness.estimators import best_of_k, cons_at_k, g_pass_at_k, pass_at_k
from posttrain.harness.intervals import average
from posttrain.harness.judge import NO_ANSWER, Verdict

UNSAFE = 0.05  # a share of answers cut off, or without an answer, above which a number is called unsafe
FEW = 30  # questions; with fewer, an interval is wide whatever it says
TAUS = (0.5, 1.0)  # of G-Pass@k
SMALLEST = 32  # tokens: where the curve over budgets begins
Metric = dict[str, Any]
Samples = Mapping[str, Sequence[Verdict]]  # the verdicts of each question


def by_question(verdicts: Sequence[Verdict]) -> dict[str, list[Verdict]]:
    """The samples of each question that have a verdict: no failed request, no rule that does not apply."""
    found: dict[str, list[Verdict]] = {}
    for verdict in sorted(verdicts, key=lambda v: v["sample"]):
        if verdict["right"] is not None:
            found.setdefault(verdict["id"], []).append(verdict)
    return found


def shares(questions: Samples) -> list[float]:
    """The share of right answers to each question."""
    return [_rights(given) / len(given) for given in questions.values()]


def metrics(questions: Samples, asked: int, main: str) -> dict[str, Metric]:
    """Each metric: {"value", "ci95", "n": questions}; empty without any verdict.

    Args:
        questions: as `by_question` gives them. asked: samples a question that were asked for. main: the
            task's main metric, as its YAML names it: accuracy; avg, pass, cons or best_of@k; g_pass@k_tau.

    A metric at k counts the questions that have k samples or more.
    """
    if not questions:
        return {}
    grouped = any(v["group"] is not None for given in questions.values() for v in given)
    names = [mean_of(asked)]
    for k in powers(asked):
        names += [f"pass@{k}", *([f"cons@{k}"] if grouped else [])]
    if any("score" in v for given in questions.values() for v in given):
        names += [f"best_of@{k}" for k in powers(asked)]
    names += [f"g_pass@{asked}_{tau}" for tau in TAUS if asked > 1]
    found: dict[str, Metric] = {}
    for name in dict.fromkeys([*names, main]):
        k, of = _metric(name)
        if deep := [given for given in questions.values() if len(given) >= k]:
            found[name] = average([of(given) for given in deep])
    return found


def mean_of(asked: int) -> str:
    """What the share of right answers is called when so many are asked for."""
    return "accuracy" if asked == 1 else f"avg@{asked}"


def _metric(name: str) -> tuple[int, Callable[[Sequence[Verdict]], float]]:
    """How many samples of a question a metric needs, and its value for one question."""
    kind, _, rest = name.partition("@")
    k, _, tau = rest.partition("_")
    if kind in ("accuracy", "avg"):
        return 1, lambda given: _rights(given) / len(given)
    if kind == "pass":
        return int(k), lambda given: pass_at_k(len(given), _rights(given), int(k))
    if kind == "g_pass":
        return int(k), lambda given: g_pass_at_k(len(given), _rights(given), int(k), float(tau))
    if kind == "best_of":
        return int(k), lambda given: best_of_k([_score(v) for v in given], _right(given), int(k))
    groups = lambda given: [v["group"] for v in given]  # noqa: E731
    return int(k), lambda given: cons_at_k(groups(given), _right(given), int(k))


def curves(
    found: Mapping[str, Metric], questions: Samples, answers: Sequence[Answer], asked: int
) -> dict[str, list[dict[str, Any]]]:
    """What more samples and more tokens bring: "k": pass and cons at k; "budget": accuracy at most tokens.

    At a budget, an answer counts as right if it is right and took no more tokens.

    Args:
        found: as `metrics` gives it, with the same `questions` and `asked`.
    """
    value = lambda name: found.get(name, {}).get("value")  # noqa: E731
    by_k = [
        {"k": k, "pass": value(f"pass@{k}"), "cons": value(f"cons@{k}")}
        for k in powers(asked)
        if f"pass@{k}" in found
    ]
    if by_k:  # one sample passes, and wins its own vote, as often as it is right
        by_k.insert(0, {"k": 1, "pass": value(mean_of(asked)), "cons": value(mean_of(asked))})
    tokens = {answer.key: answer.tokens for answer in answers}
    judged = [(v["right"], tokens[v["id"], v["sample"]]) for given in questions.values() for v in given]
    known = [(right, count) for right, count in judged if count is not None]
    most = max((count for _, count in known), default=0)
    budgets = [SMALLEST << i for i in range(max(0, (most - 1) // SMALLEST).bit_length() + 1)] if known else []
    by_budget = [
        {"tokens": budget, "accuracy": sum(right and count <= budget for right, count in known) / len(known)}
        for budget in budgets
    ]
    return {"k": by_k, "budget": by_budget}


def facts(verdicts: Sequence[Verdict], answers: Sequence[Answer]) -> dict[str, Any]:
    """How the answers ended, and what of them could be read."""
    finish = Counter(answer.finish for answer in answers)
    ended = [answer for answer in answers if answer.finish != "error"]
    complete = {answer.key for answer in answers if answer.finish == "stop"}
    judged = by_question([v for v in verdicts if (v["id"], v["sample"]) in complete])
    counts = [answer.tokens for answer in ended if answer.tokens is not None]
    unread = sum(v["failure"] == NO_ANSWER for v in verdicts)
    return {
        "truncated": finish["length"] / len(ended) if ended else 0.0,
        "no_answer": unread / len(ended) if ended else 0.0,
        "failed": finish["error"],
        "not_judged": sum(v["right"] is None for v in verdicts) - finish["error"],
        "verifier_failed": sum(
            v["right"] is False and v["failure"] not in (None, NO_ANSWER) for v in verdicts
        ),
        "finish": {name: finish[name] for name in ("stop", "length", "error")},
        "accuracy_if_complete": average(shares(judged)) if judged else None,
        "mean_tokens": sum(counts) / len(counts) if counts else None,
    }


def warnings(
    found: Mapping[str, Any], *, questions: int, of: int, data: str | None, limit: int | None
) -> list[str]:
    """What makes a task's numbers unsafe, a sentence each.

    Args:
        found: as `facts` gives it. questions, of: with a verdict, and asked. data: a file that replaced the
            task's own; limit: the first questions only.
    """
    told = []
    if found["truncated"] > UNSAFE:
        told.append(
            f"{found['truncated']:.0%} of the answers were cut off at max_tokens: the number measures the "
            "limit as much as the model; raise sampling.max_tokens."
        )
    if found["no_answer"] > UNSAFE:
        told.append(
            f"In {found['no_answer']:.0%} of the answers no answer was found: the model may be right in "
            "another form; look at samples, and at verifier.args.form."
        )
    if found["failed"]:
        told.append(
            f"{found['failed']} requests failed after retries and are left out, neither right nor wrong; "
            "the same command tries them again."
        )
    if found["verifier_failed"]:
        told.append(
            f"The verifier failed on {found['verifier_failed']} answers, or ran out of time; they count as "
            "wrong."
        )
    if questions < of:
        told.append(f"{of - questions} of {of} questions have no verdict and are left out.")
    if questions < FEW:
        told.append(f"{questions} questions tell little: see how wide the interval is.")
    if data is not None:
        told.append(f"The questions are those of {data}, not the task's own.")
    if limit is not None:
        told.append(
            f"Only the first {limit} questions were asked: compare with whole runs of the task with care."
        )
    return told


def powers(most: int) -> list[int]:
    """2, 4 … and `most` itself; none for 1."""
    return sorted({1 << i for i in range(1, most.bit_length())} | {most}) if most > 1 else []


def _right(given: Sequence[Verdict]) -> list[bool]:
    return [bool(v["right"]) for v in given]


def _rights(given: Sequence[Verdict]) -> int:
    return sum(_right(given))


def _score(verdict: Verdict) -> float:
    """An answer without a score is picked last."""
    score = verdict.get("score")
    return -math.inf if score is None else score

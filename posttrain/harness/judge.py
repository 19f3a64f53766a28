"""Verdicts on answers: what the task's verifier says of each, what it read as the answer, which agree."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, Protocol

from posttrain.harness import same
from posttrain.harness.answer import Answer
from posttrain.rewards import Rewards, Spec
from posttrain.types import Completion, Prompt, Score
from posttrain.verify import Form
from posttrain.verify.extract import locate

RIGHT = 0.5  # a value above this counts as right
ROWS = 256  # answers judged at a time: one that hangs makes its batch be judged row by row
READS: dict[str, Form] = {
    "accuracy": "the_answer_is",
    "count": "the_answer_is",
    "reasoning_gym": "answer_tag",
}  # their form
NO_ANSWER = "no answer found"

Verdict = dict[str, Any]


class Scorer(Protocol):
    """`posttrain.rewards.Rewards`, or what stands in for it."""

    @property
    def names(self) -> Sequence[str]: ...

    def score(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[Score]: ...


def judge(
    prompts: Sequence[Prompt],
    answers: Sequence[Answer],
    verifier: Spec,
    *,
    picks: Spec | None = None,
    deadline: float,
    workers: int = 1,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[Verdict]:
    """-> a verdict an answer, in their order: "id", "sample", "value", "right", "extracted", "span",
    "failure", "group"; with `picks`, a reward that best-of-k picks by, its "score" too.

    A failed request has neither value nor verdict. An answer on which the verifier fails or runs out of time
    is not right, and says why. A value is None where the rule does not apply to the question.

    Raises:
        PosttrainError: the verifier cannot be found or loaded.
    """
    form: Form | None = verifier.args.get("form", READS.get(verifier.use))
    with ExitStack() as stack:
        rewards = stack.enter_context(Rewards([verifier], deadline, workers))
        compare = stack.enter_context(Rewards([same.SPEC], deadline))
        found = scores(rewards, prompts, answers, on_progress)
        verdicts = [verdict(*pair, rewards.names[0], form) for pair in zip(answers, found, strict=True)]
        _number(verdicts, compare)
        if picks is not None:
            scorer = stack.enter_context(Rewards([picks], deadline, workers))
            for made, score in zip(verdicts, scores(scorer, prompts, answers), strict=True):
                made["score"] = None if score is None else score.total
    return verdicts


def scores(
    rewards: Scorer,
    prompts: Sequence[Prompt],
    answers: Sequence[Answer],
    on_progress: Callable[[int, int], None] | None = None,
) -> list[Score | None]:
    """A score an answer, in their order, each to one of `prompts`; None for a failed request."""
    by_id = {prompt.id: prompt for prompt in prompts}
    found: list[Score | None] = []
    for at in range(0, len(answers), ROWS):
        owners, written, part = [], [], answers[at : at + ROWS]
        for answer in part:
            if answer.finish != "error":
                # Rewards that count tokens can: how many there were is known, not which.
                ids = [0] * (answer.tokens or 0)
                written.append(Completion(ids, [], answer.finish, answer.completion))
                owners.append(by_id[answer.id])
        given = iter(rewards.score(owners, written))
        found += [None if answer.finish == "error" else next(given) for answer in part]
        if on_progress is not None:
            on_progress(len(found), len(answers))
    return found


def verdict(answer: Answer, score: Score | None, name: str, form: Form | None = None) -> Verdict:
    """What the reward `name` says of an answer, as `judge` gives it; without a form nothing is extracted."""
    made: Verdict = {
        "id": answer.id, "sample": answer.sample, "value": None, "right": None, "extracted": None,
        "span": None, "failure": None, "group": None,
    }  # fmt: skip
    if score is None:
        return made | {"failure": f"request failed: {answer.error}"}
    value, failed = score.parts[name], score.failures.get(name)
    found = locate(answer.completion, form) if form else None
    if found is not None:
        made |= {"extracted": found.answer, "span": [found.start, found.end]}
    if failed is not None:
        return made | {"value": 0.0, "right": False, "failure": failed}
    if value is None:
        return made | {"failure": "the verifier does not apply to this question"}
    nothing = NO_ANSWER if form and found is None else None
    return made | {"value": value, "right": value > RIGHT, "failure": nothing}


def _number(verdicts: Sequence[Verdict], compare: Rewards) -> None:
    """Number the equivalent answers of each question in place."""
    questions: dict[str, list[Verdict]] = {}
    for verdict in verdicts:
        questions.setdefault(verdict["id"], []).append(verdict)
    several = [samples for samples in questions.values() if len(samples) > 1]
    found = same.groups([[(v["extracted"], v["right"]) for v in samples] for samples in several], compare)
    for samples, numbers in zip(several, found, strict=True):
        for verdict, number in zip(samples, numbers, strict=True):
            verdict["group"] = number

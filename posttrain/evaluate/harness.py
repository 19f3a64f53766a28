"""Held-out accuracy of a policy: greedy and sampled, strict (the asked-for form) and lenient (last number).

It asks, seeds, judges and counts by the functions of `posttrain eval` (posttrain.harness): one model, the
same rows, sampling and seed give the same answers and numbers in both. A run answers with the engine that
trains, though, which holds the weights already and pads no batch; `posttrain eval` with the steady one. So
where rounding depends on what is answered beside (bfloat16, CUDA), a near tie may fall the other way.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from posttrain.harness import blind
from posttrain.harness.answer import Answer, Answerer, OnProgress, requests_for
from posttrain.harness.facts import by_question, shares
from posttrain.harness.intervals import average
from posttrain.harness.judge import Scorer, Verdict, scores, verdict
from posttrain.rewards import RewardSpec, Spec
from posttrain.types import PosttrainError, Prompt, Sampling, Score
from posttrain.verify.equations import has_step
from posttrain.verify.numbers import read_number


def judge_specs(form: str | None, first: Spec) -> list[RewardSpec]:
    """The two rewards that a judge is made of. Without a strict `form`, the recipe's first reward decides."""
    strict = (
        RewardSpec("accuracy", 1.0, {"form": form})
        if form
        else RewardSpec(first.use, 1.0, first.args, first.where)
    )
    return [strict, RewardSpec("accuracy", 0.0, {"form": "last_number"})]  # weight 0: seen, not in the total


def evaluate(
    answerer: Answerer,
    prompts: Sequence[Prompt],
    *,
    form: str | None,
    sampling: Sampling,
    samples: int,
    temperature: float,
    seed: int,
    judge: Scorer,
    without: Mapping[str, Sequence[Prompt]] | None = None,
    on_progress: OnProgress | None = None,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """One greedy answer a prompt and, if `samples` > 0, that many sampled ones at `temperature`.

    judge: `posttrain.rewards.Rewards` of `judge_specs`; names[0] is strict, names[1] lenient.
    without: the prompts with other pictures than theirs, as `harness.blind.blind` gives them.
    Returns the evaluation, and one record a prompt of its greedy answer. The evaluation:
        "strict", "lenient": {"accuracy", "ci95": [lo, hi], "n"}, greedy; lenient is None where the prompts'
            answers are no numbers
        "sampled": the same of the sampled answers, strict, with "samples"; None without any
        "form": the strict form
        "length": mean tokens, "steps_share": share with a visible worked step, "truncated": share; greedy
        "failures": {"name: reason": count}, only where a verdict could not be reached
        "blank", "shuffled": of `without`, greedy and strict, with "paired": what the pictures add;
        "warnings": [sentence], only where they add nothing
    An answer that the verifier failed on counts as not right; a prompt that the rule does not apply to is
    left out, and so is one that leaves no room in the model's context.
    """
    if not prompts:
        raise PosttrainError("there is no held-out prompt to evaluate on: give data.heldout at least one row")
    if len(set(judge.names)) < 2:
        raise ValueError(
            f"a judge needs a strict and a lenient reward with different names, got {judge.names}"
        )
    without = without or {}
    total = len(prompts) * (1 + max(0, samples)) + sum(map(len, without.values()))
    begun = 0
    failures: Counter[str] = Counter()

    def draw(
        asked: Sequence[Prompt], of_each: int, temperature: float
    ) -> tuple[list[Answer], list[Score | None]]:
        nonlocal begun
        before, begun = begun, begun + len(asked) * of_each

        def report(done: int, _: int) -> None:
            if on_progress is not None:
                on_progress(before + done, total)

        keys = [(prompt.id, k) for prompt in asked for k in range(of_each)]
        found: dict[tuple[str, int], Answer] = {}
        answerer.answer(
            requests_for(keys, {prompt.id: prompt for prompt in asked}, seed),
            replace(sampling, temperature=temperature),
            lambda answer: found.update({answer.key: answer}),
            report,
        )
        answers = [found[key] for key in keys]
        given = scores(judge, prompts, answers)
        failures.update(f"request: {answer.error}" for answer in answers if answer.error is not None)
        failures.update(f"{name}: {why}" for score in given if score for name, why in score.failures.items())
        return answers, given

    answers, given = draw(prompts, 1, 0.0)
    strict, lenient = (_verdicts(answers, given, name) for name in judge.names[:2])
    sampled = None
    if samples > 0:
        drawn = _verdicts(*draw(prompts, samples, temperature), judge.names[0])
        sampled = _accuracy(drawn) | {"samples": sum(one["right"] is not None for one in drawn)}
    counts = [answer.tokens for answer in answers if answer.tokens is not None]
    evaluation: dict[str, Any] = {
        "strict": _accuracy(strict),
        "lenient": _accuracy(lenient) if any(_is_number(prompt.answer) for prompt in prompts) else None,
        "sampled": sampled,
        "form": form,
        "length": sum(counts) / max(1, len(counts)),
        "steps_share": sum(has_step(answer.completion) for answer in answers) / len(answers),
        "truncated": sum(answer.finish == "length" for answer in answers) / len(answers),
    }
    for kind, asked in without.items():
        found = blind.against(strict, _verdicts(*draw(asked, 1, 0.0), judge.names[0]))
        if found is not None:
            said = blind.warning(found) if kind == "blank" else None
            evaluation |= {"warnings": [said]} if said else {}
            evaluation[kind] = {"accuracy": found.pop("value"), **found}
    if failures:
        evaluation["failures"] = dict(failures)
    records = [_record(*of_one) for of_one in zip(prompts, answers, given, strict, lenient, strict=True)]
    return evaluation, records


def _verdicts(answers: Sequence[Answer], given: Sequence[Score | None], name: str) -> list[Verdict]:
    return [verdict(answer, score, name) for answer, score in zip(answers, given, strict=True)]


def _accuracy(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """{"accuracy", "ci95", "n": questions}: samples of one question are alike, so that it counts once."""
    questions = by_question(verdicts)
    if not questions:
        raise PosttrainError(
            "no held-out prompt can be judged: the reward returned None for every row. "
            "Check that data.answer names the column that holds the answers"
        )
    found = average(shares(questions))
    return {"accuracy": found["value"], "ci95": found["ci95"], "n": found["n"]}


def _is_number(answer: object) -> bool:
    return answer is not None and read_number(str(answer)) is not None


def _record(
    prompt: Prompt, answer: Answer, score: Score | None, strict: Verdict, lenient: Verdict
) -> dict[str, Any]:
    """A line of samples.jsonl, less "step" and "phase", which the caller adds."""
    return {
        "split": "heldout",
        "id": prompt.id,
        "prompt": prompt.question,
        "completion": answer.completion,
        "answer": prompt.answer,
        "parts": score.parts if score else {},
        "total": score.total if score else None,
        "finish": answer.finish,
        "tokens": answer.tokens,
        "strict": strict["right"],
        "lenient": lenient["right"],
    }

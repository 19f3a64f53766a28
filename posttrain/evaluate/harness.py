"""Held-out accuracy of a policy: greedy and sampled, strict (the asked-for form) and lenient (last number).

The engine is the one that trains, and verdicts come from the rewards' killable process, so an answer that
hangs the verifier costs one verdict and never the run.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Protocol

from posttrain.evaluate.metrics import proportion
from posttrain.harness.intervals import average
from posttrain.harness.judge import RIGHT, ROWS
from posttrain.rewards import RewardSpec, Spec
from posttrain.rollout.engine import Engine, Progress
from posttrain.types import Completion, PosttrainError, Prompt, Sampling, Score
from posttrain.verify.equations import has_step


class Judge(Protocol):
    """`posttrain.rewards.Rewards` built from `judge_specs`: names[0] is strict, names[1] lenient."""

    names: list[str]

    def score(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[Score]: ...


def judge_specs(form: str | None, first: Spec) -> list[RewardSpec]:
    """The two rewards that a judge is made of. Without a strict `form`, the recipe's first reward decides."""
    strict = RewardSpec("accuracy", 1.0, {"form": form}) if form else RewardSpec(first.use, 1.0, first.args)
    return [strict, RewardSpec("accuracy", 0.0, {"form": "last_number"})]  # weight 0: seen, not in the total


def evaluate(
    engine: Engine,
    prompts: Sequence[Prompt],
    encode: Callable[[Prompt], list[int]],
    *,
    form: str | None,
    sampling: Sampling,
    samples: int,
    temperature: float,
    seed: int,
    judge: Judge,
    on_progress: Progress | None = None,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """One greedy completion a prompt and, if `samples` > 0, that many sampled ones at `temperature`.

    Returns the evaluation, and one record a prompt of its greedy completion. The evaluation:
        "strict", "lenient": {"accuracy", "ci95": [lo, hi], "n"}, greedy
        "sampled": the same of the sampled completions, strict, with "samples"; None without any
        "form": the strict form
        "length": mean tokens, "steps_share": share with a visible worked step, "truncated": share; greedy
        "failures": {"name: reason": count}, only where a verdict could not be reached
    An answer without a verdict counts as not right; a prompt that the rule does not apply to is left out.

    Each prompt draws from a seed made of `seed` and its id, so its samples do not depend on its neighbours.
    """
    if not prompts:
        raise PosttrainError("there is no held-out prompt to evaluate on: give data.heldout at least one row")
    if len(set(judge.names)) < 2:
        raise ValueError(
            f"a judge needs a strict and a lenient reward with different names, got {judge.names}"
        )
    tokens = [encode(prompt) for prompt in prompts]
    seeds = [_seed(seed, prompt.id) for prompt in prompts]
    total = len(prompts) * (1 + max(0, samples))

    def generate(n: int, temperature: float, done_before: int) -> list[list[Completion]]:
        def report(done: int, _: int) -> None:
            if on_progress is not None:
                on_progress(done_before + done, total)

        return engine.generate(tokens, n, replace(sampling, temperature=temperature), seeds, report)

    greedy = [group[0] for group in generate(1, 0.0, 0)]
    scores = _judge(judge, prompts, greedy)
    strict, lenient = ([_right(score, name) for score in scores] for name in judge.names[:2])
    failures = Counter(_failures(scores))
    sampled = None
    if samples > 0:
        groups = generate(samples, temperature, len(prompts))
        owners = [prompt for prompt, group in zip(prompts, groups, strict=True) for _ in group]
        flat = _judge(judge, owners, [completion for group in groups for completion in group])
        failures.update(_failures(flat))
        verdicts = iter([_right(score, judge.names[0]) for score in flat])
        sampled = of_samples(
            [[v for v in (next(verdicts) for _ in group) if v is not None] for group in groups]
        )
    evaluation: dict[str, Any] = {
        "strict": proportion(_applying(strict)),
        "lenient": proportion(_applying(lenient)),
        "sampled": sampled,
        "form": form,
        "length": sum(len(c.tokens) for c in greedy) / len(greedy),
        "steps_share": sum(has_step(c.text) for c in greedy) / len(greedy),
        "truncated": sum(c.finish == "length" for c in greedy) / len(greedy),
    }
    if failures:
        evaluation["failures"] = dict(failures)
    records = [
        _record(prompt, completion, score, s, m)
        for prompt, completion, score, s, m in zip(prompts, greedy, scores, strict, lenient, strict=True)
    ]
    return evaluation, records


def of_samples(groups: Sequence[Sequence[bool]]) -> dict[str, Any]:
    """The sampled verdicts of each question -> {"accuracy", "ci95", "n": questions, "samples": in all}.

    Samples of one question resemble each other: a question counts once, with the share of it that is right.
    """
    groups = [group for group in groups if group]
    found = average([sum(group) / len(group) for group in groups])
    return {
        "accuracy": found["value"],
        "ci95": found["ci95"],
        "n": found["n"],
        "samples": sum(map(len, groups)),
    }


def _seed(seed: int, prompt_id: str) -> int:
    digest = hashlib.blake2b(f"{seed}\0{prompt_id}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1  # 63 bits: fits a signed 64-bit seed


def _judge(judge: Judge, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[Score]:
    scores: list[Score] = []
    for at in range(0, len(completions), ROWS):
        scores += judge.score(prompts[at : at + ROWS], completions[at : at + ROWS])
    return scores


def _right(score: Score, name: str) -> bool | None:
    """The verdict; False where the rule failed on the row, None where it does not apply to it."""
    part = score.parts.get(name)
    if part is None:
        return False if name in score.failures else None
    return part > RIGHT


def _applying(verdicts: Sequence[bool | None]) -> list[bool]:
    known = [verdict for verdict in verdicts if verdict is not None]
    if not known:
        raise PosttrainError(
            "no held-out prompt can be judged: the reward returned None for every row. "
            "Check that data.answer names the column that holds the answers"
        )
    return known


def _failures(scores: Sequence[Score]) -> list[str]:
    return [f"{name}: {reason}" for score in scores for name, reason in score.failures.items()]


def _record(
    prompt: Prompt, completion: Completion, score: Score, strict: bool | None, lenient: bool | None
) -> dict[str, Any]:
    """A line of samples.jsonl, less "step" and "phase", which the caller adds."""
    return {
        "split": "heldout",
        "id": prompt.id,
        "prompt": prompt.question,
        "completion": completion.text,
        "answer": prompt.answer,
        "parts": score.parts,
        "total": score.total,
        "finish": completion.finish,
        "tokens": len(completion.tokens),
        "strict": strict,
        "lenient": lenient,
    }

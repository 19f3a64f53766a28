"""Why reward is flat, in one sentence, with what to do about it.

Reads step records as metrics.jsonl holds them. Any field may be missing, null or NaN.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from posttrain.evaluate.metrics import number

ENOUGH = 5  # fewer steps than this say nothing
WINDOW = 8  # steps looked at for the state of the run
HALF = 10  # steps on each side when asking whether reward moved; a sixth of the run when that is more

Record = dict[str, Any]


def why_flat(history: Sequence[Record]) -> str | None:
    """One sentence on what keeps reward from rising; None when learning looks healthy or it is too early.

    `history` holds the step records from the first on (evaluation-only records, without "groups" or "reward",
    are skipped).
    """
    steps = [r for r in history if isinstance(r, dict) and ("reward" in r or "groups" in r)]
    if len(steps) < ENOUGH:
        return None
    recent = steps[-WINDOW:]
    return _failing(recent) or _not_updating(recent) or _silent(recent) or _not_rising(steps, recent)


def _values(records: Sequence[Record], key: str) -> list[float]:
    return [v for v in (number(r.get(key)) for r in records) if v is not None]


def _mean(records: Sequence[Record], key: str) -> float | None:
    values = _values(records, key)
    return sum(values) / len(values) if values else None


def _share(records: Sequence[Record], part: str, whole: str) -> float | None:
    pairs = [(number(r.get(part)), number(r.get(whole))) for r in records]
    known = [(a, b) for a, b in pairs if a is not None and b]
    return sum(a for a, _ in known) / sum(b for _, b in known) if known else None


def _failing(recent: Sequence[Record]) -> str | None:
    """Rewards that raise, hang or return nonsense on a quarter of the rows or more."""
    failures: Counter[str] = Counter()
    for record in recent:
        counts = record.get("reward_failures")
        for reason, count in (counts if isinstance(counts, dict) else {}).items():
            failures[str(reason)] += int(number(count) or 0)
    if not failures:
        return None
    # The number of completions is not logged; tokens / mean length gives it.
    pairs = [(number(r.get("tokens")), number(r.get("length"))) for r in recent]
    rows = sum(tokens / length for tokens, length in pairs if tokens and length)
    masked = sum(_values(recent, "masked_rows"))
    reason, count = failures.most_common(1)[0]
    if _values(recent, "reward") and (not rows or masked / rows < 0.25):
        return None
    share = f"{min(1.0, masked / rows):.0%} of the completions" if rows else "the completions"
    return (
        f"Rewards fail on {share}, which are then left out ({reason}; {count} times in {len(recent)} steps): "
        "call that reward on a few completions of samples.jsonl and put it right."
    )


def _not_updating(recent: Sequence[Record]) -> str | None:
    broken = [r.get(key) for r in recent[-3:] for key in ("loss", "grad_norm")]
    if any(isinstance(v, float) and not math.isfinite(v) for v in broken):
        return (
            "The loss is not a finite number, so the weights are damaged or no longer move: "
            "go back to the last good checkpoint and lower train.learning_rate."
        )
    rates = _values(recent, "learning_rate")
    if len(rates) == len(recent) and max(rates) <= 1e-12:
        return (
            "The learning rate is 0, so the weights do not move: "
            "raise train.learning_rate, or shorten train.warmup."
        )
    return None


def _silent(recent: Sequence[Record]) -> str | None:
    """Groups whose completions all got the same reward teach nothing; say why they are the same."""
    share = _share(recent, "groups_silent", "groups")
    if share is None or share < 0.9:
        return None
    opening = f"{'All' if share > 0.999 else f'{share:.0%} of'} groups are silent"
    return f"{opening}: {_why_alike(recent)}"


def _why_alike(recent: Sequence[Record]) -> str:
    passed, entropy = _mean(recent, "pass_rate"), _mean(recent, "entropy")
    truncated = _mean(recent, "truncated")
    if passed is not None and passed >= 0.9:
        return f"{passed:.0%} of the completions are right, so the task is too easy now; give it harder data."
    if passed is not None and passed <= 0.05:
        if truncated is not None and truncated >= 0.5:
            return (
                f"{truncated:.0%} of the completions are cut off before they answer; "
                "raise sampling.max_tokens or ask for shorter answers."
            )
        missing = _missing_form(recent)
        if missing is not None:
            return (
                f"the form that reward '{missing}' asks for is almost never produced; "
                "show an example of it in data.prompt, or ask for a form that the model already uses."
            )
        return (
            "hardly any completion is right, so the task is too hard, or its form is never produced; "
            "give it easier data, show the form in data.prompt, or raise sampling.completions."
        )
    if entropy is not None and entropy <= 0.05:
        return (
            f"entropy has collapsed to {entropy:.3f} nats a token, so the completions of a group are alike; "
            "start again with a lower train.learning_rate or with train.beta above 0."
        )
    return (
        "every completion of a group gets the same reward; "
        "raise sampling.completions or sampling.temperature, or use a reward that tells good from better."
    )


def _missing_form(recent: Sequence[Record]) -> str | None:
    """The reward after the first one (which says right or wrong) that is almost never earned, if any."""
    names = [key for key in recent[-1] if key.startswith("reward/")][1:]
    for key in names:
        mean = _mean(recent, key)
        if mean is not None and abs(mean) <= 0.02:
            return key.removeprefix("reward/")
    return None


def _not_rising(steps: Sequence[Record], recent: Sequence[Record]) -> str | None:
    """Signal is there, but the mean reward of the later half is not above that of the earlier half."""
    rewards = _values(steps, "reward")
    half = min(len(rewards) // 2, max(HALF, len(rewards) // 6))
    if half < ENOUGH or (_mean(recent, "pass_rate") or 0.0) >= 0.9:
        return None
    old, new = rewards[-2 * half : -half], rewards[-half:]
    gain = sum(new) / half - sum(old) / half
    noise = math.sqrt((_variance(old) + _variance(new)) / half)
    if gain > max(noise, 0.01):
        return None
    opening = f"Reward has not risen in {2 * half} steps"
    truncated, entropy = _mean(recent, "truncated"), _mean(recent, "entropy")
    silent, mismatch = _share(recent, "groups_silent", "groups"), _mean(recent, "mismatch")
    rate, norm = _mean(recent, "learning_rate"), _mean(recent, "grad_norm")
    if truncated is not None and truncated >= 0.5:
        return f"{opening}: {truncated:.0%} of the completions are cut off; raise sampling.max_tokens."
    if mismatch is not None and mismatch >= 0.2:
        return (
            f"{opening}: trainer and engine disagree by {mismatch:.2f} nats a token; "
            "try train.ahead: false or model.compute: float32, and report it if it stays."
        )
    if entropy is not None and entropy <= 0.05:
        return (
            f"{opening}: entropy has collapsed to {entropy:.3f} nats a token, so nothing new is tried; "
            "start again with a lower train.learning_rate or with train.beta above 0."
        )
    if silent is not None and silent >= 0.7:
        return f"{opening}: {silent:.0%} of groups are silent; {_why_alike(recent)}"
    if rate is not None and rate <= 1e-8:
        return f"{opening}: the learning rate is only {rate:.1g}; raise train.learning_rate."
    if norm is not None and norm <= 1e-8:
        return f"{opening}: the gradient is zero; check that the rewards differ between completions."
    if half < HALF:
        return None  # a noisy reward may stand still for a while; without a cause, wait
    return (
        f"{opening} although groups carry signal: raise train.prompts for a steadier gradient, "
        "or train.learning_rate for a longer step."
    )


def _variance(values: Sequence[float]) -> float:
    mean = sum(values) / len(values)
    return sum((v - mean) ** 2 for v in values) / max(1, len(values) - 1)

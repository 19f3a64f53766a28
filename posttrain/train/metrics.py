"""What a step is reported by: one flat record over all processes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from statistics import fmean, pstdev
from typing import Any

from accelerate.utils import gather_object

from posttrain.types import Group


def gather(items: list[Any]) -> list[Any]:
    """Every process's items, concatenated in rank order: the same list everywhere."""
    return gather_object(items)


def step_metrics(
    groups: Sequence[tuple[Group, bool]],
    names: Sequence[str],
    update: dict[str, float],
    times: dict[str, float],
    seconds: float,
) -> dict[str, Any]:
    """
    Args:
        groups: this process's groups, each with whether it is silent.
        names: of the rewards; the first one says right or wrong.
        update: sums over the trained tokens from the update ("tokens" of them, over "passes" passes).
        times: seconds by phase on this process. "reward" is what the loop waited for rewards after it had
            generated, since they run meanwhile; with `train.ahead`, "generate" is what it waited for the next
            batch after it had its gradients, that batch's rewards included.

    Returns:
        the record of the step. A mean over nothing is None.
    """
    rows = [
        {
            "total": score.total,
            "parts": score.parts,
            "failures": score.failures,
            "tokens": len(completion.tokens),
            "cut": completion.finish == "length",
        }
        for group, _ in groups
        for completion, score in zip(group.completions, group.scores, strict=True)
    ]
    everyone = gather(
        [{"rows": rows, "silent": [silent for _, silent in groups], "update": update, "times": times}]
    )
    rows = [row for one in everyone for row in one["rows"]]
    silent = [flag for one in everyone for flag in one["silent"]]
    updates = [one["update"] for one in everyone if one["update"]]
    totals = [row["total"] for row in rows if row["total"] is not None]
    firsts = [row["parts"].get(names[0]) for row in rows]
    trained = sum(u["tokens"] for u in updates)

    def over_tokens(name: str) -> float | None:
        return sum(u[name] for u in updates) / trained if trained else None

    record: dict[str, Any] = {
        "seconds": seconds,
        "reward": _mean(totals),
        "reward_std": pstdev(totals) if totals else None,
        **{f"reward/{name}": _mean([row["parts"].get(name) for row in rows]) for name in names},
        "pass_rate": _mean([float(x > 0.5) for x in firsts if x is not None]),
        "groups": len(silent),
        "groups_silent": sum(silent),
        "masked_rows": sum(row["total"] is None for row in rows),
        "reward_failures": dict(Counter(f"{n}: {why}" for row in rows for n, why in row["failures"].items())),
        "truncated": _mean([float(row["cut"]) for row in rows]),
        "length": _mean([row["tokens"] for row in rows]),
        "entropy": over_tokens("entropy"),
        "kl": over_tokens("kl"),
        "loss": sum(u["loss"] for u in updates) / max([u["passes"] for u in updates], default=1),
        "grad_norm": max((u["grad_norm"] for u in updates), default=0.0),
        "updates_skipped": int(max((u.get("skipped", 0.0) for u in updates), default=0.0)),
        "clip_fraction": over_tokens("clipped"),
        "mismatch": over_tokens("mismatch"),
        "tokens": sum(row["tokens"] for row in rows),
        "trained_tokens": trained,
    }
    record["tokens_per_second"] = record["tokens"] / seconds
    slowest = {f"seconds_{phase}": max(one["times"][phase] for one in everyone) for phase in times}
    return record | slowest


def _mean(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return fmean(known) if known else None

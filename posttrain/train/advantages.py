"""How much better a completion is than its group: rewards in, one number a completion out. No torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, TypeGuard, get_args

AdvantageKind = Literal["std", "mean", "leave_one_out"]

STD_FLOOR = 1e-4  # added to the standard deviation, as TRL does: the paper divides by the bare deviation
_ROUNDING = 1e-12  # rewards this close, relative to the largest, differ by float rounding alone


def default_kind(variant: str) -> AdvantageKind:
    """The kind of advantage that a loss variant's paper uses: Dr. GRPO leaves the division by std out."""
    return "mean" if variant == "dr_grpo" else "std"


def advantages(rewards: Sequence[float | None], kind: AdvantageKind) -> list[float | None]:
    """Advantages of one group's completions from their total rewards, in the same order.

    kind:
      "std"            (r - mean) / (std + 1e-4); GRPO: DeepSeekMath (arXiv 2402.03300) section 4.1.2 and
                       DeepSeek-R1 (arXiv 2501.12948) eq. 3. std is the unbiased one (n - 1), as in TRL.
      "mean"           r - mean; Dr. GRPO (arXiv 2503.20783) section 3.2.
      "leave_one_out"  r - mean of the others; RLOO (arXiv 2402.14740). Equals "mean" times n / (n - 1).

    A None, or a reward that is not finite, is a masked row: it stays out of mean and std and comes back as
    None. With fewer than two scored rows there is nothing to compare with, so they get 0. Equal rewards give
    exactly 0.0, without rounding residue, so that `not any(result)` recognises a group without signal.

    Example: advantages([1.0, 0.0, None], "mean") == [0.5, -0.5, None]
    """
    if kind not in get_args(AdvantageKind):
        raise ValueError(f"advantage kind {kind!r}: choose one of {', '.join(get_args(AdvantageKind))}")
    scored = [r for r in rewards if _scored(r)]
    n = len(scored)
    silent = n < 2 or max(scored) - min(scored) <= _ROUNDING * max(map(abs, scored))
    if silent:
        return [0.0 if _scored(r) else None for r in rewards]
    mean = math.fsum(r / n for r in scored)  # divided first: huge rewards must not overflow their sum
    if kind == "std":
        # hypot scales by the largest term, so the squares of huge rewards do not overflow.
        scale = 1 / (math.hypot(*(r - mean for r in scored)) / math.sqrt(n - 1) + STD_FLOOR)
    else:
        scale = n / (n - 1) if kind == "leave_one_out" else 1.0
    return [(r - mean) * scale if _scored(r) else None for r in rewards]


def _scored(reward: float | None) -> TypeGuard[float]:
    return reward is not None and math.isfinite(reward)

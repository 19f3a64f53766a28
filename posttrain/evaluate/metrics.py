"""How sure we are of an accuracy. Pure Python: no torch, no scipy.

All are score intervals (of one accuracy Wilson's, of a paired difference Tango's): they stay inside of what
is possible and do not shrink to a point when all answers are right or all are wrong, as the textbook interval
(mean ± 1.96 standard errors) does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

Z95 = 1.959963984540054  # 97.5% quantile of the standard normal


def number(value: object) -> float | None:
    """`value` as a finite float, or None: metrics read back from a file may hold NaN, null, anything."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        value = float(value)
    except OverflowError:  # an integer of 400 digits is valid JSON
        return None
    return value if math.isfinite(value) else None


def wilson(successes: float, n: float) -> tuple[float, float]:
    """95% interval of a proportion: the p with |successes/n - p| <= z * sqrt(p (1 - p) / n).

    `n` may be fractional (an effective sample size). n = 0 tells nothing: (0, 1).
    """
    if n < 0 or not 0 <= successes <= n:
        raise ValueError(f"need 0 <= successes <= n, got {successes} of {n}")
    if n == 0:
        return 0.0, 1.0
    p, shrink = successes / n, 1 + Z95**2 / n
    centre = (p + Z95**2 / (2 * n)) / shrink
    half = Z95 / shrink * math.sqrt(p * (1 - p) / n + (Z95 / (2 * n)) ** 2)
    # p itself is always inside; min and max keep it so where rounding would not
    return max(0.0, min(p, centre - half)), min(1.0, max(p, centre + half))


def proportion(verdicts: Sequence[bool]) -> dict[str, Any]:
    """One verdict a question -> {"accuracy", "ci95": [lo, hi], "n": questions}."""
    if not verdicts:
        raise ValueError("no verdicts: an accuracy needs at least one")
    right, n = sum(verdicts), len(verdicts)
    return {"accuracy": right / n, "ci95": list(wilson(right, n)), "n": n}


def paired(gained: int, lost: int, n: int) -> tuple[float, float]:
    """95% interval of the difference of two accuracies on the same `n` questions.

    gained: questions wrong the first time and right the second; lost: the other way round. Those answered
    alike say nothing of the difference, so the interval is narrower than that of two separate samples.

    The differences that the score test for paired proportions does not reject (Tango 1998, Statistics in
    Medicine 17, 891-908): |gained - lost - n d| <= z sqrt(n (2 q + d (1 - d))), where q is the likeliest
    probability of a loss when the true difference is d. n = 0 tells nothing: (-1, 1).
    """
    if gained < 0 or lost < 0 or gained + lost > n:
        raise ValueError(f"need gained + lost <= n, got {gained} + {lost} of {n}")
    if n == 0:
        return -1.0, 1.0

    def inside(d: float) -> bool:
        b = -gained - lost + (2 * n - gained + lost) * d
        q = (math.sqrt(max(0.0, b * b + 8 * n * lost * d * (1 - d))) - b) / (4 * n)
        return abs(gained - lost - n * d) <= Z95 * math.sqrt(max(0.0, n * (2 * q + d * (1 - d))))

    def end(kept: float, out: float) -> float:
        for _ in range(60):
            middle = (kept + out) / 2
            kept, out = (middle, out) if inside(middle) else (kept, middle)
        return kept

    d = (gained - lost) / n
    return end(d, -1.0), end(d, 1.0)


def disjoint(a: Sequence[float], b: Sequence[float]) -> bool:
    """Whether two intervals [lo, hi] share no point."""
    return a[1] < b[0] or b[1] < a[0]

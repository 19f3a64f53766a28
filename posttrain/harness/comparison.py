"""Two models on the same questions: is one better, by how much, and how many questions would tell.

What the two share, that some questions are harder than others, cancels in the difference of each question.
So a paired comparison sees far smaller differences than two separate intervals do (Miller 2024, arXiv
2411.00640).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Any

import numpy as np

from posttrain.evaluate.metrics import Z95, paired
from posttrain.harness.intervals import Array, check, is_binary, mean_interval

EXACT = 20  # questions that differ, up to which every choice of signs is tried: half a million sums
FEWEST = 6  # questions, all won: p = 2 / 2^6 is the first below 0.05
IMAGINED = 0.25  # questions at either end of the span, beside those that were asked
ALIKE = 1e-12  # sums of the same values in another order may differ by so much


def compare(a: Sequence[float], b: Sequence[float], seed: int = 0, draws: int = 9_999) -> dict[str, Any]:
    """b against a -> {"difference", "ci95": [lo, hi], "p", "test", "n", "gained", "lost"}.

    difference: mean of b minus mean of a. gained, lost: questions on which b has the higher, the lower value.
    With values of 0 and 1 alone the interval is Tango's (`paired`) and the test McNemar's ("mcnemar"); with
    others they are `difference_interval` and the test of flipped signs ("signs"). Interval and p come from
    different tests and can disagree at the edge: with 0 and 1 it is p that asks for more, else the interval.

    Args:
        a, b: [questions] a value in [0, 1] for each question, in the same order.
        seed, draws: of the test of flipped signs, where more than EXACT questions differ.
    ValueError: no questions, lengths that differ, a NaN or a value outside of [0, 1].
    """
    first, second = _pair(a, b)
    differences = second - first
    gained, lost, n = int((differences > 0).sum()), int((differences < 0).sum()), len(differences)
    if is_binary(first) and is_binary(second):
        test, p, ends = "mcnemar", mcnemar(gained, lost), paired(gained, lost, n)
    else:
        test, p = "signs", sign_flips(differences.tolist(), seed, draws)
        ends = (float(end[0]) for end in difference_interval(first[None], second[None]))
    difference = math.fsum(differences) / n
    return {
        "difference": difference,
        "ci95": list(ends),
        "p": p,
        "test": test,
        "n": n,
        "gained": gained,
        "lost": lost,
    }


def difference_interval(a: Array, b: Array) -> tuple[Array, Array]:
    """95% intervals of the mean of b - a, for values in [0, 1] that are not all 0 or 1: the lower and the
    upper ends, [pairs] each, of a and b [pairs, questions].

    The Bayesian bootstrap of `mean_interval` over the differences, with a quarter of a question imagined at
    either end of the span: as far as the questions differ among each other, two models may differ on one that
    was not asked. Student's t knows only the differences that it sees, and misses too often where rare large
    ones make the mean (benchmarks/coverage.py has both).
    """
    span = np.maximum(a.max(axis=1), b.max(axis=1)) - np.minimum(a.min(axis=1), b.min(axis=1))
    if a.shape[1] < FEWEST:  # too few to show a span
        span = np.ones(len(a))
    span = np.where(span > 0, span, 1.0)[:, None]
    half = np.clip(((b - a) / span + 1) / 2, 0, 1)  # 1/2 is no difference
    lo, hi = mean_interval(half, np.ones_like(half), IMAGINED)
    return span[:, 0] * (2 * lo - 1), span[:, 0] * (2 * hi - 1)


def mcnemar(gained: int, lost: int) -> float:
    """Two-sided p of "a gain is as likely as a loss" (McNemar 1947, Psychometrika 12, 153-157), exact.

    The binomial test of the questions whose verdict changed. It is cautious: of pairs of equal models fewer
    than 5% have p <= 0.05, the less the fewer verdicts changed. Nothing changed: p = 1.
    """
    if gained < 0 or lost < 0:
        raise ValueError(f"need counts of 0 or more, got {gained} and {lost}")
    changed = gained + lost
    ways = total = 1
    for taken in range(min(gained, lost)):
        ways = ways * (changed - taken) // (taken + 1)
        total += ways
    return min(1.0, 2 * total / 2**changed)


def sign_flips(differences: Sequence[float], seed: int = 0, draws: int = 9_999) -> float:
    """Two-sided p of "each difference is as likely with the other sign" (Fisher 1935, Design of Experiments).

    The share of the choices of signs whose sum is at least as far from 0 as the one seen. All 2^m are tried
    where no more than EXACT differences are not 0. Else `draws` are drawn, and the one seen counts with them
    (Phipson and Smyth 2010, SAGMB 9, 39), so that p is never 0 and never too small on average.
    """
    values = np.asarray(differences, dtype=np.float64)
    values = values[values != 0]
    if not np.isfinite(values).all():
        raise ValueError("a difference is NaN or infinite")
    if not values.size:
        return 1.0
    seen = abs(math.fsum(values)) - ALIKE * len(values)
    if len(values) <= EXACT:
        sums = values[:1]  # the other sign of the first mirrors everything
        for value in values[1:]:
            sums = np.concatenate([sums + value, sums - value])
        return float((np.abs(sums) >= seen).mean())
    rng, far = np.random.default_rng(seed), 0
    rows = max(1, 1_000_000 // len(values))
    for start in range(0, draws, rows):
        signs = rng.integers(2, size=(min(rows, draws - start), len(values)), dtype=np.int8)
        # A sum with flipped signs is twice that of the values kept, less the whole.
        far += int((np.abs(2 * (signs @ values) - values.sum()) >= seen).sum())
    return (1 + far) / (1 + draws)


def questions_needed(a: Sequence[float], b: Sequence[float], size: float, power: float = 0.8) -> int:
    """How many questions show a true difference of `size` at the 5% level with probability `power`.

    From the two models' differences on questions like these: with m the mean of their squares (for verdicts
    the share that changed), n size - 1 = (z_0.975 sqrt(m) + z_power sqrt(m - size^2)) sqrt(n) (Connor 1987,
    Biometrics 43, 207-211). The 1 is the continuity correction, the price of McNemar's exact test; it is left
    out for values finer than 0 and 1.

    A difference of `size` needs verdicts that change at least that often, so m is never taken as less. Under
    FEWEST questions neither test can reach the level, however clear the case.
    ValueError: as `compare`, or if not 0 < size <= 1, or not 0.05 < power < 1.
    """
    if not 0 < size <= 1:
        raise ValueError(f"size must lie above 0 and not above 1, got {size}")
    if not 0.05 < power < 1:
        raise ValueError(f"power must lie between 0.05 and 1, got {power}")
    first, second = _pair(a, b)
    differences = second - first
    coarse = is_binary(first) and is_binary(second)
    square = max(float((differences**2).mean()), size if coarse else size**2)
    spread = Z95 * math.sqrt(square) + NormalDist().inv_cdf(power) * math.sqrt(square - size**2)
    root = (spread + math.sqrt(spread**2 + 4 * size * coarse)) / (2 * size)
    return max(FEWEST, math.ceil(root**2))


def _pair(a: Sequence[float], b: Sequence[float]) -> tuple[Array, Array]:
    if len(a) != len(b):
        raise ValueError(f"{len(a)} and {len(b)} values: need the same questions in the same order")
    return check(a), check(b)

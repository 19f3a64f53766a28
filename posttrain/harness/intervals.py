"""How sure we are of a mean over questions, each with a value in [0, 1]: a verdict, avg@n, pass@k, cons@k.

Questions are independent, samples of one question are not: so a question has one value, the mean over its
samples, and the spread over questions is all that counts (Miller 2024, arXiv 2411.00640). How often the
intervals hold the truth is measured by benchmarks/coverage.py, beside others that were tried.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from posttrain.evaluate.metrics import wilson

Array = NDArray[np.float64]

OUTSIDE = 0.025  # on each side of a 95% interval
JEFFREYS = 0.5  # questions that are imagined at 0, and at 1


def average(values: Sequence[float]) -> dict[str, Any]:
    """One value a question -> {"value": the mean, "ci95": [lo, hi], "n": questions}.

    Wilson's interval if all values are 0 or 1, `mean_interval` if not. Questions weigh alike, also those with
    fewer samples. ValueError for no questions, a NaN, or a value outside of [0, 1].
    """
    checked = check(values)
    n = len(checked)
    mean = math.fsum(values) / n
    if is_binary(checked):
        lo, hi = wilson(round(mean * n), n)
    else:
        support, counts = np.unique(checked, return_counts=True)
        ends = mean_interval(support, counts[None].astype(float))
        # The imagined questions draw the interval to the middle; the mean itself is never left outside.
        lo, hi = min(mean, float(ends[0][0])), max(mean, float(ends[1][0]))
    return {"value": mean, "ci95": [lo, hi], "n": n}


def mean_interval(support: Array, counts: Array, ends: float = JEFFREYS) -> tuple[Array, Array]:
    """95% intervals of the means of many samples at once: the Bayesian bootstrap with Jeffreys' ends.

    The weights of n questions are drawn from a Dirichlet distribution (Rubin 1981, Annals of Statistics 9,
    130-134), in which half a question more stands at 0 and half a one at 1. With values of 0 and 1 that is
    Jeffreys' interval, Beta(right + 1/2, wrong + 1/2); with others it is narrower, as it should be. Unlike
    intervals made of a standard error it knows that the rare questions which would have been answered may be
    absent from a small sample: where 29 of 30 values are close to 0, it still reaches far up and not down.

    It is not drawn but computed: see `_upper`.

    Args:
        support: the values that occur, in [0, 1]: [values] for all samples, or [samples, values].
        counts: [samples, values] how many questions of each sample have them.
        ends: how many questions are imagined at 0, and as many at 1.
    Returns:
        The lower and the upper ends, [samples] each.
    """
    support = np.broadcast_to(support, counts.shape)
    return 1 - _upper(1 - support, counts, ends), _upper(support, counts, ends)


def _upper(support: Array, counts: Array, ends: float) -> Array:
    """[samples] the x which the mean exceeds with probability OUTSIDE.

    A Dirichlet-weighted mean exceeds x if sum of (v - x) G over the values v is positive, with independent
    G ~ Gamma(count). The tail of such a sum is Lugannani and Rice's (1980, Advances in Applied Probability
    12, 475-490), from its cumulant generating function and its saddlepoint s. With theta = s / (1 + s x) the
    saddlepoint has x in closed form, so one bisection, over theta in (0, 1), finds both.
    """
    # Imagining a question at 0 would shut out a mean of 1 even if hardly any value falls short of 1: it fades
    # away with what falls short in all. For Jeffreys' interval this is the usual remedy at its ends
    # (Brown, Cai and DasGupta 2001, Statistical Science 16, 101-133).
    short = np.minimum(1.0, (counts * (1 - support)).sum(axis=1))
    one = np.ones((len(counts), 1))
    values = np.concatenate([support, one, 0 * one], axis=1)
    shape = np.concatenate([counts, ends * one, ends * short[:, None]], axis=1)
    total = shape.sum(axis=1)
    low, high = np.full(len(counts), -36.0), np.full(len(counts), -1e-3)  # log (1 - theta)
    x = np.ones(len(counts))
    for _ in range(40):
        middle = (low + high) / 2
        away = np.exp(middle)[:, None]
        weight = 1 / (1 - values + away * values)  # 1 / (1 - theta v), without the cancellation
        mass = shape * weight
        theta = 1 - away[:, 0]
        # Rounding must not lift it over 1.
        x = np.minimum(1.0, (mass * values).sum(axis=1) / mass.sum(axis=1))
        cumulant = total * np.log(1 - x + away[:, 0] * x) + (shape * np.log(weight)).sum(axis=1)
        r = np.sqrt(np.maximum(-2 * cumulant, 1e-12))
        q = theta * np.sqrt(np.maximum((mass * weight * (values - x[:, None]) ** 2).sum(axis=1), 1e-18))
        tail = np.array([math.erfc(z / math.sqrt(2)) / 2 for z in r])
        tail += np.exp(-(r**2) / 2) / math.sqrt(2 * math.pi) * (1 / q - 1 / r)
        inside = tail > OUTSIDE
        high, low = np.where(inside, middle, high), np.where(inside, low, middle)
    return np.where(short > 0, x, 1.0)


def standard_error(values: Sequence[float]) -> float:
    """Of the mean over questions, clustered by question: sd / sqrt(n), with n - 1 under the variance.

    For equal numbers of samples a question this is Liang and Zeger's cluster-robust error of the mean over
    all samples, times sqrt(n / (n - 1)). ValueError for fewer than two questions: one shows no spread.
    """
    checked = check(values)
    if len(checked) < 2:
        raise ValueError("a standard error needs at least two questions")
    return float(checked.std(ddof=1)) / math.sqrt(len(checked))


def bootstrap(values: Sequence[float], seed: int = 0, draws: int = 10_000) -> tuple[float, float]:
    """95% BCa interval of the mean, questions drawn with replacement (Efron 1987, JASA 82, 171-185).

    The percentiles of the drawn means, corrected for their bias and for the skew of the values. Values that
    are all alike give a point: an interval that knows what was not drawn is `average`'s.
    """
    checked = check(values)
    n, mean = len(checked), float(checked.mean())
    off = checked - mean
    if checked.min() == checked.max():
        return mean, mean
    rng = np.random.default_rng(seed)
    rows = max(1, 1_000_000 // n)  # of 8 MB at a time
    means = np.concatenate(
        [
            checked[rng.integers(n, size=(min(rows, draws - first), n))].mean(axis=1)
            for first in range(0, draws, rows)
        ]
    )
    normal = NormalDist()
    below = (np.mean(means < mean - 1e-12) + np.mean(means <= mean + 1e-12)) / 2
    bias = normal.inv_cdf(min(max(float(below), 1 / draws), 1 - 1 / draws))
    skew = float((off**3).sum() / (6 * (off**2).sum() ** 1.5))
    ends = []
    for share in (OUTSIDE, 1 - OUTSIDE):
        z = bias + normal.inv_cdf(share)
        ends.append(normal.cdf(bias + z / max(1e-9, 1 - skew * z)))
    lo, hi = np.quantile(means, ends)
    return float(lo), float(hi)


def check(values: Sequence[float]) -> Array:
    """The values of the questions as an array; ValueError for none, a NaN, or one outside of [0, 1]."""
    checked = np.asarray(values, dtype=np.float64)
    if checked.ndim != 1 or not checked.size:
        raise ValueError("no questions: need one value for each of at least one")
    if not ((checked >= 0) & (checked <= 1)).all():  # a NaN is neither
        raise ValueError("a question's value must lie between 0 and 1")
    return checked


def is_binary(values: Array) -> bool:
    return bool(((values == 0) | (values == 1)).all())

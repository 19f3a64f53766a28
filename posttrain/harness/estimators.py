"""What the samples of one question tell of a model that answers k times. Pure Python, and exact.

Every estimator here is an average over all subsets of k of the n samples, all equally likely. The subsets are
counted with whole numbers and divided once at the end, so nothing is rounded on the way, however large n is.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence


def pass_at_k(n: int, right: int, k: int) -> float:
    """The probability that k of n samples, drawn without replacement, hold a right one; `right` of n are.

    Unbiased for the probability that one of k fresh samples is right (Chen et al. 2021, arXiv 2107.03374);
    1 - (1 - right / n)^k is not. ValueError if not 1 <= k <= n or not 0 <= right <= n.
    """
    _check(n, right, k)
    every = math.comb(n, k)
    return (every - math.comb(n - right, k)) / every


def g_pass_at_k(n: int, right: int, k: int, tau: float) -> float:
    """The probability that at least ceil(tau k) of k samples are right, and at least one.

    Liu et al. 2024, arXiv 2412.13147: the upper tail of the hypergeometric distribution. tau = 0 is pass@k
    (the limit from above), tau = 1 asks for k right ones of k. ValueError as `pass_at_k`, or if tau is not
    in [0, 1].
    """
    _check(n, right, k)
    if not 0 <= tau <= 1:
        raise ValueError(f"tau must lie between 0 and 1, got {tau}")
    least = max(1, math.ceil(tau * k - 1e-9))  # 0.07 * 100 is 7.000000000000001, and 7 are meant
    return sum(_ways(n, right, k)[least:]) / math.comb(n, k)


def mean_g_pass_at_k(n: int, right: int, k: int) -> float:
    """mG-Pass@k: the mean of `g_pass_at_k` over tau between 1/2 and 1 (arXiv 2412.13147).

    The paper defines it as the integral 2 ∫ G-Pass@k_tau dtau and writes it as 2/k times the sum of the tails
    from k/2 + 1 right ones up. For even k the two are the same, and so is this. For odd k the sum loses half
    a step (a model that is always right would get (k - 1) / k), and this keeps to the integral.
    """
    _check(n, right, k)
    ways = _ways(n, right, k)
    # With j right it passes for each tau up to j/k: of the length 1/2 that is j/k - 1/2, or (2j - k) / 2k.
    return sum(w * (2 * j - k) for j, w in enumerate(ways) if 2 * j > k) / (k * math.comb(n, k))


def cons_at_k(groups: Sequence[int | None], right: Sequence[bool], k: int) -> float:
    """The expected score of a majority vote among k of the samples (Wang et al. 2022, arXiv 2203.11171).

    groups: each sample's equivalence group; those of one group vote together. None is a sample without an
        answer: it has no vote, and a subset of nothing else scores 0.
    right: each sample's verdict. Where a verifier judged equivalent answers differently, the vote scores as a
        random member of the winning group does.

    Ties are broken by chance, all winners alike. Exact: the subsets are counted by a polynomial in which the
    power of x is the number of samples taken and the power of y the number of other groups that tie.
    """
    n = len(groups)
    if len(right) != n:
        raise ValueError(f"{n} groups and {len(right)} verdicts: need one of each a sample")
    _check(n, sum(right), k)
    sizes = Counter(group for group in groups if group is not None)
    correct = Counter(group for group, verdict in zip(groups, right, strict=True) if verdict)
    # Groups of one size win equally often, so those of one size count once, by their right members.
    by_size: Counter[int] = Counter()
    for group, size in sizes.items():
        by_size[size] += correct[group]
    unit = math.lcm(*range(1, n + 1))  # every size and every number of winners divides it: no fractions
    score = 0
    for size, members in by_size.items():
        if members:
            others = list(sizes.values())
            others.remove(size)
            ties = _wins(size, others, voteless=n - sum(sizes.values()), k=k)
            score += members * (unit // size) * sum(w * (unit // (t + 1)) for t, w in enumerate(ties))
    return score / (math.comb(n, k) * unit * unit)


def best_of_k(scores: Sequence[float], right: Sequence[bool], k: int) -> float:
    """The expected verdict of the highest-scored of k of the samples: what a reward model's choice is worth.

    Of several with the highest score one is taken by chance. ValueError for a NaN, lengths that differ, or k
    out of range. Exact (best-of-n: Stiennon et al. 2020, arXiv 2009.01325, who sample it).
    """
    n = len(scores)
    if len(right) != n:
        raise ValueError(f"{n} scores and {len(right)} verdicts: need one of each a sample")
    _check(n, sum(right), k)
    if any(math.isnan(score) for score in scores):
        raise ValueError("a score is NaN: it cannot be ranked")
    level, correct = Counter(scores), Counter(s for s, verdict in zip(scores, right, strict=True) if verdict)
    unit = math.lcm(*level.values())
    total = below = 0
    for score in sorted(level):
        # The best is of this level when no sample is above it and not all are below it.
        wins = math.comb(below + level[score], k) - math.comb(below, k)
        total += wins * correct[score] * (unit // level[score])
        below += level[score]
    return total / (math.comb(n, k) * unit)


def _wins(size: int, others: Sequence[int], voteless: int, k: int) -> list[int]:
    """Of the k-subsets those in which a group of `size` has the most votes, by how many others have as many.

    A polynomial in x is one whole number: the coefficient of x^j sits at bit j * width. No coefficient can
    exceed the number of all subsets, 2^n, so they never run into each other, and one multiplication of long
    integers multiplies two polynomials.
    """
    width = size + sum(others) + voteless + 1
    found = [0] * k
    for votes in range(1, min(size, k) + 1):
        rest = k - votes  # samples to take outside of the group
        keep = (1 << (rest + 1) * width) - 1
        # Who has fewer members than `votes` can neither win nor tie: all of those are one pool with None.
        pool = voteless + sum(other for other in others if other < votes)
        states = [sum(math.comb(pool, j) << j * width for j in range(min(pool, rest) + 1))]
        for other in others:
            if other >= votes:
                fewer = sum(math.comb(other, j) << j * width for j in range(votes))
                tie = math.comb(other, votes) << votes * width
                longer = [state * fewer & keep for state in states] + [0]
                for t, state in enumerate(states):
                    longer[t + 1] += state * tie & keep
                while longer and not longer[-1]:  # so many ties would take more than k samples
                    longer.pop()
                states = longer
        for t, state in enumerate(states):
            found[t] += math.comb(size, votes) * (state >> rest * width)
    return found


def _ways(n: int, right: int, k: int) -> list[int]:
    """[j] -> the number of k-subsets of n samples with j of the `right` ones, for j = 0..k."""
    return [math.comb(right, j) * math.comb(n - right, k - j) for j in range(k + 1)]


def _check(n: int, right: int, k: int) -> None:
    if not 0 <= right <= n:
        raise ValueError(f"need 0 <= right <= n, got {right} right of {n}")
    if not 1 <= k <= n:
        raise ValueError(f"need 1 <= k <= n, got k = {k} of {n} samples")

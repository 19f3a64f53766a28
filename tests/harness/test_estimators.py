"""Every estimator against the plain enumeration of all subsets, and against closed forms."""

import math
import random
from fractions import Fraction
from itertools import combinations, pairwise

import pytest

from posttrain.harness.estimators import best_of_k, cons_at_k, g_pass_at_k, mean_g_pass_at_k, pass_at_k


def average_over_subsets(n, k, score):
    """The mean of score(places) over all k-subsets, as an exact fraction."""
    scores = [Fraction(score(places)) for places in combinations(range(n), k)]
    return float(sum(scores) / len(scores))


CASES = [(n, right, k) for n in (1, 2, 5, 7) for right in range(n + 1) for k in range(1, n + 1)]


@pytest.mark.parametrize(("n", "right", "k"), CASES)
def test_pass_and_g_pass_are_shares_of_all_subsets(n, right, k):
    def hits(places):
        return sum(place < right for place in places)

    assert pass_at_k(n, right, k) == average_over_subsets(n, k, lambda s: hits(s) > 0)
    for tau in (0.0, 0.25, 0.5, 0.75, 1.0):
        least = max(1, math.ceil(tau * k))
        wanted = average_over_subsets(n, k, lambda s, least=least: hits(s) >= least)
        assert g_pass_at_k(n, right, k, tau) == wanted
    # The integral over tau in (1/2, 1], from its definition: tails are constant between multiples of 1/k.
    edges = sorted({Fraction(1, 2), *(Fraction(j, k) for j in range(1, k + 1) if 2 * j > k)})
    area = sum(
        float(b - a) * average_over_subsets(n, k, lambda s, b=b: hits(s) >= b * k) for a, b in pairwise(edges)
    )
    assert mean_g_pass_at_k(n, right, k) == pytest.approx(2 * area, abs=1e-12)


def test_mean_g_pass_is_the_papers_sum_for_even_k():
    for n, right, k in ((16, 9, 4), (48, 30, 16), (10, 10, 2)):
        tails = [g_pass_at_k(n, right, k, i / k) for i in range(k // 2 + 1, k + 1)]
        assert mean_g_pass_at_k(n, right, k) == pytest.approx(2 / k * sum(tails), abs=1e-12)
    assert mean_g_pass_at_k(5, 5, 3) == 1.0  # always right; the paper's sum says 2/3
    assert mean_g_pass_at_k(4, 3, 1) == 0.75


def test_a_threshold_that_rounding_lifted_is_not_lifted():
    assert 0.07 * 100 > 7
    assert g_pass_at_k(100, 7, 100, 0.07) == 1.0
    assert g_pass_at_k(100, 6, 100, 0.07) == 0.0


def test_pass_at_k_of_ten_thousand_samples():
    assert pass_at_k(10_000, 1, 1) == 1e-4
    assert pass_at_k(10_000, 1, 2500) == 0.25
    miss = math.exp(sum(math.log1p(-100 / (10_000 - i)) for i in range(37)))
    assert pass_at_k(10_000, 37, 100) == pytest.approx(1 - miss, abs=1e-12)
    assert pass_at_k(10_000, 5_000, 5_000) == 1.0
    assert g_pass_at_k(10_000, 9_999, 100, 1.0) == 0.99


def test_pass_at_k_is_unbiased_where_the_plug_in_is_not():
    """Over all outcomes of 6 samples, each right with probability p, the mean is 1 - (1 - p)^k."""
    p, n, k = 0.3, 6, 3
    chance = [math.comb(n, c) * p**c * (1 - p) ** (n - c) for c in range(n + 1)]
    assert sum(w * pass_at_k(n, c, k) for c, w in enumerate(chance)) == pytest.approx(1 - 0.7**k, abs=1e-12)
    assert abs(sum(w * (1 - (1 - c / n) ** k) for c, w in enumerate(chance)) - (1 - 0.7**k)) > 0.03


@pytest.mark.parametrize(("n", "right", "k"), [(4, 2, 5), (4, 2, 0), (4, 5, 2), (4, -1, 2), (0, 0, 1)])
def test_what_cannot_be_drawn_is_refused(n, right, k):
    for estimate in (pass_at_k, mean_g_pass_at_k, lambda n, right, k: g_pass_at_k(n, right, k, 0.5)):
        with pytest.raises(ValueError, match="need"):
            estimate(n, right, k)


@pytest.mark.parametrize("tau", [-0.1, 1.1, math.nan])
def test_a_threshold_out_of_range_is_refused(tau):
    with pytest.raises(ValueError, match="tau"):
        g_pass_at_k(4, 2, 2, tau)


def vote(groups, right, places):
    """The expected score of one subset's vote: over the ties, and over the members of the winner."""
    votes = [groups[place] for place in places if groups[place] is not None]
    if not votes:
        return Fraction(0)
    most = max(map(votes.count, votes))
    winners = [group for group in set(votes) if votes.count(group) == most]
    score = Fraction(0)
    for winner in winners:
        members = [right[place] for place in places if groups[place] == winner]
        score += Fraction(sum(members), len(members) * len(winners))
    return score


def test_cons_at_k_is_the_mean_over_every_subset():
    rng = random.Random(0)
    for _ in range(40):
        n = rng.randint(1, 8)
        groups = [rng.choice([None, 0, 0, 1, 1, 2, 3, 7]) for _ in range(n)]
        of_group = {group: rng.random() < 0.4 for group in range(8)}
        right = [group is not None and of_group[group] for group in groups]
        if rng.random() < 0.3:  # a verifier that judges equivalent answers differently
            right = [group is not None and rng.random() < 0.5 for group in groups]
        for k in range(1, n + 1):
            wanted = average_over_subsets(n, k, lambda s, g=groups, r=right: vote(g, r, s))
            assert cons_at_k(groups, right, k) == pytest.approx(wanted, abs=1e-15), (groups, right, k)


def test_cons_at_k_closed_forms():
    assert cons_at_k([None, None], [False, False], 2) == 0.0
    assert cons_at_k([5, None, None, None], [True, False, False, False], 2) == 0.5  # one vote is enough
    assert cons_at_k([0, 0, 1, 1], [True, True, False, False], 4) == 0.5  # a tie
    assert cons_at_k([0, 1, 2], [True, True, False], 3) == pytest.approx(2 / 3, abs=1e-15)  # three that tie
    assert cons_at_k(list(range(64)), [True] * 64, 32) == 1.0
    # Two groups and odd k: the tail of the hypergeometric distribution from (k + 1) / 2 up.
    groups, right = [0] * 20 + [1] * 44, [True] * 20 + [False] * 44
    assert cons_at_k(groups, right, 33) == pytest.approx(g_pass_at_k(64, 20, 33, 17 / 33), abs=1e-15)
    for k in (1, 2):  # with two votes the tie is decided by a coin: as good as one
        assert cons_at_k(groups, right, k) == pytest.approx(20 / 64, abs=1e-15)


def test_best_of_k_is_the_mean_over_every_subset():
    rng = random.Random(1)
    for _ in range(40):
        n = rng.randint(1, 7)
        scores = [rng.choice([0.0, 0.1, 0.1, 0.7, -math.inf]) for _ in range(n)]
        right = [rng.random() < 0.5 for _ in range(n)]

        def verdict(places, scores=scores, right=right):
            best = [p for p in places if scores[p] == max(scores[q] for q in places)]
            return Fraction(sum(right[p] for p in best), len(best))

        for k in range(1, n + 1):
            assert best_of_k(scores, right, k) == pytest.approx(
                average_over_subsets(n, k, verdict), abs=1e-15
            )


def test_best_of_k_of_a_perfect_and_of_a_blind_score():
    right = [True] * 5 + [False] * 11
    assert best_of_k([float(r) for r in right], right, 4) == pass_at_k(16, 5, 4)
    assert best_of_k([1.0] * 16, right, 4) == 5 / 16


@pytest.mark.parametrize("estimate", [cons_at_k, best_of_k])
def test_lengths_and_k_are_checked(estimate):
    with pytest.raises(ValueError, match="one of each"):
        estimate([1, 1], [True], 1)
    for k in (0, 3):
        with pytest.raises(ValueError, match="k ="):
            estimate([1, 1], [True, False], k)
    with pytest.raises(ValueError, match="k ="):
        estimate([], [], 1)


def test_a_score_that_is_no_number_is_refused():
    with pytest.raises(ValueError, match="NaN"):
        best_of_k([0.5, math.nan], [True, False], 1)

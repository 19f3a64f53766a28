import math
import random

import numpy as np
import pytest

from posttrain.evaluate.metrics import proportion, wilson
from posttrain.harness.intervals import average, bootstrap, mean_interval, standard_error


def test_verdicts_have_the_house_interval():
    values = [1.0] * 13 + [0.0] * 27
    assert average(values) == {"value": 13 / 40, "ci95": list(wilson(13, 40)), "n": 40}
    assert average(values)["ci95"] == proportion([v == 1 for v in values])["ci95"]
    assert average([0.0])["ci95"] == list(wilson(0, 1))
    assert average([1.0] * 9)["ci95"] == list(wilson(9, 9))


@pytest.mark.parametrize(("right", "n"), [(1, 5), (0, 30), (1, 30), (7, 30), (3, 1000), (500, 1000)])
def test_the_computed_interval_of_verdicts_is_jeffreys(right, n):
    """The ends against draws of Beta(right + 1/2, wrong + 1/2): 2.5% lie beyond each."""
    lo, hi = mean_interval(np.array([0.0, 1.0]), np.array([[n - right, right]], dtype=float))
    drawn = np.random.default_rng(0).beta(right + 0.5, n - right + 0.5, size=200_000)
    assert (drawn > hi).mean() == pytest.approx(0.025, abs=0.0015)
    assert (drawn < lo).mean() == pytest.approx(0.025 if right else 0.0, abs=0.0015)


def test_the_computed_interval_is_that_of_drawn_weights():
    rng = np.random.default_rng(3)
    for values in (rng.random(5), np.array([0.01] * 28 + [0.3, 0.9]), rng.beta(0.3, 0.3, size=200)):
        weights = rng.dirichlet([1.0] * len(values) + [0.5, 0.5], size=40_000)
        drawn = weights @ np.concatenate([values, [0.0, 1.0]])
        lo, hi = average(values.tolist())["ci95"]
        assert (drawn > hi).mean() == pytest.approx(0.025, abs=0.003)
        assert (drawn < lo).mean() == pytest.approx(0.025, abs=0.003)


def test_intervals_of_many_samples_are_those_of_each():
    support, rng = np.linspace(0, 1, 5), np.random.default_rng(0)
    counts = rng.multinomial(40, [0.2, 0.3, 0.1, 0.1, 0.3], size=6).astype(float)
    ends = np.stack(mean_interval(support, counts), axis=1)
    for row, both in zip(counts, ends, strict=True):
        assert average(np.repeat(support, row.astype(int)).tolist())["ci95"] == pytest.approx(both, abs=1e-9)


def test_the_mean_is_inside_and_the_interval_is_mirrored():
    rng = random.Random(0)
    cases = [[0.3], [0.999] * 30, [1.0] * 29 + [0.98], [0.5] * 10, [0.0, 0.25], [1 / 3] * 1000, [1e-9] * 3]
    cases += [[rng.betavariate(0.2, 2) for _ in range(n)] for n in (2, 30, 300)]
    for values in cases:
        got = average(values)
        lo, hi = got["ci95"]
        assert 0 <= lo <= got["value"] <= hi <= 1 and lo < hi
        mirrored = average([1 - value for value in values])["ci95"]
        assert mirrored == pytest.approx([1 - hi, 1 - lo], abs=1e-7)


def test_rare_answers_that_were_not_seen_are_allowed_for():
    """29 questions hardly ever answered and one at times: the textbook interval ends at 0.03."""
    values = [0.0] * 25 + [1 / 64] * 4 + [0.5]
    hi = average(values)["ci95"][1]
    assert np.mean(values) + 1.96 * standard_error(values) < 0.06 < 0.08 < hi < 0.2
    # and a mean that nothing falls short of may be the truth
    assert average([1.0] * 29 + [0.98])["ci95"][1] > 0.9999


def test_samples_narrow_the_interval_and_agreement_does_not():
    rng = random.Random(2)
    wide = average([float(rng.random() < 0.5) for _ in range(100)])["ci95"]
    fine = average([sum(rng.random() < 0.5 for _ in range(16)) / 16 for _ in range(100)])["ci95"]
    assert fine[1] - fine[0] < (wide[1] - wide[0]) / 3


@pytest.mark.parametrize("values", [[], [0.5, math.nan], [1.5, 0.5], [-0.1], [math.inf], [[0.5]]])
@pytest.mark.parametrize("function", [average, bootstrap, standard_error])
def test_what_is_no_value_is_refused(function, values):
    with pytest.raises(ValueError, match="question"):
        function(values)


def test_standard_error_is_the_cluster_robust_one():
    rng = random.Random(1)
    groups = [[rng.random() < p for _ in range(8)] for p in (0.1, 0.5, 0.5, 0.9, 0.95)]
    values = [sum(group) / 8 for group in groups]
    p = sum(values) / 5
    robust = math.sqrt(sum((sum(group) - p * 8) ** 2 for group in groups)) / 40
    assert standard_error(values) == pytest.approx(robust * math.sqrt(5 / 4), rel=1e-12)
    assert standard_error([0.0, 1.0]) == 0.5
    with pytest.raises(ValueError, match="two questions"):
        standard_error([0.5])


def test_bootstrap_is_the_t_interval_of_many_even_values_and_follows_skew():
    even = np.linspace(0, 1, 400).tolist()
    lo, hi = bootstrap(even, seed=1)
    half = 1.96 * standard_error(even)
    assert (lo, hi) == pytest.approx((0.5 - half, 0.5 + half), abs=half / 20)
    assert bootstrap(even, seed=1) == (lo, hi) and bootstrap(even, seed=2) != (lo, hi)
    skewed = [0.02] * 37 + [1.0] * 3
    lo, hi = bootstrap(skewed)
    assert hi - np.mean(skewed) > 1.3 * (np.mean(skewed) - lo)
    assert bootstrap([0.25] * 4) == (0.25, 0.25) and bootstrap([0.25]) == (0.25, 0.25)


def test_the_interval_holds_the_truth_of_mostly_hard_questions():
    """30 questions x 16 samples, one question in five answerable: an effective sample size misses."""
    rng = np.random.default_rng(5)
    truth, trials = 0.8 * 0.02 + 0.2 * 0.6, 600
    p = np.where(rng.random((trials, 30)) < 0.2, 0.6, 0.02)
    right = rng.binomial(16, p)
    counts = np.stack([np.bincount(row, minlength=17) for row in right]).astype(float)
    lo, hi = mean_interval(np.arange(17) / 16, counts)
    assert 0.93 <= np.mean((lo <= truth) & (truth <= hi)) <= 0.985

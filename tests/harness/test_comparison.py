import math
import random
from itertools import product

import numpy as np
import pytest

from posttrain.evaluate.metrics import paired
from posttrain.harness.comparison import compare, difference_interval, mcnemar, questions_needed, sign_flips


def test_verdicts_are_compared_by_mcnemar_and_tango():
    a = [1, 1, 0, 0, 0, 0, 1, 0]
    b = [1, 0, 1, 1, 1, 0, 1, 1]
    assert compare(a, b) == {
        "difference": 3 / 8,
        "ci95": list(paired(4, 1, 8)),
        "p": mcnemar(4, 1),
        "test": "mcnemar",
        "n": 8,
        "gained": 4,
        "lost": 1,
    }
    other = compare(b, a)
    assert (other["difference"], other["p"]) == (-3 / 8, mcnemar(4, 1))


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (1, 0), (0, 6), (4, 1), (5, 5), (13, 4)])
def test_mcnemar_is_the_binomial_test(gained, lost):
    changed = gained + lost
    far = [i for i in range(changed + 1) if abs(2 * i - changed) >= abs(gained - lost)]
    assert mcnemar(gained, lost) == pytest.approx(sum(math.comb(changed, i) for i in far) / 2**changed)


def test_mcnemar_of_large_and_of_impossible_counts():
    z = (5100 - 4900 - 1) / math.sqrt(10_000)  # the normal approximation with its continuity correction
    assert mcnemar(5100, 4900) == pytest.approx(math.erfc(z / math.sqrt(2)), rel=1e-3)
    with pytest.raises(ValueError, match="counts"):
        mcnemar(-1, 3)


def test_sign_flips_tries_every_choice_of_signs():
    rng = random.Random(0)
    for _ in range(20):
        values = [rng.choice([-0.5, 0.0, 0.1, 0.2, 0.3, 1.0]) for _ in range(rng.randint(1, 9))]
        sums = [abs(sum(s * v for s, v in zip(signs, values, strict=True)))
                for signs in product((-1, 1), repeat=len(values))]  # fmt: skip
        wanted = np.mean([total >= abs(sum(values)) - 1e-9 for total in sums])
        assert sign_flips(values) == pytest.approx(wanted, abs=1e-12)
    # With differences of one size it is McNemar's test.
    assert sign_flips([0.25] * 9 + [-0.25] * 3) == mcnemar(9, 3)
    assert sign_flips([0.1] * 6) == 2 / 2**6 and sign_flips([0.1]) == 1.0
    assert sign_flips([0.0] * 5) == 1.0 and sign_flips([]) == 1.0


def test_sign_flips_of_many_questions_are_drawn_and_seeded():
    values = [0.25] * 30 + [-0.25] * 15
    p = sign_flips(values, seed=1)
    assert p == pytest.approx(mcnemar(30, 15), abs=0.006)
    assert p == sign_flips(values, seed=1)
    assert sign_flips([0.1] * 200, draws=99) == 0.01  # never 0
    with pytest.raises(ValueError, match="NaN"):
        sign_flips([0.1, math.nan])


def test_a_few_finer_values_are_compared_by_drawn_weights_and_flipped_signs():
    a, b = [0.25, 0.5, 0.75, 0.0, 0.5, 0.25], [0.5, 0.75, 0.75, 0.25, 0.25, 0.25]
    got = compare(a, b)
    differences = np.array([0.25, 0.25, 0.0, 0.25, -0.25, 0.0])
    # The values lie between 0 and 0.75: so far may two models differ on a question that was not asked.
    weights = np.random.default_rng(0).dirichlet([1.0] * 6 + [0.25, 0.25], size=100_000)
    drawn = weights @ np.concatenate([differences, [0.75, -0.75]])
    lo, hi = got["ci95"]
    assert (drawn > hi).mean() == pytest.approx(0.025, abs=0.003)
    assert (drawn < lo).mean() == pytest.approx(0.025, abs=0.003)
    assert got["p"] == sign_flips(differences.tolist())
    assert (got["test"], got["gained"], got["lost"], got["n"]) == ("signs", 3, 1, 6)
    assert got["difference"] == pytest.approx(0.5 / 6)


def test_few_questions_that_differ_much_widen_the_side_on_which_they_lie():
    """27 questions alike and 3 won by far: Student's t is as wide on both sides, which misses too often."""
    differences = np.array([0.01, -0.01, 0.0] * 9 + [0.8, 0.6, 0.9])
    before, after = np.full((1, 30), 0.05), 0.05 + differences[None]
    (lo,), (hi,) = difference_interval(before, after)
    mean, half = differences.mean(), 2.04523 * differences.std(ddof=1) / math.sqrt(30)
    assert lo < mean < mean + half < hi
    assert hi - mean > 1.3 * (mean - lo)
    (low,), (high,) = difference_interval(after, before)
    assert (low, high) == pytest.approx((-hi, -lo), abs=1e-7)


def test_questions_that_differ_among_each_other_allow_for_models_that_do():
    """The same small differences: between questions all hard they are all there is, between hard and easy
    ones a question may turn from one into the other."""
    small = np.array([[0.02, -0.02, 0.0] * 10])
    hard = np.full((1, 30), 0.05)
    mixed = np.where(np.arange(30) % 2, 0.05, 0.95)[None]
    of_hard, of_mixed = (difference_interval(a, a + small) for a in (hard, mixed))
    assert -0.01 < of_hard[0][0] < 0 < of_hard[1][0] < 0.01
    assert of_mixed[1][0] > 0.04 and of_mixed[0][0] < -0.04


def test_intervals_of_many_pairs_are_those_of_each():
    rng = np.random.default_rng(4)
    a, b = rng.binomial(4, 0.4, size=(2, 5, 20)) / 4
    lo, hi = difference_interval(a, b)
    for i in range(5):
        assert compare(a[i].tolist(), b[i].tolist())["ci95"] == pytest.approx([lo[i], hi[i]], abs=1e-9)


def test_nothing_changed_one_question_and_all_changed():
    for value in (0.0, 1.0, 0.25):
        same = compare([value] * 50, [value] * 50)
        assert same["p"] == 1.0 and same["ci95"][0] < -0.03 and same["ci95"][1] > 0.03
    one = compare([0.25], [0.75])
    assert one["p"] == 1.0 and one["ci95"][0] < -0.7 and 0.9 < one["ci95"][1] < 1
    won = compare([0] * 12, [1] * 12)
    assert won["difference"] == 1.0 and won["ci95"][1] == 1.0 and won["p"] == 2 / 2**12


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        ([], [], "no questions"),
        ([0.5], [0.5, 0.5], "same questions"),
        ([0.5, math.nan], [0.5, 0.5], "between"),
        ([2.0], [0.5], "between"),
    ],
)
def test_what_cannot_be_compared_is_refused(a, b, message):
    for function in (compare, lambda a, b: questions_needed(a, b, 0.1)):
        with pytest.raises(ValueError, match=message):
            function(a, b)


def test_equal_models_are_rarely_told_apart_and_the_interval_holds_the_difference():
    rng = np.random.default_rng(0)
    trials, false, covered = 400, 0, 0
    for trial in range(trials):
        p = rng.beta(0.5, 0.5, size=25)
        a, b = rng.binomial(4, p) / 4, rng.binomial(4, p) / 4
        got = compare(a.tolist(), b.tolist(), seed=trial, draws=199)
        false += got["p"] <= 0.05
        covered += got["ci95"][0] <= 0 <= got["ci95"][1]
    assert 0.02 <= false / trials <= 0.08
    assert 0.92 <= covered / trials <= 0.985


def test_the_questions_asked_for_give_the_power_asked_for():
    """Verdicts that change on 30% of the questions, 0.2 + 0.1: a true difference of 0.1."""
    rng = np.random.default_rng(1)
    changes = rng.choice([1.0, -1.0, 0.0], p=[0.2, 0.1, 0.7], size=4000)
    n = questions_needed((changes < 0).tolist(), (changes > 0).tolist(), 0.1)
    assert 220 < n < 270
    seen = 0
    for gained, lost, _ in rng.multinomial(n, [0.2, 0.1, 0.7], size=800):
        seen += mcnemar(gained.item(), lost.item()) <= 0.05
    assert 0.76 <= seen / 800 <= 0.84


def test_questions_needed_of_clear_cases():
    assert questions_needed([0] * 9, [1] * 9, 1.0) == 6  # 5 of 5 have p = 0.06
    few = questions_needed([0.5, 0.25] * 20, [0.5, 0.375] * 20, 0.05)
    many = questions_needed([0.5, 0.25] * 20, [0.5, 0.375] * 20, 0.01)
    assert 6 <= few < many
    assert questions_needed([0] * 9, [0] * 9, 0.5) > 6  # though nothing changed so far
    same = [0.0, 1.0] * 40
    assert questions_needed(same, same[::-1], 0.1, power=0.9) > questions_needed(same, same[::-1], 0.1)


@pytest.mark.parametrize(("size", "power"), [(0, 0.8), (-0.1, 0.8), (1.1, 0.8), (math.nan, 0.8), (0.1, 1.0)])
def test_questions_needed_refuses(size, power):
    with pytest.raises(ValueError, match="must lie"):
        questions_needed([0, 1], [1, 0], size, power)

import math
import random

import pytest

from posttrain.evaluate.metrics import Z95, disjoint, number, paired, proportion, wilson


def brute_wilson(successes: int, n: int) -> tuple[float, float]:
    """Scan p for the score test's acceptance region, then bisect its two ends."""
    p_hat = successes / n

    def inside(p: float) -> bool:
        return abs(p_hat - p) <= Z95 * math.sqrt(p * (1 - p) / n)

    def edge(accepted: float, rejected: float) -> float:
        for _ in range(80):
            middle = (accepted + rejected) / 2
            accepted, rejected = (middle, rejected) if inside(middle) else (accepted, middle)
        return accepted

    lo = 0.0 if p_hat == 0 else edge(p_hat, 0.0)
    hi = 1.0 if p_hat == 1 else edge(p_hat, 1.0)
    return lo, hi


@pytest.mark.parametrize(
    ("successes", "n"), [(0, 1), (1, 1), (0, 20), (20, 20), (1, 7), (13, 256), (128, 256), (999, 1000)]
)
def test_wilson_is_the_score_tests_acceptance_region(successes, n):
    assert wilson(successes, n) == pytest.approx(brute_wilson(successes, n), abs=1e-9)


def test_wilson_known_values():
    assert wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=5e-5)
    assert wilson(5, 10) == pytest.approx((0.2366, 0.7634), abs=5e-5)
    assert wilson(0, 0) == (0.0, 1.0)


def test_wilson_is_symmetric_and_contains_the_estimate():
    for n in (1, 2, 3, 10, 97, 10**9):
        for successes in {0, 1, n // 3, n}:
            lo, hi = wilson(successes, n)
            assert 0 <= lo <= successes / n <= hi <= 1
            assert (1 - hi, 1 - lo) == pytest.approx(wilson(n - successes, n), abs=1e-12)


@pytest.mark.parametrize(("successes", "n"), [(-1, 5), (6, 5), (0, -1)])
def test_wilson_refuses_impossible_counts(successes, n):
    with pytest.raises(ValueError, match="successes"):
        wilson(successes, n)


def test_proportion():
    got = proportion([True, False, False, True])
    assert got == {"accuracy": 0.5, "ci95": list(wilson(2, 4)), "n": 4}
    with pytest.raises(ValueError, match="no verdicts"):
        proportion([])


def brute_paired(gained: int, lost: int, n: int, d: float) -> bool:
    """Tango's test of a true difference d from its definition: the likelihood is climbed, not solved."""

    def likelihood(q: float) -> float:
        cells = ((gained, q + d), (lost, q), (n - gained - lost, 1 - 2 * q - d))
        return sum(count * math.log(max(p, 1e-300)) for count, p in cells if count)

    low, high = max(0.0, -d), (1 - d) / 2
    for _ in range(200):  # it is concave in q
        a, b = low + (high - low) / 3, high - (high - low) / 3
        low, high = (a, high) if likelihood(a) < likelihood(b) else (low, b)
    return abs(gained - lost - n * d) <= Z95 * math.sqrt(n * (2 * low + d - d * d))


@pytest.mark.parametrize(
    ("gained", "lost", "n"), [(0, 0, 64), (3, 0, 10), (0, 1, 44), (12, 5, 60), (40, 40, 256), (1, 9, 10)]
)
def test_paired_is_the_acceptance_region_of_the_score_test(gained, lost, n):
    lo, hi = paired(gained, lost, n)
    for end, step in ((lo, -1e-4), (hi, 1e-4)):
        assert brute_paired(gained, lost, n, end - step)
        assert not brute_paired(gained, lost, n, end + step)


def test_paired_of_nothing_changed_of_all_changed_and_mirrored():
    assert paired(0, 0, 0) == (-1.0, 1.0)
    lo, hi = paired(0, 0, 100)
    assert hi == pytest.approx(Z95**2 / (100 + Z95**2)) and lo == -hi  # wide although nobody changed
    lo, hi = paired(7, 0, 7)
    assert hi == 1.0 and 0 < lo < 1
    for n in (1, 2, 30, 10**6):
        for gained, lost in {(0, 0), (1, 0), (n // 2, n // 3), (n, 0)}:
            lo, hi = paired(gained, lost, n)
            assert -1 <= lo <= (gained - lost) / n <= hi <= 1
            assert (-hi, -lo) == pytest.approx(paired(lost, gained, n), abs=1e-9)


@pytest.mark.parametrize(("gained", "lost", "n"), [(-1, 0, 5), (0, -1, 5), (3, 3, 5), (0, 0, -1)])
def test_paired_refuses_impossible_counts(gained, lost, n):
    with pytest.raises(ValueError, match="gained"):
        paired(gained, lost, n)


def wald(gained: int, lost: int, n: int) -> tuple[float, float]:
    d = (gained - lost) / n
    half = Z95 * math.sqrt(max(0.0, (gained + lost) / n - d * d) / n)
    return d - half, d + half


def exact_coverage(interval, n: int, gain: float, loss: float) -> float:
    """The probability that an interval holds gain - loss, over every outcome of n problems."""
    total = 0.0
    for gained in range(n + 1):
        for lost in range(n + 1 - gained):
            lo, hi = interval(gained, lost, n)
            if lo <= gain - loss <= hi:
                ways = math.lgamma(n + 1) - math.lgamma(gained + 1) - math.lgamma(lost + 1)
                ways -= math.lgamma(n - gained - lost + 1)
                rest = n - gained - lost
                total += math.exp(
                    ways + gained * math.log(gain) + lost * math.log(loss) + rest * math.log(1 - gain - loss)
                )
    return total


def test_paired_covers_the_truth_where_the_textbook_interval_does_not():
    truths = [(0.02, 0.01), (0.05, 0.01), (0.1, 0.1), (0.2, 0.05), (0.5, 0.02), (0.3, 0.3)]
    score = [exact_coverage(paired, 30, *truth) for truth in truths]
    assert min(score) > 0.93
    assert 0.94 < sum(score) / len(score) < 0.98
    assert exact_coverage(wald, 30, 0.02, 0.01) < 0.7


def test_paired_covers_two_models_that_agree_on_most_problems():
    """256 problems; two models share most of their luck. Two Wilson intervals, held against each other,
    hardly ever see a gain of 6 points; the paired one mostly does."""
    rng = random.Random(1)
    covered = seen = seen_apart = 0
    trials = 400
    for _ in range(trials):
        before, after = [], []
        for _ in range(256):
            luck = rng.random()
            before.append(luck < 0.4)
            after.append(luck < 0.5 if rng.random() < 0.9 else luck < 0.1)
        # P(gain) = 0.9 * 0.1, P(loss) = 0.1 * 0.3
        gained = sum(b and not a for a, b in zip(before, after, strict=True))
        lost = sum(a and not b for a, b in zip(before, after, strict=True))
        lo, hi = paired(gained, lost, 256)
        covered += lo <= 0.06 <= hi
        seen += lo > 0
        seen_apart += disjoint(wilson(sum(before), 256), wilson(sum(after), 256))
    assert 0.92 <= covered / trials <= 0.98
    assert seen / trials > 0.6
    assert seen_apart / trials < 0.05


def test_disjoint():
    assert disjoint([0.1, 0.2], [0.3, 0.4])
    assert disjoint([0.3, 0.4], [0.1, 0.2])
    assert not disjoint([0.1, 0.3], [0.3, 0.4])  # touching ends share a point
    assert not disjoint([0.0, 1.0], [0.4, 0.5])


@pytest.mark.parametrize("value", [None, math.nan, math.inf, -math.inf, "0.5", True, [], {}, 10**400])
def test_number_refuses(value):
    assert number(value) is None


def test_number_accepts():
    assert number(3) == 3.0
    assert number(-0.5) == -0.5

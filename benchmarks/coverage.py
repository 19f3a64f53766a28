"""How often the 95% intervals of an evaluation hold the truth, and how often equal models seem to differ.

    python -m benchmarks.coverage [verdicts means comparisons power] [--trials 1000]

How hard questions are is drawn from mixtures of Beta distributions, from 5% right to 95%, and samples from
the questions; the truth is the mean over all questions, from the mixture itself. An honest 95% interval
holds it in 95% of the trials. Beside posttrain's intervals (posttrain.harness.intervals) stand others:

  clustered  Wilson's at the effective number of samples (Liang and Zeger's variance)
  t          mean and Student's t over questions
  BCa        the bootstrap over questions, of 1,000 draws and in 200 trials, for 30 and 100 questions
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from statistics import fmean

import numpy as np

from posttrain.evaluate.metrics import paired, wilson
from posttrain.harness.comparison import compare, difference_interval, questions_needed
from posttrain.harness.estimators import cons_at_k, pass_at_k
from posttrain.harness.intervals import Array, bootstrap, is_binary, mean_interval

Mixture = list[tuple[float, float, float]]  # weight and the two shapes of each Beta distribution

DIFFICULTY: dict[str, Mixture] = {
    "nearly all hard": [(1, 0.5, 9.5)],
    "hard or impossible": [(1, 0.1, 1.9)],
    "one in 20 easy": [(0.95, 0.3, 30), (0.05, 8, 2)],
    "hard": [(1, 1, 4)],
    "hard, a fifth easy": [(0.8, 0.3, 6), (0.2, 5, 2)],
    "even": [(1, 1, 1)],
    "middling": [(1, 5, 5)],
    "bimodal": [(1, 0.3, 0.3)],
    "half and half": [(0.5, 0.5, 8), (0.5, 8, 0.5)],
    "easy": [(1, 4, 1)],
    "nearly all easy": [(1, 9.5, 0.5)],
    "sure or easy": [(1, 1.9, 0.1)],
}
# Two models: with the first chance a question is as hard for both, else the second's is drawn on its own.
PAIRS = [
    ("hard", "hard", 0.7),
    ("nearly all hard", "nearly all hard", 0.7),
    ("nearly all easy", "nearly all easy", 0.9),
    ("bimodal", "half and half", 0.8),
    ("even", "middling", 0.0),
    ("one in 20 easy", "nearly all hard", 0.9),
    ("hard", "even", 0.5),
    ("bimodal", "easy", 0.8),
    ("half and half", "nearly all easy", 0.9),
]
QUESTIONS = (30, 100, 300, 1000)
STUDENT = {30: 2.0452, 100: 1.9842, 300: 1.9679, 1000: 1.9623}  # 97.5% quantiles, of one degree less
WIDE = (False, True, False, True, False)  # which columns of the comparisons hold widths
FEWER = 200  # trials of what takes long
LEAST, MOST = 0.03, 0.97  # truths beyond are counted apart: pass@8 of easy questions is 0.9999


def chances(mixture: Mixture, n: int) -> Array:
    """[n + 1] the probability of each number of right ones among n samples of a random question."""
    log = math.lgamma

    def beta_binomial(c: int, a: float, b: float) -> float:
        ways = log(n + 1) - log(c + 1) - log(n - c + 1)
        return math.exp(ways + log(c + a) + log(n - c + b) - log(n + a + b) + log(a + b) - log(a) - log(b))

    found = np.array([sum(w * beta_binomial(c, a, b) for w, a, b in mixture) for c in range(n + 1)])
    return found / found.sum()


def difficulties(rng: np.random.Generator, mixture: Mixture, size: tuple[int, int]) -> Array:
    weights, a, b = np.array(mixture).T
    which = rng.choice(len(mixture), p=weights / weights.sum(), size=size)
    return rng.beta(a[which], b[which])


def avg(n: int) -> Array:
    """[n + 1] a question's value by its number of right samples."""
    return np.arange(n + 1) / n


def passing(n: int, k: int) -> Array:
    return np.array([pass_at_k(n, c, k) for c in range(n + 1)])


def voting(n: int, k: int) -> Array:
    """Half of the wrong answers are one and the same, the others all differ."""
    found = []
    for c in range(n + 1):
        wrong = n - c
        groups = [0] * c + [1] * (wrong // 2) + list(range(2, 2 + wrong - wrong // 2))
        found.append(cons_at_k(groups, [True] * c + [False] * wrong, k))
    return np.array(found)


def metrics() -> dict[str, Array]:
    return {
        "avg@4": avg(4),
        "avg@16": avg(16),
        "avg@64": avg(64),
        "pass@8 of 16": passing(16, 8),
        "pass@8 of 64": passing(64, 8),
        "cons@8 of 64": voting(64, 8),
    }


def shown_ends(values: Array, counts: Array) -> tuple[Array, Array]:
    """`average` of posttrain.harness.intervals, for many trials at once."""
    lo, hi = mean_interval(values, counts)
    mean = counts @ values / counts.sum(axis=1)
    lo, hi = np.minimum(lo, mean), np.maximum(hi, mean)
    for i in np.flatnonzero(counts[:, (values > 0) & (values < 1)].sum(axis=1) == 0):
        lo[i], hi[i] = wilson(round(float(counts[i] @ values)), counts[i].sum())
    return lo, hi


def clustered_ends(values: Array, counts: Array) -> tuple[Array, Array]:
    """The ends of `clustered` from the counts of the values, for many trials at once."""
    questions, samples = counts.sum(axis=1), len(values) - 1
    p = counts @ values / questions
    spread, alone = counts @ values**2 / questions - p**2, p * (1 - p)
    ends = []
    for mean, variance, most, n in zip(p, spread / questions, alone, questions, strict=True):
        effective = n
        if most > 1e-12:
            effective = min(n * samples, max(1.0, most / variance if variance > 1e-15 else math.inf))
        ends.append(wilson(min(mean, 1.0) * effective, effective))
    lo, hi = np.array(ends).T
    return lo, hi


def student_ends(values: Array, counts: Array) -> tuple[Array, Array]:
    questions = counts.sum(axis=1)
    mean = counts @ values / questions
    variance = np.maximum(0, counts @ values**2 - questions * mean**2) / (questions - 1)
    half = STUDENT[int(questions[0])] * np.sqrt(variance / questions)
    return mean - half, mean + half


def bca_ends(values: Array, counts: Array) -> tuple[Array, Array]:
    rows = [np.repeat(values, row).tolist() for row in counts.astype(int)]
    lo, hi = np.array([bootstrap(row, seed, 1000) for seed, row in enumerate(rows)]).T
    return lo, hi


def paired_ends(a: Array, b: Array) -> tuple[Array, Array]:
    """The interval of `compare` from the values of both models, [trials, questions] each."""
    if not is_binary(a) or not is_binary(b):
        return difference_interval(a, b)
    counts = np.stack([(b > a).sum(axis=1), (b < a).sum(axis=1)], axis=1)
    kinds, which = np.unique(counts, axis=0, return_inverse=True)
    lo, hi = np.array([paired(int(gained), int(lost), a.shape[1]) for gained, lost in kinds])[which.ravel()].T
    return lo, hi


def student_pairs(a: Array, b: Array) -> tuple[Array, Array]:
    n, mean = a.shape[1], (b - a).mean(axis=1)
    half = STUDENT[n] * (b - a).std(axis=1, ddof=1) / math.sqrt(n)
    return mean - half, mean + half


def misses(ends: tuple[Array, Array], truth: float) -> str:
    """How often the interval holds the truth, and how often it lies above and below it."""
    above, below = (ends[0] > truth + 1e-12).mean(), (ends[1] < truth - 1e-12).mean()
    return f"{100 * (1 - above - below):.1f} ({100 * above:.1f} above, {100 * below:.1f} below)"


def share_inside(ends: tuple[Array, Array], truth: float) -> float:
    return float(((ends[0] <= truth + 1e-12) & (truth - 1e-12 <= ends[1])).mean())


def of_many(shares: list[float]) -> str:
    """The mean over the difficulties, and the lowest and the highest of them."""
    if not shares:
        return ""
    return f"{100 * fmean(shares):.1f} ({100 * min(shares):.1f} to {100 * max(shares):.1f})"


def cell(values: list[float], is_width: bool) -> str:
    return f"{fmean(values):.3f}" if is_width else of_many(values)


def verdicts(trials: int) -> str:
    """One sample a question. Not drawn: the coverage of each accuracy is a sum over the outcomes."""
    heads = ["questions", "no interval can"]
    for name in ("Wilson", "Jeffreys"):
        heads += [f"{name}, mean", "worst", "at an accuracy of", "in 93 to 97"]
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    accuracies = np.linspace(0.05, 0.95, 361)
    for n in QUESTIONS:
        right = np.arange(n + 1)
        logs = np.cumsum(np.log(np.maximum(1, right)))
        pmf = np.exp(
            (logs[n] - logs - logs[::-1])[None]
            + right * np.log(accuracies)[:, None]
            + (n - right) * np.log1p(-accuracies)[:, None]
        )
        shown = np.array([wilson(int(c), n) for c in right]).T
        beta = mean_interval(np.array([0.0, 1.0]), np.stack([n - right, right], axis=1).astype(float))
        cells = [f"{fmean(not can_hold(row) for row in pmf):.1%}"]
        for lo, hi in ((shown[0], shown[1]), beta):
            inside = (lo <= accuracies[:, None]) & (accuracies[:, None] <= hi)
            covered = (pmf * inside).sum(axis=1)
            worst = int(covered.argmin())
            cells += [f"{100 * covered.mean():.1f}", f"{100 * covered[worst]:.1f}"]
            cells += [f"{accuracies[worst]:.3f}", f"{((covered >= 0.93) & (covered <= 0.97)).mean():.0%}"]
        lines.append(f"| {n} | {' | '.join(cells)} |")
    return "\n".join(lines)


def can_hold(chance: Array) -> bool:
    """Whether any run of outcomes has a chance of 93 to 97% together. An interval whose ends rise with the
    outcome holds the truth for such a run, and where there is none, no such interval can be that good."""
    summed = np.concatenate([[0.0], np.cumsum(chance)])
    ends = np.searchsorted(summed, summed + 0.93)
    known = ends < len(summed)
    return bool((summed[ends[known]] - summed[known] <= 0.97).any())


def means(trials: int) -> str:
    """Several samples a question."""
    methods: dict[str, Callable[[Array, Array], tuple[Array, Array]]] = {
        "shown": shown_ends,
        "clustered": clustered_ends,
        "t": student_ends,
        "BCa": bca_ends,
    }
    rng = np.random.default_rng(0)
    lines = [f"| questions | metric | {' | '.join(methods)} |", "|---|---|" + "---|" * len(methods)]
    every: dict[str, list[float]] = {name: [] for name in methods}
    beyond, outside = {name: [] for name in methods}, []
    for n in QUESTIONS:
        for metric, values in metrics().items():
            found: dict[str, list[float]] = {name: [] for name in methods}
            for name, mixture in DIFFICULTY.items():
                chance = chances(mixture, len(values) - 1)
                truth = float(chance @ values)
                counts = rng.multinomial(n, chance, size=trials).astype(float)
                usual = LEAST <= truth <= MOST
                for method, ends in methods.items():
                    if method == "BCa" and n > 100:
                        continue
                    some = counts[:FEWER] if method == "BCa" else counts
                    made = ends(values, some)
                    share = share_inside(made, truth)
                    (found if usual else beyond)[method].append(share)
                    if method == "shown" and usual and not 0.93 <= share <= 0.97:
                        outside.append(f"{n} questions, {metric}, {name}: {misses(made, truth)}")
            lines.append(f"| {n} | {metric} | {' | '.join(of_many(s) for s in found.values())} |")
            for method, shares in found.items():
                every[method] += shares
    lines.append(f"| all | | {' | '.join(of_many(s) for s in every.values())} |")
    lines.append(f"| truth beyond {LEAST} and {MOST} | | {' | '.join(of_many(s) for s in beyond.values())} |")
    good = [f"{sum(0.93 <= s <= 0.97 for s in shares)} of {len(shares)}" for shares in every.values()]
    lines.append(f"| within 93 to 97 | | {' | '.join(good)} |")
    return "\n".join([*lines, "", "Shown, outside of 93 to 97:", *outside])


def comparisons(trials: int) -> str:
    """Two models on the same questions: the interval holds the true difference; if it is 0, p <= 0.05."""
    lines = ["| questions | metric | shown | width | t | width | false (of 5) |", "|---|---|" + "---|" * 5]
    rng = np.random.default_rng(1)
    outside, finer = [], {name: metrics()[name] for name in ("avg@4", "avg@64", "pass@8 of 16")}
    every: list[list[list[float]]] = []
    for n in QUESTIONS:
        for metric, values in {"verdict": avg(1), **finer}.items():
            samples = len(values) - 1
            found: list[list[float]] = [[] for _ in range(5)]
            for one, two, shared in PAIRS:
                before, after = (float(chances(DIFFICULTY[name], samples) @ values) for name in (one, two))
                truth = (1 - shared) * (after - before)
                first = difficulties(rng, DIFFICULTY[one], (trials, n))
                own = difficulties(rng, DIFFICULTY[two], (trials, n))
                second = np.where(rng.random((trials, n)) < shared, first, own)
                a, b = values[rng.binomial(samples, first)], values[rng.binomial(samples, second)]
                shown, plain = paired_ends(a, b), student_pairs(a, b)
                for ends, shares, widths in ((shown, *found[:2]), (plain, *found[2:4])):
                    shares.append(share_inside(ends, truth))
                    widths.append(float((ends[1] - ends[0]).mean()))
                if abs(truth) < 1e-9:
                    some = range(min(FEWER, trials))
                    found[4].append(fmean(compare(a[i], b[i], i, draws=199)["p"] <= 0.05 for i in some))
                if not 0.93 <= found[0][-1] <= 0.97:
                    named = f"{n} questions, {metric}, {one} and {two}"
                    outside.append(f"{named}: {misses(shown, truth)} (t {100 * found[2][-1]:.1f})")
            every.append(found)
            lines.append(f"| {n} | {metric} | {' | '.join(map(cell, found, WIDE))} |")
    total = [[share for found in every for share in found[i]] for i in range(5)]
    lines.append(f"| all | | {' | '.join(map(cell, total, WIDE))} |")
    good = [f"{sum(0.93 <= share <= 0.97 for share in total[i])} of {len(total[i])}" for i in (0, 2)]
    lines.append(f"| within 93 to 97 | | {good[0]} | | {good[1]} | | |")
    return "\n".join([*lines, "", "Shown, outside of 93 to 97:", *outside])


def power(trials: int) -> str:
    """A pilot of 300 questions asks for a number of questions, and so many are drawn: how often p <= 0.05."""
    lines = ["| metric | difference | asked for (median) | seen (of 80) |", "|---|---|---|---|"]
    rng = np.random.default_rng(2)
    for samples in (1, 4, 16):
        for up, down in ((0.08, 0.03), (0.2, 0.1), (0.3, 0.1)):
            # The second model is better on some questions and worse on others, by 60 points, else alike.
            def pair(n: int, samples: int = samples, up: float = up, down: float = down) -> tuple[list, list]:
                change = rng.choice([1, -1, 0], p=[up, down, 1 - up - down], size=n)
                alike = rng.beta(0.3, 0.3, size=n)
                first = np.where(change == 1, 0.2, np.where(change == -1, 0.8, alike))
                second = np.where(change == 1, 0.8, np.where(change == -1, 0.2, alike))
                a, b = (rng.binomial(samples, p) / samples for p in (first, second))
                return a.tolist(), b.tolist()

            size = 0.6 * (up - down)
            asked = sorted(questions_needed(*pair(300), size) for _ in range(51))
            needed = asked[25]
            seen = fmean(compare(*pair(needed), seed=i, draws=999)["p"] <= 0.05 for i in range(trials))
            lines.append(f"| avg@{samples} | {size:.2f} | {needed} | {100 * seen:.1f} |")
    return "\n".join(lines)


PARTS = {"verdicts": verdicts, "means": means, "comparisons": comparisons, "power": power}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="part", help=f"of {', '.join(PARTS)} (default: all)")
    parser.add_argument("--trials", type=int, default=1000, help="of each cell (default 1000)")
    options = parser.parse_args()
    if options.trials < 1:
        parser.error("--trials is 1 or more")
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"no part {', '.join(sorted(unknown))}: there are {', '.join(PARTS)}")
    for name in options.parts or PARTS:
        print(f"## {name}: {PARTS[name].__doc__}\n\n{PARTS[name](options.trials)}\n", flush=True)


if __name__ == "__main__":
    main()

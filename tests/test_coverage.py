"""The simulation of coverage measures what posttrain shows: its fast twins are held against the real ones."""

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import coverage
from posttrain.evaluate.metrics import wilson
from posttrain.harness.comparison import compare
from posttrain.harness.intervals import average


def clustered(groups: list[list[bool]]) -> list[float]:
    """Wilson's interval at the effective sample size of Liang and Zeger's variance of the mean."""
    total, n = sum(map(len, groups)), len(groups)
    p = sum(map(sum, groups)) / total
    variance = sum((sum(group) - p * len(group)) ** 2 for group in groups) / total**2
    effective = n if p in (0, 1) else total if not variance else p * (1 - p) / variance
    effective = max(1.0, min(effective, total))
    return list(wilson(p * effective, effective))


def test_the_twins_for_many_trials_are_the_functions_that_are_shown():
    rng = np.random.default_rng(0)
    values = coverage.avg(8)
    counts = rng.multinomial(30, coverage.chances(coverage.DIFFICULTY["hard"], 8), size=4)
    counts = np.concatenate([counts, [[20, 0, 0, 0, 0, 0, 0, 0, 10], [0, 0, 0, 0, 0, 0, 0, 0, 30]]])
    shown = np.stack(coverage.shown_ends(values, counts.astype(float)), axis=1)
    old = np.stack(coverage.clustered_ends(values, counts.astype(float)), axis=1)
    for row, ends, before in zip(counts, shown, old, strict=True):
        right = np.repeat(np.arange(9), row)
        assert average((right / 8).tolist())["ci95"] == pytest.approx(ends, abs=1e-9)
        groups = [[True] * int(c) + [False] * (8 - int(c)) for c in right]
        assert clustered(groups) == pytest.approx(before, abs=1e-9)


def test_the_twin_of_a_comparison_is_what_is_shown():
    rng = np.random.default_rng(2)
    for samples in (1, 4):
        a, b = rng.binomial(samples, 0.5, size=(2, 6, 30)) / samples
        ends = np.stack(coverage.paired_ends(a, b), axis=1)
        for one, two, both in zip(a, b, ends, strict=True):
            assert compare(one.tolist(), two.tolist())["ci95"] == pytest.approx(both, abs=1e-9)


@pytest.mark.parametrize(("p", "possible"), [(0.0545, False), (0.5, True), (0.2, True)])
def test_where_no_interval_of_verdicts_can_be_right(p, possible):
    """Every run of the 31 outcomes is tried."""
    chance = np.array([math.comb(30, c) * p**c * (1 - p) ** (30 - c) for c in range(31)])
    runs = [chance[i:j].sum() for i in range(31) for j in range(i + 1, 32)]
    assert any(0.93 <= run <= 0.97 for run in runs) is possible
    assert coverage.can_hold(chance) is possible


def test_chances_are_those_of_drawn_questions():
    rng = np.random.default_rng(1)
    for name in ("one in 20 easy", "bimodal"):
        mixture = coverage.DIFFICULTY[name]
        drawn = rng.binomial(4, coverage.difficulties(rng, mixture, (1, 40_000))[0])
        shares = np.bincount(drawn, minlength=5) / 40_000
        assert shares == pytest.approx(coverage.chances(mixture, 4), abs=0.01)


def test_the_command_prints_a_table_and_refuses_what_it_does_not_know():
    root = Path(__file__).parents[1]

    def run(*options):
        command = [sys.executable, "-m", "benchmarks.coverage", *options]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=root)

    done = run("verdicts", "--trials", "1")
    assert done.returncode == 0, done.stderr
    rows = [line.split("|") for line in done.stdout.splitlines() if line.startswith("| 1000")]
    assert float(rows[0][3]) == pytest.approx(95.0, abs=0.3)
    for options in (["accuracies"], ["--trials", "0"]):
        assert run(*options).returncode == 2

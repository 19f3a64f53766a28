"""The side-by-side benchmark runs, checks that both sides did the same work, and writes its results."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "step_vs_trl.py"


def bench(*options):
    return subprocess.run(
        [sys.executable, str(SCRIPT), *options],
        capture_output=True,
        text=True,
        timeout=280,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )


@pytest.mark.slow
def test_a_step_of_each_side_on_the_tiny_model(tmp_path):
    done = bench(
        "--model", "tiny", "--tokens", "4", "--repeats", "1", "--modes", "fixed", "--out", str(tmp_path)
    )
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads((tmp_path / "results.json").read_text())
    assert [step["tokens"] for step in result["steps"]] == [4 * 8 * 4] * 2
    assert {row["side"] for row in result["summary"]} == {"posttrain", "trl"}
    assert all(0 < step["generate"] < step["seconds"] for step in result["steps"])
    seconds = {row["side"]: row["seconds"] for row in result["summary"]}
    assert result["ratios"]["step_vs_trl"] == pytest.approx(seconds["trl"] / seconds["posttrain"], abs=0.006)
    assert set(result["ratios"]) == {"step_vs_trl", "rollouts_vs_trl", "update_vs_trl", "memory_vs_trl"}
    assert "| fixed | trl |" in (tmp_path / "RESULTS.md").read_text()


@pytest.mark.parametrize("options", [["--repeats", "0"], ["--modes", "fast"], ["--sides", "trl"]])
def test_what_cannot_be_measured_is_refused(options):
    done = bench(*options)
    assert done.returncode == 2
    assert "error:" in done.stderr

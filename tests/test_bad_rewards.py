"""One run whose reward goes wrong in every way: it ends well, and its record and report count each of them.

`tests/test_pipeline.py` has a run for each kind of bad reward by itself.
"""

from __future__ import annotations

import html
import json
import re
from collections import Counter
from pathlib import Path

import pytest

from posttrain.pipeline import run
from posttrain.recipe import load_recipe

pytestmark = pytest.mark.usefixtures("home", "one_process")

# Whole batches fail, so each completion is scored by itself; a file counts the calls, since a child that
# hangs is killed and forgets.
MINE = """
import time
from pathlib import Path

NOTE = Path(__file__).with_name("calls")

def mine(completions, **columns):
    if len(completions) > 1:
        raise RuntimeError("a batch")
    calls = len(NOTE.read_text()) if NOTE.exists() else 0
    NOTE.write_text("x" * (calls + 1))
    kind = calls % 6
    if kind == 0:
        return [float(calls % 4)]
    if kind == 1:
        raise ValueError("no such thing")
    if kind == 2:
        time.sleep(600)
    return {3: [float("nan")], 4: [None], 5: []}[kind]
"""
REASONS = {
    "mine: ValueError: no such thing (mine.py:16)": 1,
    "mine: hung for more than 1 s": 2,
    "mine: returned nan": 3,
    "no reward applied (None)": 4,
    "mine: returned 0 values for 1 completions": 5,
}


def test_a_run_with_all_of_them(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    folder = run(
        load_recipe(
            "tiny/tiny",
            [
                f"output={tmp_path / 'run'}",
                f"rewards.0={{use: {tmp_path / 'mine.py'}:mine}}",
                "model.compute=float32",
                "train.steps=3",
                "train.rounds=1",
                "evaluate.every=0",
                "evaluate.samples=0",
                "reward_deadline=1.0",
            ],
        )
    )
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    steps = [record for record in map(json.loads, lines) if "reward" in record]
    assert [record["step"] for record in steps] == [1, 2, 3]
    calls = len((tmp_path / "calls").read_text())
    assert calls == 4 * sum(record["groups"] for record in steps) >= 24
    expected = {reason: len(range(kind, calls, 6)) for reason, kind in REASONS.items()}
    counted = sum((Counter(record["reward_failures"]) for record in steps), Counter())
    assert counted == {reason: n for reason, n in expected.items() if reason.startswith("mine")}
    masked = sum(record["masked_rows"] for record in steps)
    assert masked == sum(expected.values()) == calls - len(range(0, calls, 6))

    page = (folder / "report.html").read_text(encoding="utf-8")
    assert f"{masked} of {calls} training completions had no reward" in page
    rows = re.findall(r"<tr><td>([^<]+)</td><td>(\d+)</td></tr>", page)
    assert {html.unescape(reason): int(n) for reason, n in rows} == expected
    assert json.loads((folder / "result.json").read_text())["steps"] == 3
    assert (folder / "model" / "model.safetensors").is_file()

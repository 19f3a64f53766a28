"""A run that finds a hole in its reward is told of, with the steps and samples; an honest one is not."""

from __future__ import annotations

import json
import math
import random
import re
from pathlib import Path
from typing import Any

import pytest

from posttrain.evaluate.report import write_report
from posttrain.evaluate.runfolder import read_run
from posttrain.evaluate.suspicion import suspicion_lines, suspicions

RECIPE = """\
rewards:
  - {use: accuracy, weight: 1.0}
  - {use: form, weight: 0.1}
  - {use: ./strict.py, weight: 0.0}
"""


def run_of(
    folder: Path, hacked: Any, steps: int = 60, same: str = "", length: Any = lambda step: 50.0
) -> list[str]:
    """4 groups of 8 a step; `hacked(step)`: the share of completions that are paid for nothing."""
    rng = random.Random(0)
    metrics, samples = [], []
    for step in range(1, steps + 1):
        rows = []
        for group in range(4):
            for _ in range(8):
                right = float(rng.random() < 0.2 + 0.3 * step / steps)
                paid = 1.0 if rng.random() < hacked(step) else right
                said = same or "".join(rng.choices("abcdefgh ", k=60))
                parts = {"accuracy": paid, "form": float(rng.random() < 0.5), "strict": right}
                rows.append(parts)
                samples.append(
                    {"step": step, "phase": "train", "id": f"p{step}-{group}", "completion": said}
                    | {"parts": parts, "total": paid + 0.1 * parts["form"]}
                )
        means = {f"reward/{k}": sum(r[k] for r in rows) / len(rows) for k in rows[0]}
        long = length(step) + rng.gauss(0, 1)
        metrics.append({"step": step, **means, "tokens": 32 * long, "length": long})
    (folder / "recipe.yaml").write_text(RECIPE)
    for name, records in (("metrics", metrics), ("samples", samples)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    return suspicions(read_run(folder))


def test_an_honest_run_is_left_alone(tmp_path):
    assert run_of(tmp_path, lambda step: 0.0) == []
    assert "gamed" not in write_report(tmp_path).read_text()
    assert suspicion_lines(tmp_path) == []


def test_a_hole_is_told_of_with_its_steps_samples_and_reward(tmp_path):
    signs = run_of(tmp_path, lambda step: 1 / (1 + math.exp(-0.3 * (step - 40))))
    assert len(signs) == 2
    first, rise = signs
    assert first.startswith("accuracy pays ") and "more than strict" in first
    since = int(first.split("since step ")[1].split(".")[0])
    assert 28 <= since <= 42
    assert "In samples.jsonl look at: step " in first
    assert rise.startswith("The rise of the reward comes from: accuracy ")
    page = write_report(tmp_path).read_text()
    assert "Is a reward being gamed?" in page and "more than strict" in page


def test_one_text_for_every_prompt_is_told_of(tmp_path):
    signs = run_of(tmp_path, lambda step: 0.0, same="the marker and nothing else")
    assert "100% of the best-paid completions" in signs[0]


def test_brief_answers_are_alike_by_chance(tmp_path):
    assert run_of(tmp_path, lambda step: 0.0, same="[44, 27, 73, 50]") == []


@pytest.mark.parametrize(("end", "told"), [(20.0, True), (120.0, True), (60.0, False)])
def test_a_length_that_jumps_is_told_of(tmp_path, end, told):
    signs = run_of(tmp_path, lambda step: 0.0, length=lambda step: 50.0 if step < 40 else end)
    found = [re.search(r"from 50 to (\d+) tokens since step (\d+)", sign) for sign in signs]
    assert [abs(int(m[1]) - end) <= 15 and 36 <= int(m[2]) <= 41 for m in found if m] == [True] * told


def test_records_that_do_not_fit_say_nothing(tmp_path):
    (tmp_path / "recipe.yaml").write_text("rewards: [1, {use: accuracy, weight: .nan}]")
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "reward/a": NaN, "length": null}\n{"step": 2}\n')
    (tmp_path / "samples.jsonl").write_text('{"phase": "train", "parts": 3, "total": "x"}\n')
    assert suspicions(read_run(tmp_path)) == []
    (tmp_path / "metrics.jsonl").write_text("")
    assert suspicions(read_run(tmp_path)) == []


def test_the_terminal_has_a_line_for_each_sign(tmp_path):
    signs = run_of(tmp_path, lambda step: float(step >= 40), length=lambda step: 50.0 if step < 40 else 20.0)
    paid, length = suspicion_lines(tmp_path)
    assert len(signs) == 3, "the report has one more, of which reward rose"
    assert re.fullmatch(
        r"gamed\?    accuracy pays 0\.\d\d more than strict, which nothing is trained on, since step (39|4\d)"
        r"; see samples\.jsonl, (step \d+, prompt p\d+-\d(; )?)+",
        paid,
    )
    assert re.fullmatch(
        r"gamed\?    Completions went from 50 to \d+ tokens since step \d+; see the report", length
    )


def test_a_prompts_id_does_not_move_the_cursor(tmp_path):
    run_of(tmp_path, lambda step: 0.0, same="the marker and nothing else")
    samples = tmp_path / "samples.jsonl"
    samples.write_text(samples.read_text().replace('"id": "p', '"id": "\\u001b[2J\\np'))
    (line,) = suspicion_lines(tmp_path)
    assert line.isprintable() and "prompt  [2J p" in line

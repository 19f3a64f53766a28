"""A short run with a model that sees, from its recipe to its report."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest

from posttrain.evaluate import looking
from posttrain.pipeline import run
from posttrain.recipe import load_recipe

RECIPE = """\
name: sees
output: {output}
model:
  name: tiny
  compute: float32
  vision: {{tower: vit, settings: {{image_size: 16, patch: 8, width: 16, depth: 1, heads: 2}}}}
data:
  images: [image]
  train: {{source: "scenes:count", size: 4, seed: 1}}
  heldout: {{source: "scenes:count", size: 6, seed: 2}}
rewards: [{{use: count}}]
sampling: {{completions: 2, max_tokens: 4}}
train: {{steps: 2, prompts: 1, rounds: 1}}
evaluate: {{every: 1, samples: 0}}
"""


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def started(tmp_path: Path) -> Path:
    (tmp_path / "sees.yaml").write_text(RECIPE.format(output=tmp_path / "run"))
    return run(load_recipe(str(tmp_path / "sees.yaml")))


@pytest.mark.slow
def test_a_run_tells_whether_its_model_looks(tmp_path: Path) -> None:
    folder = started(tmp_path)
    result = json.loads((folder / "result.json").read_text())
    for phase in ("before", "after"):
        assert result[phase]["blank"]["n"] == result[phase]["blank"]["paired"]["n"] == 6
        assert result[phase]["shuffled"]["paired"]["n"] <= 6
        assert result[phase]["tower"]["images"] == 6 and result[phase]["tower"]["tokens"] == 24
    heldout = {line["step"]: line["heldout"] for line in lines(folder / "metrics.jsonl") if "heldout" in line}
    assert "tower" in heldout[1] and "blank" not in heldout[1], "between, only the tower is looked at"
    samples = lines(folder / "samples.jsonl")
    assert all(len(sample["pictures"]) == 1 for sample in samples)
    assert max(len(json.dumps(sample)) for sample in samples) < 1000
    named = {sample["pictures"][0]["digest"] for sample in samples if sample["split"] == "heldout"}
    copies = {path.stem for path in (folder / "pictures").iterdir() if not path.stem.endswith("-looked")}
    assert copies == named and len(named) == 6
    page = (folder / "report.html").read_text()
    images = re.findall(r"data:image/\w+;base64,[\w+/=]+", page)
    assert len(images) == len(set(images)) >= 6


@pytest.mark.slow
def test_what_fails_while_looking_fails_no_run(tmp_path: Path, monkeypatch: Any, caplog: Any) -> None:
    def fails(*_: Any) -> None:
        raise RuntimeError("no such tower")

    monkeypatch.setattr(looking, "tower_tokens", fails)
    monkeypatch.setattr(looking, "keep_where_it_looked", fails)
    with caplog.at_level(logging.WARNING):
        folder = started(tmp_path)
    assert "could not be shown: RuntimeError: no such tower" in caplog.text
    result = json.loads((folder / "result.json").read_text())
    assert "blank" in result["after"] and "tower" not in result["after"]
    assert len([*(folder / "pictures").iterdir()]) == 6, "the rest is kept"
    assert (folder / "model" / "config.json").is_file() and (folder / "report.html").is_file()

"""Pictures through a recipe of stages, by the command line: learnt from, rewarded, asked about."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from posttrain import cli

pytest.importorskip("PIL")

pytestmark = pytest.mark.usefixtures("home", "one_process")

RECIPE = """\
name: eyes
model:
  name: tiny
  compute: float32
  vision:
    tower: vit
    settings: {image_size: 64, patch: 8, width: 64, depth: 2, heads: 4}
    connector: pixel_shuffle
    tokens: 16
data:
  train: {source: "scenes:count", size: 24, seed: 1}
  heldout: {source: "scenes:count", size: 6, seed: 2}
  images: [image]
rewards:
  - use: accuracy
    args: {form: last_number}
sampling: {completions: 4, max_tokens: 12}
evaluate: {samples: 1, max_tokens: 12, every: 0}
train: {learning_rate: 1e-3}
stages:
  - name: cold
    kind: sft
    completion: "The answer is: {answer}"
    train: {batch: 8, rates: {tower: 1e-4, connector: 3e-3}}
  - name: reason
    kind: grpo
    model: {name: "stage:cold"}
    train: {steps: 2, prompts: 2, tokens: 1024, rates: {tower: 0}}
  - name: asked
    kind: eval
    model: {name: "stage:reason"}
"""


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("model.vision.tower=vitt", "no kind of tower .*; did you mean 'vit'"),
        ("model.vision.settings.pach=8", "takes no 'pach'; did you mean 'patch'"),
        ("model.vision.connector=pixel_shufle", "did you mean 'pixel_shuffle'"),
        ("model.vision.tokens=15", "15"),
        ("model.vision={tower: navit, resize: native, most_pixels: 60}", "60 pixels do not hold one patch"),
        ("model.vision={tower: swin, resize: native}", "'swin' does not take one of 32 x 32 pixels"),
    ],
)
@pytest.mark.parametrize("kind", ["sft", "grpo", "eval", "sample"])
def test_eyes_that_cannot_be_are_told_before_anything_is_begun(
    kind: str, change: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, folder = tmp_path / "recipe.yaml", tmp_path / "run"
    shared, _, _ = RECIPE.partition("sampling:")
    more = ', completion: "{answer}"' if kind == "sft" else ""
    recipe.write_text(f"{shared}stages:\n  - {{name: only, kind: {kind}{more}}}\n")
    assert cli.main(["run", str(recipe), f"output={folder}", change]) == 2
    assert re.search(said, capsys.readouterr().err)
    assert not list(folder.glob("only-*/recipe.yaml")), "it would have begun"


def one(folder: Path, name: str) -> Path:
    (found,) = folder.glob(f"{name}-*")
    return found


def result(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text())


def test_stages_that_see(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    recipe, folder = tmp_path / "recipe.yaml", tmp_path / "run"
    recipe.write_text(RECIPE)
    given = ["run", str(recipe), f"output={folder}"]
    assert cli.main([*given, "--dry-run"]) == 0
    assert "# 1. cold (sft), new in" in capsys.readouterr().out
    assert cli.main([*given, "stages.cold.train.packing=true"]) == 2
    assert "stages.cold.train.packing: is true, but rows with pictures" in capsys.readouterr().err
    assert cli.main(given) == 0, capsys.readouterr().err
    cold, reason, asked = (one(folder, name) for name in ("cold", "reason", "asked"))
    assert result(cold)["steps"] == 3 and result(cold)["after"]["strict"]["n"] == 6
    assert result(reason)["before"] == result(cold)["after"], "it began with that model"
    assert result(asked)["after"] == result(reason)["after"]
    seen = (cold / "examples.txt").read_text()
    assert seen.startswith("<|user|><image>How many ") and seen.count("<image>") == 3
    assert "<|assistant|>«The answer is: " in seen
    assert (folder / "report.html").is_file()
    assert cli.main(given) == 0
    assert "every stage is done already" in caplog.text

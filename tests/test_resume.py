"""Killed at any moment, a run goes on to what it would have been, to the bit: weights, optimizer, records.

Kills are real SIGKILLs to a real process, at moments drawn at random over the length of an uninterrupted run.
"""

from __future__ import annotations

import gc
import json
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from posttrain.past import RECORDS, held
from posttrain.pipeline import run, run_stages
from posttrain.plan import plan
from posttrain.recipe import Recipe, load_recipe
from posttrain.stages import Staged, load_stages
from posttrain.train import checkpoint
from posttrain.types import PosttrainError

pytestmark = pytest.mark.usefixtures("home", "one_process")

OVERRIDES = (
    "model.compute=float32",
    "train.steps=5",
    "train.checkpoint_every=1",
    "train.schedule=cosine",
    "train.weight_decay=0.1",
    "train.rounds=2",
    "evaluate.every=2",
)


def tiny(folder: Path, *overrides: str) -> Recipe:
    return load_recipe("tiny/tiny", [f"output={folder}", *OVERRIDES, *overrides])


def in_a_process(act: Callable[[], Any], **env: str) -> int:
    """Start `act` in a process of its own; its id. Exit status 7: it raised a PosttrainError."""
    pid = os.fork()
    if pid:
        return pid
    try:
        gc.freeze()  # what pytest imported takes a collection a quarter of a second to look through
        os.environ.update(env)
        act()
        status = 0
    except PosttrainError as error:
        print(error, file=sys.stderr, flush=True)
        Path(os.environ.get("SAID", os.devnull)).write_text(str(error))
        status = 7
    except BaseException:
        status = 1
    os._exit(status)


def in_two_processes(act: Callable[[], Any]) -> list[int]:
    """Start `act` in two processes that find each other, as `accelerate launch` would; their ids."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(taken.getsockname()[1]), "WORLD_SIZE": "2"}
    return [in_a_process(act, **place, RANK=rank, LOCAL_RANK=rank) for rank in ("0", "1")]


def wait(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def told(folder: Path, name: str) -> list[dict[str, Any]]:
    """Every record of a file, in order, without what hangs on the clock."""
    timed = ("seconds", "time", "tokens_per_second")
    lines = (folder / name).read_text(encoding="utf-8").splitlines()
    return [
        {key: value for key, value in json.loads(line).items() if not any(word in key for word in timed)}
        for line in lines
    ]


def same(one: Path, other: Path) -> None:
    for name in RECORDS:
        assert told(one, name) == told(other, name), name
    a, b = (checkpoint.found(folder / "checkpoints") for folder in (one, other))
    assert [path.name for path in a] == [path.name for path in b]
    ours, theirs = (load_file(folder / "model" / "model.safetensors") for folder in (one, other))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
    states = [torch.load(p[-1] / checkpoint.OPTIMIZER, weights_only=True)["state"] for p in (a, b)]
    for key, state in states[0].items():
        assert all(torch.equal(value, states[1][key][name]) for name, value in state.items())
    results = [json.loads((folder / "result.json").read_text()) for folder in (one, other)]
    for key in ("before", "after", "steps", "inputs"):
        assert results[0][key] == results[1][key]


slow = pytest.mark.slow


@dataclass(frozen=True)
class Whole:
    """A run that nothing interrupted, and how long it took, in seconds."""

    folder: Path
    length: float


def timed(act: Callable[[Path], Any], folder: Path, home: Path) -> Whole:
    start = time.monotonic()
    assert wait(in_a_process(lambda: act(folder), POSTTRAIN_HOME=str(home))) == 0
    return Whole(folder, time.monotonic() - start)


@pytest.fixture(scope="module")
def whole(_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    return timed(lambda folder: run(tiny(folder)), tmp_path_factory.mktemp("tiny") / "whole", _home)


@pytest.fixture(scope="module")
def whole_stages(_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    folder = tmp_path_factory.mktemp("stages") / "whole"
    return timed(lambda folder: run_stages(staged(folder)), folder, _home)


@pytest.mark.parametrize(
    ("seed", "kills"), [(0, 4), *(pytest.param(seed, 10, marks=slow) for seed in (1, 2, 3))]
)
def test_killed_at_any_moment_it_ends_the_same(seed: int, kills: int, whole: Whole, tmp_path: Path) -> None:
    moments, seen = random.Random(seed), set()
    for number in range(kills):
        folder = tmp_path / f"run-{number}"
        pid = in_a_process(lambda folder=folder: run(tiny(folder)))
        time.sleep(whole.length * moments.random())
        os.kill(pid, signal.SIGKILL)
        seen.add(wait(pid))
        assert wait(in_a_process(lambda folder=folder: run(tiny(folder), resume=True))) == 0
        same(folder, whole.folder)
    assert -signal.SIGKILL in seen, "every run had ended before it was killed"


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_two_processes_killed_at_any_moment_end_the_same(seed: int, tmp_path: Path) -> None:
    kills = 5
    whole = tmp_path / "whole"
    start = time.monotonic()
    assert [wait(pid) for pid in in_two_processes(lambda: run(tiny(whole)))] == [0, 0]
    length = time.monotonic() - start
    assert json.loads((whole / "result.json").read_text())["processes"] == 2
    moments, seen = random.Random(seed), set()
    for number in range(kills):
        folder = tmp_path / f"run-{number}"
        pids = in_two_processes(lambda folder=folder: run(tiny(folder)))
        time.sleep(length * moments.random())
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        seen.update(map(wait, pids))
        again = in_two_processes(lambda folder=folder: run(tiny(folder), resume=True))
        assert [wait(pid) for pid in again] == [0, 0]
        same(folder, whole)
    assert -signal.SIGKILL in seen, "every run had ended before it was killed"


def test_killed_again_and_again(whole: Whole, tmp_path: Path) -> None:
    """One run, killed before it can end, however often that takes."""
    folder, moments, killed = tmp_path / "run", random.Random(1), 0
    for _ in range(50):
        pid = in_a_process(lambda: run(tiny(folder), resume=True))
        time.sleep(whole.length * moments.uniform(0.5, 1.0))
        os.kill(pid, signal.SIGKILL)
        if wait(pid) == 0:
            break
        killed += 1
    else:
        assert wait(in_a_process(lambda: run(tiny(folder), resume=True))) == 0
    assert killed
    same(folder, whole.folder)


def test_killed_before_old_checkpoints_are_dropped(tmp_path: Path) -> None:
    """The newest is written, and the one that it makes old still there."""
    folder = tmp_path / "run"
    assert wait(in_a_process(lambda: run(tiny(folder)))) == 0
    kept = checkpoint.found(folder / "checkpoints")
    shutil.copytree(kept[-1], kept[-1].with_name("step-000002"))
    (folder / "result.json").unlink()
    assert wait(in_a_process(lambda: run(tiny(folder), resume=True))) == 0
    assert checkpoint.found(folder / "checkpoints") == kept


STAGES = """\
name: stages
model: {name: tiny, compute: float32}
data:
  train:
    source: reasoning_gym:chain_sum
    args: {min_terms: 2, max_terms: 2, min_digits: 1, max_digits: 1}
    size: 64
    seed: 1
  heldout:
    source: reasoning_gym:chain_sum
    args: {min_terms: 2, max_terms: 2, min_digits: 1, max_digits: 1}
    size: 8
    seed: 2
rewards:
  - use: accuracy
    args: {form: last_number}
sampling: {completions: 4, max_tokens: 12}
evaluate: {samples: 1, max_tokens: 12, every: 2}
train: {learning_rate: 1e-3, checkpoint_every: 1}
stages:
  - {name: base, kind: eval}
  - name: cold
    kind: sft
    completion: "The answer is: {answer}"
    train: {epochs: 0.5, packing: true, max_length: 160, batch: 2, rows: 1}
  - name: reason
    kind: grpo
    model: {name: "stage:cold"}
    evaluate: {before: false}
    train: {steps: 3, prompts: 2, tokens: 1024, schedule: cosine}
  - name: good
    kind: sample
    model: {name: "stage:reason"}
    keep: {each: 2}
  - name: again
    kind: sft
    data: {train: {source: "stage:good"}}
    evaluate: {before: false}
    train: {batch: 4, rows: 2, max_length: 160}
  - name: served
    kind: export
    model: {name: "stage:again"}
"""
GIVEN = ("metrics.jsonl", "samples.jsonl", "rows.jsonl")


def staged(folder: Path) -> Staged:
    recipe = folder.with_name("stages.yaml")
    recipe.write_text(STAGES)
    return load_stages(str(recipe), [f"output={folder}"])


def same_stages(one: Path, other: Path) -> None:
    folders = [planned.folder for planned in plan(staged(one))]
    assert all((folder / "done.json").is_file() for folder in folders)
    assert sorted(path.name for path in one.iterdir()) == sorted(path.name for path in other.iterdir())
    for a, b in ((folder, other / folder.name) for folder in folders):
        assert sorted(path.name for path in a.iterdir()) == sorted(path.name for path in b.iterdir())
        for name in filter(lambda name: (a / name).exists(), GIVEN):
            assert told(a, name) == told(b, name), (a.name, name)
        if (a / "model").is_dir():
            ours, theirs = (load_file(folder / "model" / "model.safetensors") for folder in (a, b))
            assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
        results = [json.loads((folder / "result.json").read_text()) for folder in (a, b)]
        for key in ("before", "after", "steps", "inputs", "sampled"):
            assert results[0].get(key) == results[1].get(key)


@pytest.mark.parametrize(
    ("seed", "kills"), [(0, 2), *(pytest.param(seed, 6, marks=slow) for seed in range(1, 4))]
)
def test_stages_killed_at_any_moment_end_the_same(
    seed: int, kills: int, whole_stages: Whole, tmp_path: Path
) -> None:
    """Within a stage of any kind, between two, and while one's folder is made."""
    moments, seen = random.Random(seed), set()
    for number in range(kills):
        folder = tmp_path / f"run-{number}"
        pid = in_a_process(lambda folder=folder: run_stages(staged(folder)))
        time.sleep(whole_stages.length * moments.random())
        os.kill(pid, signal.SIGKILL)
        seen.add(wait(pid))
        assert wait(in_a_process(lambda folder=folder: run_stages(staged(folder)))) == 0
        same_stages(folder, whole_stages.folder)
    assert -signal.SIGKILL in seen, "every run had ended before it was killed"


def test_stages_killed_between_their_last_record_and_their_end_end_the_same(
    whole_stages: Whole, tmp_path: Path
) -> None:
    """As in the moment in which the report is written: all is there but the mark that it is done."""
    folder = tmp_path / "run"
    shutil.copytree(whole_stages.folder, folder)
    for planned in plan(staged(folder)):
        (planned.folder / "done.json").unlink()
    assert wait(in_a_process(lambda: run_stages(staged(folder)))) == 0
    same_stages(folder, whole_stages.folder)


@pytest.mark.slow
def test_stages_of_two_processes_killed_at_any_moment_end_the_same(tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    start = time.monotonic()
    assert [wait(pid) for pid in in_two_processes(lambda: run_stages(staged(whole)))] == [0, 0]
    length, moments = time.monotonic() - start, random.Random(1)
    for number in range(2):
        folder = tmp_path / f"run-{number}"
        pids = in_two_processes(lambda folder=folder: run_stages(staged(folder)))
        time.sleep(length * moments.random())
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            wait(pid)
        again = in_two_processes(lambda folder=folder: run_stages(staged(folder)))
        assert [wait(pid) for pid in again] == [0, 0]
        same_stages(folder, whole)


def test_a_finished_run_is_left_alone_at_once(tmp_path: Path) -> None:
    """No torch is loaded to find out, with --resume and without, and the summary is printed again."""
    folder = run(tiny(tmp_path / "run"))
    kept = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    code = (
        "import sys; from posttrain import cli; status = cli.main(sys.argv[1:]); "
        "assert 'torch' not in sys.modules; sys.exit(status)"
    )
    for given in ([], ["--resume"]):
        asked = ["run", "tiny/tiny", f"output={folder}", *OVERRIDES, *given]
        done = subprocess.run(
            [sys.executable, "-c", code, *asked], capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        assert done.stderr == f"{folder} is finished already: nothing to do\n"
        assert "5 steps in" in done.stdout
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == kept
    with pytest.raises(PosttrainError, match="holds a run already"):
        run(tiny(folder, "seed=1"))


def test_one_process_at_a_time_runs_in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAID", str(tmp_path / "said"))
    folder = tmp_path / "run"
    endless = tiny(folder, "train.steps=100000")
    first = in_a_process(lambda: run(endless))
    try:
        while not checkpoint.found(folder / "checkpoints"):
            time.sleep(0.02)
        assert wait(in_a_process(lambda: run(endless, resume=True))) == 7
    finally:
        os.kill(first, signal.SIGKILL)
        wait(first)
    assert "another process is running in" in (tmp_path / "said").read_text()
    with held(folder):
        pass  # free again at once, though the first was killed


def test_changed_rows_are_refused_and_named(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    lines = [json.dumps({"question": f"{a} + 2 = ?", "answer": str(a + 2)}) for a in range(20)]
    rows.write_text("\n".join(lines))
    drop = ("data.train.size=null", "data.train.seed=null", "data.train.args={}")
    held = "data.heldout={source: reasoning_gym:chain_sum, size: 4, seed: 2}"
    recipe = tiny(tmp_path / "run", f"data.train.source={rows}", *drop, held)
    pid = in_a_process(lambda: run(recipe))
    while not checkpoint.found(tmp_path / "run" / "checkpoints"):
        time.sleep(0.02)
    os.kill(pid, signal.SIGKILL)
    wait(pid)
    rows.write_text("\n".join([*lines[:-1], lines[-1].replace("19", "18")]))
    with pytest.raises(PosttrainError, match=r"data\.train: 20 rows, \w+ then, 20 rows, \w+ now"):
        run(recipe, resume=True)
    rows.write_text("\n".join(lines))
    assert run(recipe, resume=True) == tmp_path / "run"


def test_a_full_disk_leaves_the_last_checkpoint_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No file may grow over a limit: the system refuses the write, as it does on a full disk."""
    monkeypatch.setenv("SAID", str(tmp_path / "said"))
    folder, whole = tmp_path / "run", tmp_path / "whole"
    run(tiny(whole))
    size = (checkpoint.found(whole / "checkpoints")[-1] / checkpoint.OPTIMIZER).stat().st_size
    pid = in_a_process(lambda: run(tiny(folder)))
    while not checkpoint.found(folder / "checkpoints"):
        time.sleep(0.02)
    os.kill(pid, signal.SIGKILL)
    wait(pid)
    [*_, last] = checkpoint.found(folder / "checkpoints")

    def cramped() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, size // 2))
        run(tiny(folder), resume=True)

    assert wait(in_a_process(cramped)) == 7
    assert "cannot be written" in (tmp_path / "said").read_text()
    assert checkpoint.newest(folder / "checkpoints") == last
    assert wait(in_a_process(lambda: run(tiny(folder), resume=True))) == 0
    same(folder, whole)

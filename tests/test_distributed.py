"""Two processes train the policy that one process trains from the same global batch."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from posttrain import models
from posttrain.pipeline import run
from posttrain.recipe import load_recipe

REWARD = """
def even(completions, **columns):
    texts = [c[0]["content"] for c in completions]
    return [sum(ord(x) % 2 == 0 for x in text) / max(len(text), 1) for text in texts]
"""

CASES = {
    # Few groups carry signal, so a process is often left without one, and rounds deal 3, 12, … to two.
    "sparse": ("train.prompts=3", "train.rounds=3", "train.steps=4"),
    # All do, in several micro-batches; every part of the update is on.
    "dense": (
        "rewards.0={use: %s:even}",
        "train.prompts=5",
        "train.steps=3",
        "train.tokens=100",
        "train.inner=2",
        "train.beta=0.2",
        "train.loss=dapo",
        "train.schedule=linear",
        "train.warmup=1",
        "sampling.completions=5",
        "evaluate.every=1",
    ),
    # Half of the prompts show a picture, and only what sees learns: of the others it has no gradient.
    "seeing": (
        "rewards.0={use: %s:even}",
        "model.vision={tower: vit, connector: linear}",
        "model.vision.settings={image_size: 32, patch: 8, width: 32, depth: 1, heads: 2}",
        "data.images=[image]",
        "data.train={source: 'scenes:count', size: 16, seed: 1}",
        "data.train.args={pixels: 32, most: 2, distractors: 1}",
        "data.also=[{source: 'reasoning_gym:chain_sum', images: [], size: 16, seed: 1}]",
        "data.heldout={size: 8, seed: 2}",
        "train.rates={tower: 1e-3, connector: 1e-3, language: 0}",
        "train.prompts=3",
        "train.rounds=1",
        "train.steps=4",
        "train.tokens=100",
    ),
}


def settings(folder: Path, overrides: list[str]) -> list[str]:
    return [f"output={folder}", "model.compute=float32", "evaluate.samples=0", *overrides]


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_two_processes_train_what_one_does(case: str, tmp_path: Path, home: Path, one_process: None) -> None:
    (tmp_path / "mine.py").write_text(REWARD)
    overrides = [text.replace("%s", str(tmp_path / "mine.py")) for text in CASES[case]]
    recipe = load_recipe("tiny/tiny", settings(tmp_path / "one", overrides))
    models.save(*models.of_recipe(recipe.model), tmp_path / "start" / "model")
    run(recipe)
    # On a machine without GPUs, `accelerate launch --cpu` starts a single process unless MPI starts them;
    # --multi_gpu stands for "several processes on this machine", and they find that there is no GPU.
    several = ["--multi_gpu", "--num_processes", "2", "--main_process_port", str(free_port())]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "accelerate.commands.launch", *several),
            *("-m", "posttrain", "run", "tiny/tiny", *settings(tmp_path / "two", overrides)),
        ],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-4000:]

    one, two = records(tmp_path / "one"), records(tmp_path / "two")
    assert [record["step"] for record in one] == [record["step"] for record in two]
    for ours, theirs in zip(one, two, strict=True):
        assert ours.keys() == theirs.keys()
        for key, value in ours.items():
            if isinstance(value, float) and "second" not in key and key != "mismatch":
                assert theirs[key] == pytest.approx(value, rel=1e-3, abs=1e-5), key
            elif isinstance(value, int):
                assert theirs[key] == value, key
    assert sum(record.get("signal", 0) for record in one) > 2, "nothing was learnt, so nothing is compared"

    ends = (tmp_path / name / "model" / "model.safetensors" for name in ("start", "one", "two"))
    start, ours, theirs = map(load_file, ends)
    moved = torch.cat([(ours[name] - start[name]).flatten() for name in start])
    apart = torch.cat([(ours[name] - theirs[name]).flatten() for name in start])
    assert moved.norm() > 0.01
    assert apart.norm() < 1e-3 * moved.norm()
    assert len(list(tmp_path.glob("two/checkpoints/step-*"))) == 1
    # The first process writes its own samples alone, so there were two.
    written = [(tmp_path / name / "samples.jsonl").read_text().count('"train"') for name in ("one", "two")]
    assert 0 < written[1] < written[0]

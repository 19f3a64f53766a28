"""Checkpoints: a plain Hugging Face folder with the optimizer and the loop's state beside the weights.

A folder is written aside and renamed, so a checkpoint that has its name is whole.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from posttrain.files import written_aside
from posttrain.train.grpo import State

OPTIMIZER, STATE = "optimizer.pt", "state.json"


def save(
    folder: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    optimizer: torch.optim.Optimizer,
    state: State,
    keep: int,
) -> Path:
    """Write `folder`/step-000007 and delete all but the newest `keep`; -> its path."""
    path = folder / f"step-{state.step:06d}"
    for left in folder.glob(".step-*"):  # half-written when the process was killed
        shutil.rmtree(left, ignore_errors=True)
    with written_aside(path) as aside:
        model.save_pretrained(aside)
        tokenizer.save_pretrained(aside)
        torch.save(optimizer.state_dict(), aside / OPTIMIZER)
        (aside / STATE).write_text(json.dumps(asdict(state)))
    for old in found(folder)[:-keep]:
        shutil.rmtree(old)
    return path


def found(folder: Path) -> list[Path]:
    """The whole checkpoints under `folder`, oldest first."""
    return sorted(path for path in folder.glob("step-*") if (path / STATE).is_file())


def state_of(path: Path) -> State:
    return State(**json.loads((path / STATE).read_text()))


def load_optimizer(path: Path, optimizer: torch.optim.Optimizer) -> None:
    optimizer.load_state_dict(torch.load(path / OPTIMIZER, map_location="cpu", weights_only=True))

"""Checkpoints: a plain Hugging Face folder with the optimizer and the loop's state beside the weights.

A folder is written aside and renamed, and its manifest holds the SHA-256 of every file in it, so a checkpoint
is whole or known not to be. No generator's state is kept: every draw hangs on (seed, step, prompt) alone.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from posttrain import models
from posttrain.files import written_aside
from posttrain.train.grpo import State
from posttrain.types import PosttrainError

log = logging.getLogger(__name__)

OPTIMIZER, STATE, MANIFEST = "optimizer.pt", "state.json", "manifest.json"


def save(
    folder: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    optimizer: torch.optim.Optimizer,
    state: State,
    keep: int,
) -> Path:
    """Write `folder`/step-000007 and keep it and the `keep` - 1 before it; -> its path.

    Raises:
        PosttrainError: it cannot be written, as on a full disk; those that were there are as they were.
    """
    path = folder / f"step-{state.step:06d}"
    for left in folder.glob(".step-*"):  # half-written when the process was killed
        shutil.rmtree(left, ignore_errors=True)
    try:
        with written_aside(path) as aside:
            models.write(model, tokenizer, aside)
            torch.save(optimizer.state_dict(), aside / OPTIMIZER)
            (aside / STATE).write_text(json.dumps(asdict(state)))
            seal(aside)
    except (OSError, SafetensorError, RuntimeError) as error:  # torch.save tells of a full disk by the last
        there = found(folder)
        last = f"the last one, {there[-1]}, is as it was" if there else "there was none before it"
        raise PosttrainError(
            f"the checkpoint {path} cannot be written ({' '.join(str(error).split())[:200]}); {last}. "
            "Make room and run the same command with --resume"
        ) from error
    there = found(folder)
    for ahead in there[there.index(path) + 1 :]:  # from before the run went back: a damaged one
        shutil.rmtree(ahead)
    prune(path, keep)
    return path


def prune(newest: Path, keep: int) -> None:
    """Of the checkpoints before one, leave `keep` - 1. `save` does so; a kill may have come in between."""
    there = found(newest.parent)
    for old in there[: max(0, there.index(newest) + 1 - keep)]:
        shutil.rmtree(old)


def found(folder: Path) -> list[Path]:
    """The checkpoints under `folder`, oldest first; `damage` says whether one is to be trusted."""
    ours = (path for path in folder.glob("step-*") if path.suffix != ".old")
    return sorted(path for path in ours if (path / MANIFEST).exists() or (path / STATE).exists())


def newest(folder: Path) -> Path | None:
    """The newest whole checkpoint under `folder`; raises as `last_whole`."""
    return last_whole(found(folder), STATE)


def last_whole(paths: Sequence[Path], needed: str) -> Path | None:
    """The last that is whole; None of none. Damaged ones are named and passed over.

    Raises:
        PosttrainError: all are damaged.
    """
    damaged = []
    for path in reversed(paths):
        trouble = damage(path, needed)
        if trouble is None:
            for words in damaged:
                log.warning("passed over the checkpoint %s; going on from %s", words, path.name)
            return path
        damaged.append(f"{path}: {trouble}")
    if damaged:
        raise PosttrainError(
            f"no checkpoint is whole ({'; '.join(damaged)}). Put one back from a copy, "
            "or start anew beside it with output=OTHER"
        )
    return None


def seal(folder: Path) -> None:
    """Write the manifest of all that `folder` holds."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    manifest = {name: _digest(folder / name) for name in names}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1))


def damage(path: Path, needed: str = STATE) -> str | None:
    """What is wrong with a checkpoint; None where every file is as it was written. Reads all of it.

    Args:
        needed: a file that its manifest must name.
    """
    try:
        manifest = json.loads((path / MANIFEST).read_text())
    except (OSError, ValueError):
        return f"its {MANIFEST} is missing or cannot be read"
    if not isinstance(manifest, dict) or needed not in manifest:
        return f"its {MANIFEST} is damaged"
    for name, digest in manifest.items():
        try:
            if _digest(path / name) != digest:
                return f"{name} is not what was written"
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
    return None


def state_of(path: Path) -> State:
    return State(**json.loads((path / STATE).read_text()))


def load_optimizer(path: Path, optimizer: torch.optim.Optimizer) -> None:
    optimizer.load_state_dict(torch.load(path / OPTIMIZER, map_location="cpu", weights_only=True))


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

"""Checkpoints: whole or absent, few, and all that a run needs to go on as if it had never stopped."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from posttrain.train import checkpoint
from posttrain.train.grpo import State
from posttrain.types import PosttrainError

Build = Callable[..., PreTrainedModel]


def trained(model: PreTrainedModel, updates: int, seed: int = 0) -> torch.optim.AdamW:
    """AdamW as the pipeline makes it, after some updates by made-up gradients."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=True)
    update(model, optimizer, updates, seed)
    return optimizer


def update(model: PreTrainedModel, optimizer: torch.optim.Optimizer, updates: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(updates):
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()


def test_it_goes_on_as_if_it_had_not_stopped(
    tmp_path: Path, build: Build, tokenizer: PreTrainedTokenizerFast
) -> None:
    model = build()
    optimizer = trained(model, 3)
    path = checkpoint.save(tmp_path, model, tokenizer, optimizer, State(step=3, cursor=17), keep=2)
    again = AutoModelForCausalLM.from_pretrained(path).eval()
    fresh = torch.optim.AdamW(again.parameters(), lr=0.01, fused=True)
    checkpoint.load_optimizer(path, fresh)
    assert checkpoint.state_of(path) == State(step=3, cursor=17)
    for one, its in ((model, optimizer), (again, fresh)):
        update(one, its, 2, seed=9)
    for a, b in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)


def test_only_the_newest_are_kept(tmp_path: Path, build: Build, tokenizer: PreTrainedTokenizerFast) -> None:
    model = build()
    optimizer = trained(model, 1)
    assert checkpoint.found(tmp_path) == [] == checkpoint.found(tmp_path / "no such folder")
    for step in (1, 2, 9, 10, 100):
        path = checkpoint.save(tmp_path, model, tokenizer, optimizer, State(step, step), keep=2)
        assert checkpoint.found(tmp_path)[-1] == path
    assert [path.name for path in checkpoint.found(tmp_path)] == ["step-000010", "step-000100"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000010", "step-000100"]
    checkpoint.save(tmp_path, model, tokenizer, optimizer, State(100, 101), keep=1)
    assert [checkpoint.state_of(path).cursor for path in checkpoint.found(tmp_path)] == [101]


@pytest.mark.parametrize("broken", ["model", "tokenizer", "optimizer"])
def test_a_checkpoint_that_is_not_whole_is_absent(
    broken: str,
    tmp_path: Path,
    build: Build,
    tokenizer: PreTrainedTokenizerFast,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = build()
    optimizer = trained(model, 1)
    checkpoint.save(tmp_path, model, tokenizer, optimizer, State(1, 1), keep=1)

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError("No space left on device")

    owner, name = {
        "model": (PreTrainedModel, "save_pretrained"),
        "tokenizer": (PreTrainedTokenizerFast, "save_pretrained"),
        "optimizer": (torch, "save"),
    }[broken]
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, full)
        with pytest.raises(PosttrainError, match=r"No space left.*step-000001, is as it was"):
            checkpoint.save(tmp_path, model, tokenizer, optimizer, State(2, 2), keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000001"], "the last whole one is gone"
    assert checkpoint.found(tmp_path) == [tmp_path / "step-000001"]


def test_what_a_kill_left_half_written_is_not_found_and_cleared_away(
    tmp_path: Path, build: Build, tokenizer: PreTrainedTokenizerFast
) -> None:
    (tmp_path / ".step-000009-abc").mkdir()
    (tmp_path / ".step-000009-abc" / "state.json").write_text("{}")
    (tmp_path / "step-000009").mkdir()  # made by hand: no state in it
    model = build()
    path = checkpoint.save(tmp_path, model, tokenizer, trained(model, 1), State(5, 5), keep=2)
    assert checkpoint.found(tmp_path) == [path]
    assert not (tmp_path / ".step-000009-abc").exists(), "the next save clears it away"


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "model.safetensors is not what": lambda path: flip(path / "model.safetensors"),
    "optimizer.pt is not what": lambda path: cut(path / "optimizer.pt"),
    "state.json is not what": lambda path: (path / "state.json").write_text("{}"),
    "tokenizer.json cannot be read (No such file": lambda path: (path / "tokenizer.json").unlink(),
    "state.json cannot be read": lambda path: (path / "state.json").unlink(),
    "manifest.json is missing": lambda path: (path / "manifest.json").unlink(),
    "manifest.json is missing or cannot": lambda path: cut(path / "manifest.json"),
    "manifest.json is damaged": lambda path: (path / "manifest.json").write_text("[]"),
}


def flip(path: Path) -> None:
    """One bit in the middle."""
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


@pytest.mark.parametrize("words", DAMAGE)
def test_a_damaged_one_is_named_and_passed_over(
    words: str,
    tmp_path: Path,
    build: Build,
    tokenizer: PreTrainedTokenizerFast,
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = build()
    optimizer = trained(model, 1)
    one, two = (
        checkpoint.save(tmp_path, model, tokenizer, optimizer, State(step, step), keep=2) for step in (1, 2)
    )
    assert checkpoint.newest(tmp_path) == two and not caplog.text
    DAMAGE[words](two)
    assert checkpoint.newest(tmp_path) == one
    assert f"step-000002: {words}" in caplog.text.replace("its ", "") and "from step-000001" in caplog.text
    # What the run saves next is later than the damaged one was, or takes its place: it never outlives that.
    saved = checkpoint.save(tmp_path, model, tokenizer, optimizer, State(1, 1), keep=1)
    assert checkpoint.found(tmp_path) == [saved] and checkpoint.damage(saved) is None

    DAMAGE[words](saved)
    with pytest.raises(PosttrainError, match=r"no checkpoint is whole .*start anew beside it"):
        checkpoint.newest(tmp_path)

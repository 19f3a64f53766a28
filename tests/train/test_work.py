"""The products a model makes against torch's own count of them."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from posttrain.train.work import SECONDS, multiplying, peak

Build = Callable[..., PreTrainedModel]


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gpt2"])
@torch.no_grad()
def test_entries_that_multiply(family: str, build: Build) -> None:
    model, tokens = build(family), 7
    with FlopCounterMode(display=False) as counter:
        model(input_ids=torch.arange(10, 10 + tokens)[None], use_cache=False)
    counts = counter.get_flop_counts()["Global"]
    weights = sum(n for op, n in counts.items() if op in (torch.ops.aten.mm, torch.ops.aten.addmm))
    assert 2 * sum(multiplying(model)) * tokens == weights
    assert multiplying(model)[1] == 97 * 32


def test_the_peak_is_the_best_product(monkeypatch: pytest.MonkeyPatch) -> None:
    took = iter([0.4 * SECONDS, 0.2 * SECONDS, 0.3 * SECONDS, 0.3 * SECONDS])
    now = [5.0]
    product = torch.mm

    def timed(*args: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        now[0] += next(took)
        return product(*args, out=out)

    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(torch, "mm", timed)
    state = torch.get_rng_state()
    found = peak(torch.device("cpu"), torch.bfloat16, 16)
    assert found == pytest.approx(2 * 16**3 / (0.2 * SECONDS))
    assert next(took, None) is None
    assert torch.equal(torch.get_rng_state(), state), "a run that is profiled draws what it would have"

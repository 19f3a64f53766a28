"""How many products a token costs in a model, and how many the machine can do: what a profile compares."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from posttrain.multimodal import body
from posttrain.profile import Work

SECONDS = 0.5  # for which products are timed
SIDE = {"cpu": 2048, "cuda": 8192}  # of the square matrices; large enough to be as fast as it gets


def work(model: PreTrainedModel, dtype: torch.dtype) -> Work:
    """dtype: that products run in. A mixture of experts counts all of them, as if each token met each."""
    device, side = model.device, SIDE[model.device.type]
    kind = str(dtype).removeprefix("torch.")
    what = f"the best seen here in a product of two {side} x {side} matrices in {kind}"
    return Work(*multiplying(model), peak(device, dtype, side), what)


def multiplying(model: PreTrainedModel) -> tuple[int, int]:
    """Entries of the matrices that a hidden state is multiplied with: in the layers, in the output head.

    Tables of embeddings are looked up and do not count, but for one that the head shares.
    """
    looked_up = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    layers = [p for p in body(model).parameters() if p.dim() > 1 and id(p) not in looked_up]
    head: Any = model.get_output_embeddings()
    return sum(p.numel() for p in layers), head.weight.numel()


def peak(device: torch.device, dtype: torch.dtype, side: int) -> float:
    """FLOP/s of a product of two square matrices: the best of those that fit into SECONDS, two at least."""
    own = torch.Generator(device).manual_seed(0)  # the run's stays as it is
    a, b, c = torch.randn(3, side, side, generator=own, dtype=dtype, device=device)
    best, until, timed = float("inf"), time.perf_counter() + SECONDS, 0
    while timed < 2 or time.perf_counter() < until:
        at = time.perf_counter()
        torch.mm(a, b, out=c)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - at)
        timed += 1
    return 2 * side**3 / best

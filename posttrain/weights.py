"""A weight's low-precision copy, and its gradient, on a CPU: each kept in one place.

There memory comes a page at a time, and to map new pages for copies of a table of 49,152 embeddings took a
sixth of an update of SmolLM2-135M. So a copy for products is made once for as long as the weight stays as it
is (`low`), and a Function adds a weight's gradient to `.grad` itself and tells autograd that there is none
(`give`): returned in bfloat16 it would be taken into new memory in float32 and added from there, and that of
a table would be made for all of its rows.

What autograd does after it has added a gradient still happens (DDP exchanges it then). Hooks that are called
with the gradient itself (`Tensor.register_hook`) see None, and `torch.autograd.grad` finds the weight unused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import increment_version
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.weak import WeakIdKeyDictionary

BLOCK = 4096  # rows of a product that are made, then added, while they are in the cache


_low: Any = WeakIdKeyDictionary()  # weight: (its state then, the copy)


def low(p: Tensor, dtype: torch.dtype) -> Tensor:
    """p in `dtype`, without gradient; made again when p has changed."""
    if not _own(p) or p.dtype == dtype:
        return p.detach().to(dtype)
    now = dtype, state(p)
    if p not in _low or _low[p][0] != now:
        _low.pop(p, None)  # never two copies at once
        _low[p] = now, p.detach().to(dtype)
    return _low[p][1]


def state(p: Tensor) -> tuple[int, int]:
    """Something that is another after each write; one through `p.data` is not counted by torch, nor here."""
    return p.data_ptr(), p._version


def _count_writes(optimizer: Any, *_: Any) -> None:
    """torch's fused optimizers (2.13) write without counting it."""
    increment_version([p for group in optimizer.param_groups for p in group["params"]])


register_optimizer_step_post_hook(_count_writes)


def give(p: Tensor, g: Tensor, before: Tensor | None = None) -> Tensor | None:
    """What a Function's backward returns as the gradient of p where that is g. before: what it returned for
    an earlier share of the same gradient."""
    return _given(p, before, [slice(None)], lambda _: g)


def give_product(p: Tensor, a: Tensor, b: Tensor, before: Tensor | None = None) -> Tensor | None:
    """`give` of a^T b, made in blocks of its rows: p [V, H], a [M, V], b [M, H]."""
    blocks = [slice(v, v + BLOCK) for v in range(0, len(p), BLOCK)]
    return _given(p, before, blocks, lambda rows: a[:, rows].t() @ b)


def _given(
    p: Tensor, before: Tensor | None, blocks: list[slice], block: Callable[[slice], Tensor]
) -> Tensor | None:
    if not p.requires_grad:
        return None
    grad = p.grad if _own(p) else before
    first = grad is None
    if grad is None:
        grad = torch.empty_like(p)
    for rows in blocks:
        if first:
            grad[rows] = block(rows)
        else:
            grad[rows] += block(rows)
    if not _own(p):
        return grad
    p.grad = grad
    return None


def _own(p: Tensor) -> bool:
    return isinstance(p, nn.Parameter) and p.device.type == "cpu"


class _Embed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tokens: Tensor, table: Tensor, padding: int | None) -> Tensor:
        ctx.save_for_backward(tokens)
        ctx.table, ctx.padding = table, padding
        return table[tokens]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor):
        (tokens,), table, g = ctx.saved_tensors, ctx.table, grads[0]
        if ctx.padding is not None:
            g = g.masked_fill((tokens == ctx.padding)[:, None], 0.0)
        grad = table.grad if _own(table) else None
        if grad is None:
            grad = torch.zeros_like(table)
        grad.index_add_(0, tokens, g.to(table.dtype))
        if not _own(table):
            return None, grad, None
        table.grad = grad
        return None, None, None


def embed(tokens: Tensor, table: Tensor, padding: int | None = None) -> Tensor:
    """Rows of a table [V, H] for tokens [T] -> [T, H]. padding: the token whose row does not learn."""
    return _Embed.apply(tokens, table, padding)

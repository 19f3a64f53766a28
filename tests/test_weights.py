"""Copies of weights that follow them, and gradients that Functions add themselves against autograd's."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from posttrain import weights
from posttrain.weights import embed, give, give_product

TOKENS = torch.tensor([3, 0, 3, 3, 9, 1, 0])


class Linear(torch.autograd.Function):
    """x [M, H], weight [V, H], bias [V]; its gradients in two shares, as the head's are in pieces."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        ctx.weights = weight, bias
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor):
        (x,), (weight, bias), (g,) = ctx.saved_tensors, ctx.weights, grads
        dw = db = None
        for part in (slice(0, 2), slice(2, None)):
            dw = give_product(weight, g[part], x[part], dw)
            db = give(bias, g[part].sum(0), db)
        return g @ weight, dw, db


@pytest.fixture
def tensors(monkeypatch) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states [7, 4], a table [10, 4] and a bias [10]; blocks of rows that do not divide the table."""
    monkeypatch.setattr(weights, "BLOCK", 4)
    g = torch.Generator().manual_seed(0)
    return (
        torch.randn(7, 4, generator=g),
        torch.randn(10, 4, generator=g),
        torch.randn(10, generator=g),
    )


def loss(logits: Tensor) -> Tensor:
    return (logits.softmax(-1) * torch.arange(10)).sum()


def test_weights_gather_the_gradients_of_several_passes(tensors):
    x, *weights = tensors
    own, plain = ([nn.Parameter(w.clone()) for w in weights] for _ in range(2))
    for scale in (1.0, 2.0, -0.5):
        loss(Linear.apply(scale * x, *own)).backward()
        loss(F.linear(scale * x, *plain)).backward()
    for mine, theirs in zip(own, plain, strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad)


def test_a_weight_that_has_gone_through_something_else_gets_its_gradient_from_autograd(tensors):
    x, *weights = tensors
    mine, theirs = (
        torch.autograd.grad(loss(linear(x, 2 * w, 3 * b)), (w, b))
        for linear in (Linear.apply, F.linear)
        for w, b in [[nn.Parameter(w.clone()) for w in weights]]
    )
    torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("padding", [None, 3, 5])
def test_rows_of_a_table_are_those_of_torch(tensors, padding):
    _, table, _ = tensors
    own, plain, tensor = (
        nn.Parameter(table.clone()),
        nn.Parameter(table.clone()),
        table.clone().requires_grad_(),
    )
    direction = torch.randn(7, 4, generator=torch.Generator().manual_seed(1))
    for scale in (1.0, 0.5):
        for t, rows in (
            (own, embed(TOKENS, own, padding)),
            (plain, F.embedding(TOKENS, plain, padding)),
            (tensor, embed(TOKENS, tensor, padding)),
        ):
            assert torch.equal(rows, t[TOKENS])
            (rows * direction * scale).sum().backward()
    torch.testing.assert_close(own.grad, plain.grad)
    torch.testing.assert_close(tensor.grad, plain.grad)


def test_a_table_that_is_the_head_too_gathers_both(tensors):
    _, table, bias = tensors
    own, plain, b = nn.Parameter(table.clone()), nn.Parameter(table.clone()), nn.Parameter(bias)
    loss(Linear.apply(embed(TOKENS, own), own, b)).backward()
    loss(F.linear(F.embedding(TOKENS, plain), plain, b)).backward()
    torch.testing.assert_close(own.grad, plain.grad)


def test_a_frozen_weight_stays_without(tensors):
    x, table, bias = tensors
    x, frozen, b = x.requires_grad_(), nn.Parameter(table, requires_grad=False), nn.Parameter(bias)
    loss(Linear.apply(x + embed(TOKENS, frozen), frozen, b)).backward()
    assert frozen.grad is None and b.grad is not None and x.grad is not None


def test_a_gradient_in_half_precision_is_added_in_that_of_the_weight(tensors):
    p = nn.Parameter(torch.zeros(10, 4))
    a, b = torch.ones(1, 10, dtype=torch.bfloat16), torch.full((1, 4), 2.0**-9, dtype=torch.bfloat16)
    give(p, torch.ones(10, 4, dtype=torch.bfloat16))
    give_product(p, a, b)  # 1 + 2^-9 does not exist in bfloat16
    assert p.grad is not None and p.grad.dtype == torch.float32
    assert torch.equal(p.grad, torch.full((10, 4), 1 + 2.0**-9))


def test_what_waits_for_a_weight_is_told_when_its_gradient_is_whole(tensors):
    """DDP hangs its exchange on the node that adds a parameter's gradient."""
    _, table, bias = tensors
    weight, b = nn.Parameter(table), nn.Parameter(bias)
    seen: list[Tensor] = []
    node: Any = weight.view_as(weight).grad_fn.next_functions[0][0]  # pyright: ignore[reportOptionalMemberAccess]
    node.register_hook(lambda *_: seen.append(torch.empty(0) if weight.grad is None else weight.grad.clone()))
    loss(Linear.apply(embed(TOKENS, weight), weight, b)).backward()
    assert len(seen) == 1 and weight.grad is not None
    assert torch.equal(seen[0], weight.grad)


def test_a_copy_is_made_once_and_again_when_the_weight_has_changed():
    p = nn.Parameter(torch.ones(3, 2))
    first = weights.low(p, torch.bfloat16)
    assert first.dtype == torch.bfloat16 and not first.requires_grad
    assert weights.low(p, torch.bfloat16) is first
    with torch.no_grad():
        p.mul_(2)
    assert torch.equal(weights.low(p, torch.bfloat16), torch.full((3, 2), 2.0, dtype=torch.bfloat16))
    assert torch.equal(weights.low(p, torch.float16), torch.full((3, 2), 2.0, dtype=torch.float16))
    assert weights.low(p, torch.float32).data_ptr() == p.data_ptr()


@pytest.mark.parametrize("fused", [True, False])
def test_a_copy_follows_an_optimizer(fused):
    p = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([p], lr=0.5, fused=fused)
    before = weights.low(p, torch.bfloat16)
    p.grad = torch.ones(3)
    optimizer.step()
    after = weights.low(p, torch.bfloat16)
    assert torch.equal(after, p.detach().bfloat16()) and not torch.equal(after, before)


def test_a_copy_goes_with_its_weight():
    gc.collect()
    p, before = nn.Parameter(torch.ones(3)), len(weights._low)
    weights.low(p, torch.bfloat16)
    assert len(weights._low) == before + 1
    del p
    gc.collect()
    assert len(weights._low) == before

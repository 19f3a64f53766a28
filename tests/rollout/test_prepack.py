"""Prepacked linear layers compute what nn.Linear does, also after taking new weights."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from posttrain.rollout.prepack import PrepackedLinear, prepack, usable

Build = Callable[..., PreTrainedModel]

needs_mkldnn = pytest.mark.skipif(
    not usable(torch.device("cpu"), torch.bfloat16),
    reason="this torch cannot prepack (no oneDNN on this CPU)",
)


@needs_mkldnn
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [1, 3, 64, 200])
def test_equals_the_plain_layer(bias: bool, rows: int) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(48, 97, bias=bias)
    packed = PrepackedLinear(linear.weight, linear.bias)
    x = torch.randn(rows, 48).bfloat16()
    for _ in range(2):
        plain = nn.functional.linear(
            x.float(), linear.weight.bfloat16().float(), linear.bias.bfloat16().float() if bias else None
        )
        for shaped in (x, x[:, None], x[None]):
            out = packed(shaped)
            assert out.dtype == torch.bfloat16 and out.shape == (*shaped.shape[:-1], 97)
            torch.testing.assert_close(out.float().view(rows, 97), plain, atol=0.02, rtol=0.01)
        with torch.no_grad():
            linear.weight.mul_(-3).add_(0.1)
        packed.load(linear.weight, linear.bias)


@needs_mkldnn
@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2"])
def test_a_model_computes_the_same(family: str, build: Build) -> None:
    model, plain = (build(family).to(torch.bfloat16) for _ in range(2))  # pyright: ignore[reportArgumentType]
    linears = {name for name, module in plain.named_modules() if type(module) is nn.Linear}
    assert set(prepack(model)) == linears and "lm_head" in linears
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        ours, theirs = model(input_ids=ids).logits, plain(input_ids=ids).logits
    scale = float(theirs.float().abs().max())
    torch.testing.assert_close(ours.float(), theirs.float(), atol=0.02 * scale, rtol=0)


def test_only_for_bfloat16_on_a_cpu() -> None:
    assert not usable(torch.device("cpu"), torch.float32)
    assert not usable(torch.device("meta"), torch.bfloat16)

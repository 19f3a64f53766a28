"""The block-sparse kernel against the gathered path, a plain forward of every row, and its rule written out.

Without a GPU the kernel's plain stand-in runs: the same operator, mask and gradient formula, uncompiled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.attention.flex_attention as torch_flex
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import create_mask, flex_attention
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from posttrain import flex
from posttrain.attention import PackedLayout
from posttrain.flex import BLOCK, block_mask, flex_attend
from posttrain.rollout.native import NativeEngine
from posttrain.train.logprobs import Policy, padded_logprobs
from posttrain.train.packing import TrainGroup, TrainRow, pack
from posttrain.types import Sampling

Build = Callable[..., PreTrainedModel]
CPU = torch.device("cpu")
HEADS = [(4, 2, 16), (6, 6, 32), (3, 1, 16)]

# For each group its prompt's length and its completions'.
LAYOUTS = {
    "ragged": [(5, [3, 9, 1]), (11, [4]), (1, [2, 2, 7, 12])],
    "one group": [(7, [5, 5, 5])],
    "prompts of one token": [(1, [1]), (1, [6, 2])],
    "empty completions": [(4, [0, 3, 0, 1]), (3, [0])],
    "prompts alone": [(9, []), (2, []), (30, [])],
    "many blocks": [(150, [70, 0, 1, 40]), (1, [20]), (3, [130, 5])],
    "whole blocks": [(BLOCK, [BLOCK, BLOCK]), (BLOCK, [])],
}
layouts = pytest.mark.parametrize("groups", LAYOUTS.values(), ids=LAYOUTS.keys())


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The kernel without its compiler, on a CPU; -> a list that grows when it would have run."""
    times: list[int] = []

    def count(graph: torch.fx.GraphModule, inputs: Any) -> Callable[..., Any]:
        times.append(len(inputs))
        return graph.forward

    torch.compiler.reset()
    # It refuses gradients on a CPU, where the compiler has no backward kernel; the operator itself has.
    monkeypatch.setattr(torch_flex, "_validate_device", lambda *_: None)
    kernel = torch.compile(flex_attention, backend=count)
    monkeypatch.setattr(flex, "_kernel", lambda: kernel)
    yield times
    torch.compiler.reset()


def layout_of(groups: list[tuple[int, list[int]]], device: torch.device = CPU) -> PackedLayout:
    return PackedLayout.of([p for p, _ in groups], [c for _, c in groups], device)


def mask_of(groups: list[tuple[int, list[int]]]) -> torch_flex.BlockMask:
    return block_mask([[p, *c] for p, c in groups], CPU)


def tokens_of(groups: list[tuple[int, list[int]]]) -> list[tuple[int, int]]:
    """(group, part) of every packed token; part 0 is the prompt."""
    return [(g, k) for g, (p, c) in enumerate(groups) for k, n in enumerate([p, *c]) for _ in range(n)]


@layouts
def test_the_mask_is_the_rule(groups: list[tuple[int, list[int]]]) -> None:
    mask, tokens = mask_of(groups), tokens_of(groups)
    size = mask.seq_lengths[0]
    assert size % BLOCK == 0 and 2 * BLOCK <= size < max(2 * BLOCK + 1, len(tokens) + BLOCK)
    dense = create_mask(mask.mask_mod, None, None, size, size, CPU)[0, 0]
    rows = dense.tolist()
    for i, (group, part) in enumerate(tokens):
        for j, (other, its) in enumerate(tokens):
            assert rows[i][j] == (other == group and j <= i and its in (0, part)), (i, j)
    T = len(tokens)
    assert not dense[:T, T:].any() and not dense[T:, :T].any() and dense.diagonal().all()
    blocks = dense.unflatten(0, (-1, BLOCK)).unflatten(2, (-1, BLOCK))
    assert torch.equal(mask.to_dense()[0, 0] > 0, blocks.any(3).any(1))


def plain(groups: list[tuple[int, list[int]]], q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of each completion behind its own copy of the prompt. [1, H, T, D] -> [1, T, Hq, D]."""

    def causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.3, enable_gqa=True)

    outs: list[Tensor] = []
    at = 0
    for p, completions in groups:
        prompt = slice(at, at + p)
        outs.append(causal(*(x[:, :, prompt] for x in (q, k, v))))
        at += p
        for r in completions:
            whole = causal(*(torch.cat([x[:, :, prompt], x[:, :, at : at + r]], 2) for x in (q, k, v)))
            outs.append(whole[:, :, p:])
            at += r
    return torch.cat(outs, 2).transpose(1, 2)


def with_gradients(attend: Callable[..., Tensor], *inputs: Tensor) -> list[Tensor]:
    leaves = [x.clone().requires_grad_() for x in inputs]
    out = attend(*leaves)
    direction = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out)
    return [out.detach(), *torch.autograd.grad(out, leaves, direction)]


def random_inputs(T: int, heads: tuple[int, int, int]) -> list[Tensor]:
    g = torch.Generator().manual_seed(0)
    Hq, Hkv, D = heads
    # As a model makes them: [T, H, D] seen from the side.
    return [torch.randn(1, T, n, D, generator=g).transpose(1, 2) for n in (Hq, Hkv, Hkv)]


@layouts
@pytest.mark.parametrize("heads", HEADS, ids=str)
def test_equals_the_gathered_path_and_a_plain_forward(
    groups: list[tuple[int, list[int]]], heads: tuple[int, int, int], compiled: list[int]
) -> None:
    layout = layout_of(groups)
    inputs = random_inputs(len(tokens_of(groups)), heads)
    ours = with_gradients(lambda q, k, v: flex_attend(layout.blocks, q, k, v, 0.3), *inputs)
    gathered = with_gradients(lambda q, k, v: layout.attend(0, q, k, v, 0.3), *inputs)
    rows = with_gradients(lambda q, k, v: plain(groups, q, k, v), *inputs)
    assert compiled  # the stand-in ran
    for mine, other, expected in zip(ours, gathered, rows, strict=True):
        torch.testing.assert_close(mine, expected, atol=2e-5, rtol=1e-5)
        torch.testing.assert_close(other, expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2"])
def test_a_model_gives_the_log_probabilities_and_gradients_of_padded_rows(
    family: str, build: Build, compiled: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def ids(n: int) -> list[int]:
        return [(31 * k + n) % 95 + 2 for k in range(n)]

    batch = pack(
        [TrainGroup(ids(p), [TrainRow(ids(r), [0.0] * r, 1.0, 1.0) for r in c]) for p, c in LAYOUTS["ragged"]]
    )
    model = build(family)
    expected, _ = padded_logprobs(model, batch)
    expected.square().sum().backward()
    grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    monkeypatch.setattr(flex, "serves", lambda query, key: True)
    policy = Policy(model)
    assert policy.packed
    policy.layers = None
    packed, _ = policy(batch)
    assert "blocks" in vars(batch.layout) and "seen" not in vars(batch.layout)
    packed.square().sum().backward()
    torch.testing.assert_close(packed, expected, atol=1e-4, rtol=1e-4)
    for name, p in model.named_parameters():
        assert p.grad is not None and (p.grad - grads[name]).norm() <= 1e-4 * grads[name].norm() + 1e-4, name


def test_a_prefill_fills_the_same_cache(
    build: Build,
    tokenizer: PreTrainedTokenizerFast,
    compiled: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prompts = [[5, 9, 2], [7], list(range(2, 60))]
    engine = NativeEngine(build(), tokenizer, torch.float32)
    hidden, cache, _ = engine._prefill(prompts, 2)
    monkeypatch.setattr(flex, "serves", lambda query, key: True)
    fused, filled, _ = engine._prefill(prompts, 2)
    assert compiled
    torch.testing.assert_close(fused, hidden, atol=1e-4, rtol=1e-4)
    for ours, theirs in ((filled.keys, cache.keys), (filled.values, cache.values)):
        for mine, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(mine, other, atol=1e-4, rtol=1e-4)
    sampled = engine.generate(prompts, 2, Sampling(max_tokens=5), [1, 2, 3])
    monkeypatch.setattr(flex, "serves", lambda query, key: False)
    expected = engine.generate(prompts, 2, Sampling(max_tokens=5), [1, 2, 3])
    assert [[c.tokens for c in group] for group in sampled] == [[c.tokens for c in g] for g in expected]


def test_a_cpu_gathers(compiled: list[int]) -> None:
    layout = layout_of(LAYOUTS["ragged"])
    q, k, v = random_inputs(len(tokens_of(LAYOUTS["ragged"])), HEADS[0])
    layout.attend(0, q, k, v, 0.3)
    assert not flex.serves(q, k)
    assert "seen" in vars(layout) and "blocks" not in vars(layout) and not compiled


def without_a_mask(q: Tensor, k: Tensor, v: Tensor, **how: Any) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=how["scale"], enable_gqa=True)


def no_compiler(*args: Any, **how: Any) -> Tensor:
    raise RuntimeError("no compiler here")


def not_a_number(q: Tensor, k: Tensor, v: Tensor, **how: Any) -> Tensor:
    return without_a_mask(q, k, v, **how) * torch.nan


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_check_accepts_what_is_right(
    dtype: torch.dtype, compiled: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):  # as in the middle of a forward
        assert flex._right.__wrapped__(CPU, dtype, 6, 2, 16)
        worst = flex._error(CPU, dtype, 6, 2, 16)
    assert worst < (1e-5 if dtype == torch.float32 else flex.AGREE / 2) and compiled
    assert not [record for record in caplog.records if record.name == flex.__name__]


@pytest.mark.parametrize(
    ("kernel", "why"),
    [(without_a_mask, "it is off by"), (no_compiler, "no compiler here"), (not_a_number, "off by nan")],
)
def test_the_check_refuses_what_is_wrong_and_says_why(
    kernel: Callable[..., Tensor],
    why: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(flex, "_kernel", lambda: kernel)
    assert not flex._right.__wrapped__(CPU, torch.float32, 6, 2, 16)
    assert why in caplog.text and "gathers its keys" in caplog.text


def test_batches_of_all_sizes_compile_twice(compiled: list[int]) -> None:
    """Once for the first length and once for any; then once more without gradients."""

    def run() -> None:
        for groups in LAYOUTS.values():
            q, k, v = (x.requires_grad_() for x in random_inputs(len(tokens_of(groups)), HEADS[0]))
            flex_attend(layout_of(groups).blocks, q, k, v, 0.3)

    run()
    run()
    assert len(compiled) == 2
    with torch.no_grad():
        run()
    assert len(compiled) == 3


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("heads", [(4, 2, 64), (6, 6, 32)], ids=str)
def test_the_compiled_kernel(dtype: torch.dtype, heads: tuple[int, int, int]) -> None:
    device = torch.device("cuda")
    for groups in LAYOUTS.values():
        inputs = random_inputs(len(tokens_of(groups)), heads)
        layout = layout_of(groups, device)
        low = [x.to(device, dtype) for x in inputs]
        ours = with_gradients(lambda q, k, v, layout=layout: layout.attend(0, q, k, v, 0.3), *low)
        assert "blocks" in vars(layout) and "seen" not in vars(layout)
        rows = with_gradients(
            lambda q, k, v, groups=groups: plain(groups, q, k, v), *(x.float() for x in low)
        )
        for mine, expected in zip(ours, rows, strict=True):
            assert (mine.float() - expected).norm() <= flex.AGREE * expected.norm()

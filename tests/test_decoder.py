"""Decoder layers by hand against the modules they stand for: values and gradients, float32 and bfloat16."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    SmolLM3Config,
    SmolLM3ForCausalLM,
)

from posttrain import decoder, group_attention
from posttrain.train.logprobs import Policy, packed_logprobs
from posttrain.train.packing import TrainGroup, TrainRow, pack

SMALL: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
BUILD = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SMALL, tie_word_embeddings=True)),
    "llama-llama3-rope": lambda: LlamaForCausalLM(
        LlamaConfig(
            **SMALL,
            rope_parameters={
                "rope_type": "llama3",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
        )
    ),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SMALL)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SMALL, head_dim=16)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SMALL, sliding_window=None)),
}


def build(family: str):
    torch.manual_seed(0)
    model = BUILD[family]().eval()
    with torch.no_grad():  # norms of 1 and biases of 0 would hide an error in them
        for p in model.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return model


def batch_of(shape: list[tuple[int, list[int]]]):
    g = torch.Generator().manual_seed(1)
    ids = lambda n: torch.randint(0, 97, (n,), generator=g).tolist()  # noqa: E731
    return pack([TrainGroup(ids(p), [TrainRow(ids(r), [0.0] * r, 1.0, 1.0) for r in rs]) for p, rs in shape])


BATCHES = {
    "ragged": [(5, [3, 9, 1]), (1, [2, 2, 7, 12])],
    "even": [(4, [6, 6, 6])],
    "one token": [(1, [1])],
    "an empty completion": [(3, [0, 4]), (2, [2, 0])],
    "far from even": [(6, [1, 2, 40, 3, 44, 90, 0, 91]), (2, [70, 1])],
    "a prompt of several blocks": [(150, [4, 30]), (64, [2]), (65, [1, 1])],
}


def gradients(model: Any, layers: Any, batch: Any, dtype: torch.dtype) -> tuple[torch.Tensor, dict[str, Any]]:
    model.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        logp, _ = packed_logprobs(model, batch, layers=layers)
    direction = torch.randn(logp.shape, generator=torch.Generator().manual_seed(2))
    (logp * direction).sum().backward()
    return logp.detach(), {n: p.grad.clone() for n, p in model.named_parameters()}


@pytest.mark.parametrize("shape", BATCHES)
@pytest.mark.parametrize("family", BUILD)
def test_the_same_values_and_gradients_in_float32(family, shape, monkeypatch):
    monkeypatch.setattr(group_attention, "PROMPT_BLOCK", 64)
    model = build(family)
    policy, batch = Policy(model), batch_of(BATCHES[shape])
    assert policy.layers is not None
    plain, expected = gradients(model, None, batch, torch.float32)
    fast, got = gradients(model, policy.layers, batch, torch.float32)
    torch.testing.assert_close(fast, plain, atol=2e-5, rtol=0)
    whole = torch.stack([g.norm() for g in expected.values()]).norm()
    for name, gradient in expected.items():
        assert (got[name] - gradient).norm() <= 1e-5 * whole, name


@pytest.mark.parametrize("family", BUILD)
def test_bfloat16_is_no_further_from_the_truth_than_the_modules_are(family):
    model = build(family)
    policy, batch = Policy(model), batch_of(BATCHES["ragged"])
    _, exact = gradients(model, None, batch, torch.float32)
    _, plain = gradients(model, None, batch, torch.bfloat16)
    _, fast = gradients(model, policy.layers, batch, torch.bfloat16)

    def off(other):
        return float(torch.stack([(other[n] - exact[n]).norm() for n in exact]).norm())

    assert 0 < off(fast) < 1.5 * off(plain)


@pytest.mark.parametrize("how", ["fused", "foreach"])
def test_it_sees_the_weights_of_every_update(how):
    model = build("llama")
    policy, batch = Policy(model), batch_of(BATCHES["ragged"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=how == "fused", foreach=how == "foreach")
    seen = []
    for _ in range(3):
        fast, _ = gradients(model, policy.layers, batch, torch.float32)
        plain, _ = gradients(model, None, batch, torch.float32)
        torch.testing.assert_close(fast, plain, atol=2e-5, rtol=0)
        seen.append(fast)
        optimizer.step()
    model.load_state_dict(build("llama").state_dict())
    assert torch.equal(gradients(model, policy.layers, batch, torch.float32)[0], seen[0])
    assert not torch.equal(seen[0], seen[1]) and not torch.equal(seen[1], seen[2])


def scaled(model: Any) -> Any:
    """The family's modules, but not its arithmetic."""
    inner = model.model.layers[1].mlp.down_proj.forward
    model.model.layers[1].mlp.down_proj.forward = lambda x: 1.5 * inner(x)
    return model


def adapted(model: Any) -> Any:
    class Adapter(nn.Linear):
        pass

    attn = model.model.layers[0].self_attn
    attn.q_proj = Adapter(32, 32, bias=False)
    return model


@pytest.mark.parametrize(
    "other",
    [
        lambda: SmolLM3ForCausalLM(SmolLM3Config(**SMALL, pad_token_id=0)),
        lambda: LlamaForCausalLM(LlamaConfig(**SMALL, mlp_bias=True)),
        lambda: LlamaForCausalLM(LlamaConfig(**SMALL, attention_bias=True)),
        lambda: LlamaForCausalLM(LlamaConfig(**SMALL, hidden_act="gelu")),
        lambda: adapted(LlamaForCausalLM(LlamaConfig(**SMALL))),
        lambda: MistralForCausalLM(MistralConfig(**SMALL, sliding_window=8)),
    ],
    ids=["smollm3", "mlp-bias", "output-bias", "gelu", "adapter", "sliding-window"],
)
def test_what_is_not_the_family_is_not_taken_for_it(other):
    assert decoder.layers_of(other()) is None


@pytest.mark.parametrize("other", [lambda: build("llama").double(), lambda: scaled(build("llama"))])
def test_what_computes_something_else_runs_by_its_modules(other):
    model = other()
    assert decoder.layers_of(model) is not None
    policy = Policy(model)
    assert policy.packed and policy.layers is None


def test_frozen_parameters_get_no_gradient_and_the_others_theirs():
    model = build("qwen2")
    policy, batch = Policy(model), batch_of(BATCHES["ragged"])
    _, expected = gradients(model, policy.layers, batch, torch.float32)
    for name, p in model.named_parameters():
        p.requires_grad_("k_proj" in name or "embed" in name)
    model.zero_grad()
    logp, _ = policy(batch)
    (logp * torch.randn(logp.shape, generator=torch.Generator().manual_seed(2))).sum().backward()
    for name, p in model.named_parameters():
        if p.requires_grad:
            torch.testing.assert_close(p.grad, expected[name])
        else:
            assert p.grad is None, name


def padding(parts: list[list[int]]) -> int:
    return sum(len(part) * max(part) - sum(part) for part in parts)


@pytest.mark.parametrize(
    ("lengths", "parts"),
    [
        ([5], [[5]]),
        ([0, 0], [[0, 0]]),
        ([60, 60, 60], [[60, 60, 60]]),
        ([10, 12, 14], [[10, 12, 14]]),  # 6 tokens of padding: not worth a block
        ([3, 4, 90, 100], [[3, 4], [90, 100]]),
        ([1, 50, 100, 150], [[1], [50], [100], [150]]),
    ],
)
def test_completions_are_cut_where_padding_is_saved(lengths, parts):
    assert group_attention.alike(lengths) == parts


def test_in_whatever_order_the_cut_keeps_it_and_never_adds_padding():
    g = torch.Generator().manual_seed(0)
    for n in range(1, 30):
        lengths = torch.randint(0, 200, (n,), generator=g).tolist()
        parts = group_attention.alike(lengths)
        assert [length for part in parts for length in part] == lengths
        assert padding(parts) <= padding([lengths])

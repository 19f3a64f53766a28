"""Packed log-probabilities against a plain forward, for every family the packed path claims to serve."""

import json
import math
from typing import Any

import pytest
import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from posttrain import attention
from posttrain.profile import Profile, Work, one_step, span
from posttrain.rollout.native import NativeEngine
from posttrain.train.logprobs import Policy, head_logprobs, padded_logprobs
from posttrain.train.packing import TrainGroup, TrainRow, pack
from posttrain.types import PosttrainError, Sampling

SMALL: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "attn_implementation": "sdpa",
}
BUILD = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SMALL)),
    "llama-tied": lambda: LlamaForCausalLM(LlamaConfig(**SMALL, tie_word_embeddings=True)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SMALL)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SMALL, head_dim=16)),
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(
            vocab_size=97,
            n_embd=32,
            n_layer=3,
            n_head=4,
            n_positions=128,
            resid_pdrop=0,
            embd_pdrop=0,
            attn_pdrop=0,
        )
    ),
}


def build(family: str):
    torch.manual_seed(0)
    model = BUILD[family]().eval()
    with torch.no_grad():  # freshly initialised weights give near-uniform outputs: make them say something
        for p in model.parameters():
            if p.dim() > 1:
                p.mul_(6)
    return model


def random_groups(seed: int, vocab: int = 97) -> list[TrainGroup]:
    g = torch.Generator().manual_seed(seed)
    ids = lambda n: torch.randint(0, vocab, (n,), generator=g).tolist()  # noqa: E731
    shape = [(5, [3, 9, 1]), (11, [4]), (1, [2, 2, 7, 12])]
    return [TrainGroup(ids(p), [TrainRow(ids(r), [0.0] * r, 1.0, 1.0) for r in rows]) for p, rows in shape]


@pytest.mark.parametrize("family", BUILD)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("by_layers", [True, False])
def test_packed_equals_plain_forward_and_gradient(family, temperature, by_layers):
    model = build(family)
    batch = pack(random_groups(1))
    plain, plain_entropy = padded_logprobs(model, batch, temperature)
    direction = torch.randn(plain.shape, generator=torch.Generator().manual_seed(2))
    (plain * direction).sum().backward()
    expected = {n: p.grad.clone() for n, p in model.named_parameters()}
    model.zero_grad()
    policy = Policy(model, temperature)
    assert policy.packed
    assert (policy.layers is None) == (family == "gpt2")
    if not by_layers:
        policy.layers = None
    packed, entropy = policy(batch)
    (packed * direction).sum().backward()
    torch.testing.assert_close(packed, plain, atol=1e-4, rtol=0)
    torch.testing.assert_close(entropy, plain_entropy, atol=1e-4, rtol=0)
    norm = torch.stack([g.norm() for g in expected.values()]).norm()
    for name, p in model.named_parameters():
        assert (p.grad - expected[name]).norm() < 1e-4 * norm, name


@pytest.mark.parametrize(
    "unservable",
    [
        lambda: Gemma2ForCausalLM(Gemma2Config(**SMALL, head_dim=8)),
        lambda: MistralForCausalLM(MistralConfig(**SMALL, sliding_window=8)),
        lambda: GPT2LMHeadModel(GPT2Config(vocab_size=97, n_embd=32, n_layer=2, n_head=4, n_positions=128)),
    ],
    ids=["soft-caps", "sliding-window", "dropout"],
)
def test_what_packing_cannot_serve_falls_back_and_says_so(unservable, caplog):
    torch.manual_seed(0)
    model = unservable().train()
    policy = Policy(model)
    if type(model) is GPT2LMHeadModel:  # packs in evaluation mode; the loop keeps the policy there
        assert policy.packed
        return
    assert not policy.packed
    assert "padded rows" in caplog.text and policy.why_not in caplog.text
    model.eval()
    batch = pack(random_groups(3))
    logp, _ = policy(batch)
    assert torch.isfinite(logp).all() and model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("rows", [8, 3])  # all at once, kept for the backward pass; or in pieces, made again
def test_the_head_in_chunks_equals_one_log_softmax(monkeypatch, rows):
    monkeypatch.setattr("posttrain.train.logprobs.CHUNK", 2)
    monkeypatch.setattr("posttrain.train.logprobs.BLOCK", 2)
    monkeypatch.setattr("posttrain.train.logprobs.KEEP", rows * 11 * 4)
    torch.manual_seed(0)
    h = torch.randn(8, 5, dtype=torch.float32, requires_grad=True)
    w = torch.randn(11, 5, dtype=torch.float32, requires_grad=True)
    b = torch.randn(11, dtype=torch.float32, requires_grad=True)
    target = torch.randint(0, 11, (8,))
    grad = torch.randn(8)
    logp, entropy = head_logprobs(h, w, b, target, 0.5)
    got = torch.autograd.grad((logp * grad).sum(), (h, w, b))
    full = ((h @ w.t() + b) / 0.5).log_softmax(-1)
    expected = torch.autograd.grad((full.gather(1, target[:, None])[:, 0] * grad).sum(), (h, w, b))
    torch.testing.assert_close(entropy, -(full.exp() * full).sum(-1).float().detach(), atol=1e-5, rtol=0)
    for mine, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)


def test_the_head_of_no_token_has_a_gradient_of_zero():
    w = torch.randn(11, 5, requires_grad=True)
    h = torch.randn(0, 5, requires_grad=True)
    logp, entropy = head_logprobs(h, w, None, torch.zeros(0, dtype=torch.long))
    assert logp.shape == entropy.shape == (0,)
    logp.sum().backward()
    assert w.grad is not None and not w.grad.any()


def test_the_gradient_of_a_nearly_certain_token_survives_bfloat16():
    # p = 0.9997: in bfloat16 it rounds to 1, and 1 - p to nothing
    h, w = torch.tensor([[8.0]]), torch.tensor([[1.0], [0.0]], requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logp, _ = head_logprobs(h, w, None, torch.tensor([0]))
    logp.sum().backward()
    left = 1 / (1 + math.exp(8.0))
    torch.testing.assert_close(w.grad, torch.tensor([[8 * left], [-8 * left]]), rtol=0.01, atol=0)


def test_the_buffer_of_the_head_is_never_shared():
    """Two forward passes before either backward pass, and one without gradients between."""
    torch.manual_seed(0)
    w = torch.randn(11, 5, requires_grad=True)
    hs = [torch.randn(n, 5, requires_grad=True) for n in (4, 6)]
    targets = [torch.randint(0, 11, (len(h),)) for h in hs]
    logps = []
    for h, target in zip(hs, targets, strict=True):
        logps.append(head_logprobs(h, w, None, target)[0])
        with torch.no_grad():
            head_logprobs(torch.randn(6, 5), w, None, target.repeat(2)[:6])
    for h, target, logp in zip(hs, targets, logps, strict=True):
        got = torch.autograd.grad(logp.sum(), (h, w), retain_graph=True)
        again = torch.autograd.grad(logp.sum(), (h, w))
        plain = (h @ w.t()).log_softmax(-1).gather(1, target[:, None]).sum()
        for mine, twice, theirs in zip(got, again, torch.autograd.grad(plain, (h, w)), strict=True):
            torch.testing.assert_close(mine, theirs)
            torch.testing.assert_close(twice, theirs)


@pytest.mark.parametrize("packed", [True, False])
def test_a_profile_counts_tokens_and_sets_the_head_apart(packed, tmp_path):
    policy, batch = Policy(build("llama")), pack(random_groups(0))
    if not packed:
        policy.packed = False
        policy.model.set_attn_implementation("eager")
    with Profile(tmp_path, Work(1, 1, 1.0, "")) as profile, one_step(1):
        with torch.no_grad():
            policy(batch)
        logp, _ = policy(batch)
        with span("backward"):
            logp.sum().backward()
    tokens, trained = len(batch), len(batch.target)
    assert trained < tokens
    assert profile.total.layers == {"frozen": tokens, "learnt": tokens}
    assert profile.total.head == {"frozen": trained, "learnt": trained}
    names = [event["name"] for event in json.loads((tmp_path / "trace.json").read_text())["traceEvents"]]
    assert names == ["forward", "head"] * 2 + ["head"] * packed + ["backward", "step 1"]


# --- activation checkpointing -----------------------------------------------------------------------------


def kept_bytes(run) -> int:
    """Bytes that the graph keeps for its backward pass, each storage once, parameters too."""
    seen: dict[int, int] = {}

    def note(x):
        seen[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        run()
    return sum(seen.values())


@pytest.mark.parametrize("by_hand", [True, False])
@pytest.mark.parametrize("family", BUILD)
def test_recomputed_activations_give_the_same_gradients_from_less_memory(family, by_hand):
    if by_hand and family == "gpt2":
        pytest.skip("has no layers by hand")
    batch = pack(random_groups(4))
    got = []
    for recompute in (False, True):
        policy = Policy(build(family), recompute=recompute)
        if not by_hand:
            policy.layers = None
            assert attention.recompute(policy.model)
        assert (policy.layers is not None) == by_hand
        logp, _ = policy(batch)
        (logp * torch.arange(len(logp))).sum().backward()
        gradients = torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None])
        got.append((logp.detach(), gradients, kept_bytes(lambda policy=policy: policy(batch))))
    (plain, expected, whole), (again, gradients, less) = got
    assert torch.equal(plain, again) and torch.equal(expected, gradients)
    weights = sum(p.numel() * 4 for p in build(family).parameters())
    assert less - weights < 0.6 * (whole - weights)


def test_the_engine_generates_the_same_beside_a_policy_that_recomputes(tokenizer):
    """Between two updates the model's layers are as they were: in evaluation mode."""
    said = []
    for recompute in (False, True):
        policy = Policy(build("gpt2"), recompute=recompute)
        (policy(pack(random_groups(4)))[0].sum()).backward()
        assert not any(module.training for module in policy.model.modules())
        engine = NativeEngine(policy.model, tokenizer, torch.float32)
        said.append(engine.generate([[5, 9, 2]], 2, Sampling(8, 0.9), [3]))
    assert said[0] == said[1]


def test_layers_that_drop_out_by_themselves_are_refused():
    config = OPTConfig(
        vocab_size=97, hidden_size=32, ffn_dim=64, num_hidden_layers=2, num_attention_heads=4, dropout=0.5
    )
    with pytest.raises(PosttrainError, match="train.activation_checkpointing: OPTForCausalLM"):
        Policy(OPTForCausalLM(config).eval(), recompute=True)

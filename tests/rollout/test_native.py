"""The engine against transformers: the same tokens and log-probabilities, whatever else is in the batch."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from posttrain import decoder
from posttrain.rollout import native
from posttrain.rollout.forward import Layers, Modules
from posttrain.rollout.native import NativeEngine
from posttrain.types import Completion, Sampling

FAMILIES = ["llama", "qwen3", "gpt2"]
WAYS = [
    *FAMILIES,
    "llama/layers",
    "qwen2/layers",
    "qwen3/layers",
]  # by the model's own modules, or by posttrain.decoder
PROMPTS = [[5, 9, 2], [7], list(range(2, 60)), [9, 9, 9, 9, 9, 9], [3]]
SEEDS = [11, 22, 33, 44, 55]
SAMPLED = Sampling(max_tokens=12, temperature=0.9)

Build = Callable[..., PreTrainedModel]


def engine_of(
    policy: PreTrainedModel, way: str, tokenizer: PreTrainedTokenizerFast, dtype: torch.dtype
) -> NativeEngine:
    layers = decoder.layers_of(policy) if way.endswith("/layers") else None
    engine = NativeEngine(policy, tokenizer, dtype, layers=layers)
    assert isinstance(engine.model, Layers) == way.endswith("/layers")
    return engine


def family_of(way: str) -> str:
    return way.removesuffix("/layers")


@pytest.fixture
def engine(build: Build, tokenizer: PreTrainedTokenizerFast) -> NativeEngine:
    return NativeEngine(build(), tokenizer, torch.float32)


def plain_logprobs(model: PreTrainedModel, prompt: list[int], tokens: list[int], temperature: float) -> Any:
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt + tokens]), use_cache=False).logits[0]
    spans = logits[len(prompt) - 1 : -1].double() / temperature
    return spans.log_softmax(-1).gather(1, torch.tensor(tokens)[:, None])[:, 0]


def tokens_of(groups: list[list[Completion]]) -> list[list[list[int]]]:
    return [[completion.tokens for completion in group] for group in groups]


def assert_same(one: list[list[Completion]], other: list[list[Completion]]) -> None:
    assert tokens_of(one) == tokens_of(other)
    for a, b in zip(one, other, strict=True):
        for x, y in zip(a, b, strict=True):
            assert (x.finish, x.text) == (y.finish, y.text)
            assert x.logprobs == pytest.approx(y.logprobs, abs=1e-4)


@pytest.mark.parametrize("way", WAYS)
def test_greedy_equals_transformers(way: str, build: Build, tokenizer: PreTrainedTokenizerFast) -> None:
    engine = engine_of(build(family_of(way)), way, tokenizer, torch.float32)
    groups = engine.generate(PROMPTS, 1, Sampling(max_tokens=20, temperature=0.0), SEEDS)
    theirs: Any = build(family_of(way))
    for prompt, [completion] in zip(PROMPTS, groups, strict=True):
        ids = torch.tensor([prompt])
        whole = theirs.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=20, do_sample=False)
        assert completion.tokens == whole[0, len(prompt) :].tolist()
        assert completion.finish == ("stop" if completion.tokens[-1] == 1 else "length")
        exact = plain_logprobs(theirs, prompt, completion.tokens, 1.0)
        torch.testing.assert_close(torch.tensor(completion.logprobs).double(), exact, atol=1e-4, rtol=0)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_log_probabilities_equal_a_plain_forward(
    way: str, temperature: float, build: Build, tokenizer: PreTrainedTokenizerFast
) -> None:
    engine = engine_of(build(family_of(way)), way, tokenizer, torch.float32)
    engine.ends = torch.arange(1, 20)  # so that rows leave the batch on the way
    groups = engine.generate(PROMPTS, 6, Sampling(max_tokens=16, temperature=temperature), SEEDS)
    plain = build(family_of(way))
    assert len({len(completion.tokens) for group in groups for completion in group}) > 4
    for prompt, group in zip(PROMPTS, groups, strict=True):
        for completion in group:
            assert len(completion.tokens) == len(completion.logprobs)
            exact = plain_logprobs(plain, prompt, completion.tokens, temperature)
            torch.testing.assert_close(torch.tensor(completion.logprobs).double(), exact, atol=1e-4, rtol=0)


def test_the_same_seed_draws_the_same_and_another_does_not(engine: NativeEngine) -> None:
    first = engine.generate(PROMPTS, 3, SAMPLED, SEEDS)
    assert engine.generate(PROMPTS, 3, SAMPLED, SEEDS) == first
    other = engine.generate(PROMPTS, 3, SAMPLED, [seed + 1 for seed in SEEDS])
    assert all(a != b for a, b in zip(tokens_of(first), tokens_of(other), strict=True))
    assert len({tuple(completion.tokens) for completion in first[0]}) == 3, "one draw for a whole group"


@pytest.mark.parametrize("rows", [1, 3, 4, 128])
def test_the_batch_a_row_is_in_changes_nothing(
    rows: int, build: Build, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = NativeEngine(build(), tokenizer, torch.float32)
    expected = together.generate(PROMPTS, 3, SAMPLED, SEEDS)
    engine = NativeEngine(build(), tokenizer, torch.float32, rows=rows)
    decoded = engine._batch
    sizes: list[int] = []

    def counted(prompts: Any, uniform: torch.Tensor, *rest: Any) -> Any:
        sizes.append(uniform.shape[0] * uniform.shape[1])
        return decoded(prompts, uniform, *rest)

    monkeypatch.setattr(engine, "_batch", counted)
    assert_same(engine.generate(PROMPTS, 3, SAMPLED, SEEDS), expected)
    assert sum(sizes) == 15 and max(sizes) <= rows
    alone = [engine.generate([p], 3, SAMPLED, [s])[0] for p, s in zip(PROMPTS, SEEDS, strict=True)]
    assert_same(alone, expected)
    backwards = engine.generate(PROMPTS[::-1], 3, SAMPLED, SEEDS[::-1])
    assert_same(backwards[::-1], expected)


@pytest.mark.parametrize("ends", [range(1, 2), range(1, 15), range(1, 60)], ids=["rare", "some", "most"])
@pytest.mark.parametrize("keep", [0.0, 0.8, 1.0], ids=["never", "shipped", "always"])
def test_a_row_ends_at_its_first_end_token(
    ends: range, keep: float, engine: NativeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether ended rows leave the batch at once, later or never, the others go on as if they were alone."""
    sampling = Sampling(max_tokens=14, temperature=1.1)
    engine.ends = torch.tensor([], dtype=torch.long)
    endless = engine.generate(PROMPTS, 5, sampling, SEEDS)
    assert {completion.finish for group in endless for completion in group} == {"length"}
    monkeypatch.setattr(native, "KEEP", keep)
    engine.ends = torch.tensor(list(ends))
    for whole, group in zip(endless, engine.generate(PROMPTS, 5, sampling, SEEDS), strict=True):
        for uncut, completion in zip(whole, group, strict=True):
            stop = next((i for i, token in enumerate(uncut.tokens) if token in ends), None)
            expected = uncut.tokens if stop is None else uncut.tokens[: stop + 1]
            assert completion.tokens == expected
            assert completion.logprobs == pytest.approx(uncut.logprobs[: len(expected)], abs=1e-4)
            assert completion.finish == ("length" if stop is None else "stop")


def test_text_leaves_the_end_token_out(engine: NativeEngine) -> None:
    engine.ends = torch.tensor([1, *range(85, 97)])
    [group] = engine.generate([[5, 6]], 8, SAMPLED, [3])
    for completion in group:
        said = completion.tokens[:-1] if completion.finish == "stop" else completion.tokens
        assert completion.text == "".join(f"<{token}>" for token in said)
    assert {completion.finish for completion in group} == {"stop", "length"}


def test_one_token_and_no_longer(engine: NativeEngine) -> None:
    groups = engine.generate(PROMPTS, 4, Sampling(max_tokens=1), SEEDS)
    longer = engine.generate(PROMPTS, 1, Sampling(max_tokens=6, temperature=0.0), SEEDS)
    short = engine.generate(PROMPTS, 1, Sampling(max_tokens=1, temperature=0.0), SEEDS)
    assert all(len(completion.tokens) == 1 for group in groups for completion in group)
    assert [group[0].tokens for group in short] == [group[0].tokens[:1] for group in longer]


def test_every_completion_ends_at_once(engine: NativeEngine) -> None:
    engine.ends = torch.arange(97)
    groups = engine.generate(PROMPTS, 4, SAMPLED, SEEDS)
    for completion in (completion for group in groups for completion in group):
        assert (len(completion.tokens), completion.finish, completion.text) == (1, "stop", "")


def test_nothing_to_do(engine: NativeEngine) -> None:
    assert engine.generate([], 4, SAMPLED, []) == []


def test_truncated_sampling_keeps_to_the_kept(build: Build, tokenizer: PreTrainedTokenizerFast) -> None:
    engine = NativeEngine(build(), tokenizer, torch.float32)
    [group] = engine.generate([[5, 6, 7]], 20, Sampling(max_tokens=10, top_k=2), [1])
    plain = build()
    for completion in group:
        for t, token in enumerate(completion.tokens):
            with torch.no_grad():
                logits = plain(input_ids=torch.tensor([[5, 6, 7, *completion.tokens[:t]]])).logits[0, -1]
            two = logits.topk(2)
            assert token in two.indices.tolist()
            exact = two.values.log_softmax(0)[two.indices.tolist().index(token)]
            assert completion.logprobs[t] == pytest.approx(float(exact), abs=1e-4)


def test_progress_is_told_and_may_stop_the_generation(engine: NativeEngine) -> None:
    told: list[tuple[int, int]] = []
    expected = engine.generate(PROMPTS, 3, SAMPLED, SEEDS, lambda done, total: told.append((done, total)))
    assert told[-1] == (15, 15) and {total for _, total in told} == {15}
    assert [done for done, _ in told] == sorted(done for done, _ in told)

    class Enough(Exception):
        pass

    for last in (0, 1, len(told) // 2):
        calls = 0
        assert isinstance(engine.model, Modules)

        def stop(done: int, total: int) -> None:
            nonlocal calls
            calls += 1
            if calls > last:  # noqa: B023
                raise Enough

        model = engine.model.model
        model.train()
        with pytest.raises(Enough):
            engine.generate(PROMPTS, 3, SAMPLED, SEEDS, stop)
        assert model.training, "left in evaluation mode"
        assert engine.generate(PROMPTS, 3, SAMPLED, SEEDS) == expected


@pytest.mark.parametrize("rows", [1, 2, 6, 128])
def test_a_group_is_handed_over_as_soon_as_it_has_ended(
    rows: int, build: Build, tokenizer: PreTrainedTokenizerFast
) -> None:
    engine = NativeEngine(build(), tokenizer, torch.float32, rows=rows)
    engine.ends = torch.arange(1, 30)
    done, given = [0], []

    def on_group(i: int, completions: list[Completion]) -> None:
        given.append((i, done[-1], completions, copy.deepcopy(completions)))

    groups = engine.generate(PROMPTS, 3, SAMPLED, SEEDS, lambda k, _: done.append(k), on_group)
    assert sorted(i for i, *_ in given) == list(range(5))
    assert all(groups[i] is theirs and theirs == then for i, _, theirs, then in given)
    assert groups == NativeEngine.generate(engine, PROMPTS, 3, SAMPLED, SEEDS)
    if rows == 128:  # all in one batch
        everything = [completion for group in groups for completion in group]
        for _, ended, group, _ in given:
            last = max(len(completion.tokens) for completion in group)
            cut = any(completion.finish == "length" for completion in group)
            before = [c for c in everything if c.finish == "stop" and (cut or len(c.tokens) < last)]
            # Handed over before progress is told, which may raise to stop.
            assert ended == len(before)
        assert min(ended for _, ended, *_ in given) < 15, "none ended before the batch"


# -- the low-precision copy --------------------------------------------------------------------------------


def moved(policy: PreTrainedModel) -> None:
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)


@pytest.mark.parametrize("way", WAYS)
def test_the_copy_takes_new_weights(way: str, build: Build, tokenizer: PreTrainedTokenizerFast) -> None:
    policy = build(family_of(way))
    engine = engine_of(policy, way, tokenizer, torch.bfloat16)
    before = engine.generate(PROMPTS, 2, SAMPLED, SEEDS)
    moved(policy)
    assert engine.generate(PROMPTS, 2, SAMPLED, SEEDS) == before, "the copy is the policy itself"
    engine.sync(policy)
    after = engine.generate(PROMPTS, 2, SAMPLED, SEEDS)
    assert tokens_of(after) != tokens_of(before)
    assert after == engine_of(policy, way, tokenizer, torch.bfloat16).generate(PROMPTS, 2, SAMPLED, SEEDS)
    assert {parameter.dtype for parameter in policy.parameters()} == {torch.float32}
    assert all(parameter.requires_grad for parameter in policy.parameters())


@pytest.mark.parametrize("way", ["llama", "llama/layers"])
def test_in_its_own_type_the_policy_itself_generates(
    way: str, build: Build, tokenizer: PreTrainedTokenizerFast
) -> None:
    policy = build()
    engine = engine_of(policy, way, tokenizer, torch.float32)
    before = engine.generate(PROMPTS, 2, SAMPLED, SEEDS)
    moved(policy)
    engine.sync(policy)
    after = engine.generate(PROMPTS, 2, SAMPLED, SEEDS)
    assert tokens_of(after) != tokens_of(before)
    assert_same(after, NativeEngine(policy, tokenizer, torch.float32).generate(PROMPTS, 2, SAMPLED, SEEDS))
    assert all(parameter.requires_grad for parameter in policy.parameters())


@pytest.mark.parametrize("way", ["qwen3", "qwen3/layers"])
def test_the_copy_is_close_to_the_policy(way: str, build: Build, tokenizer: PreTrainedTokenizerFast) -> None:
    policy = build("qwen3")
    engine = engine_of(policy, way, tokenizer, torch.bfloat16)
    groups = engine.generate(PROMPTS, 4, SAMPLED, SEEDS)
    plain = build("qwen3")
    off: list[float] = []
    for prompt, group in zip(PROMPTS, groups, strict=True):
        for completion in group:
            exact = plain_logprobs(plain, prompt, completion.tokens, SAMPLED.temperature)
            off += (torch.tensor(completion.logprobs).double() - exact).abs().tolist()
    assert 0 < sum(off) / len(off) < 0.2


@pytest.mark.parametrize("way", WAYS)
def test_after_a_rest_the_next_sync_brings_everything_back(way, build, tokenizer):
    policy = build(family_of(way))
    engine = engine_of(policy, way, tokenizer, torch.bfloat16)
    before = engine.generate(PROMPTS, 2, SAMPLED, SEEDS)
    engine.rest()
    if isinstance(engine.model, Layers):
        assert not any(isinstance(x, torch.Tensor) for x in (engine.model.linears, engine.model.table))
    engine.sync(policy)
    assert engine.generate(PROMPTS, 2, SAMPLED, SEEDS) == before

"""The fallback engine keeps the same contract as the native one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from posttrain.rollout.native import NativeEngine
from posttrain.rollout.plain import PlainEngine
from posttrain.types import Sampling

PROMPTS = [[5, 9, 2], [7], list(range(2, 40))]
SEEDS = [11, 22, 33]
SAMPLED = Sampling(max_tokens=10, temperature=0.8)

Build = Callable[..., PreTrainedModel]


def logprobs(model: PreTrainedModel, prompt: list[int], tokens: list[int], sampling: Sampling) -> list[float]:
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt + tokens]), use_cache=False).logits[0]
    rows = logits[len(prompt) - 1 : -1] / (sampling.temperature or 1.0)
    if sampling.top_k:
        rows = rows.masked_fill(rows < rows.topk(sampling.top_k).values[:, -1:], -torch.inf)
    return rows.log_softmax(-1).gather(1, torch.tensor(tokens)[:, None])[:, 0].tolist()


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_greedy_equals_the_native_engine(
    family: str, build: Build, tokenizer: PreTrainedTokenizerFast
) -> None:
    greedy = Sampling(max_tokens=15, temperature=0.0)
    plain = PlainEngine(build(family), tokenizer, torch.float32).generate(PROMPTS, 2, greedy, SEEDS)
    ours = NativeEngine(build(family), tokenizer, torch.float32).generate(PROMPTS, 2, greedy, SEEDS)
    for a, b in zip(plain, ours, strict=True):
        for x, y in zip(a, b, strict=True):
            assert (x.tokens, x.finish, x.text) == (y.tokens, y.finish, y.text)
            assert x.logprobs == pytest.approx(y.logprobs, abs=1e-4)


@pytest.mark.parametrize("sampling", [SAMPLED, Sampling(max_tokens=10, top_k=3)], ids=["all", "top-k"])
def test_log_probabilities_ends_and_text(
    sampling: Sampling, build: Build, tokenizer: PreTrainedTokenizerFast
) -> None:
    engine = PlainEngine(build(), tokenizer, torch.float32)
    engine.ends = list(range(1, 25))
    groups = engine.generate(PROMPTS, 6, sampling, SEEDS)
    finishes = set()
    for prompt, group in zip(PROMPTS, groups, strict=True):
        for completion in group:
            finishes.add(completion.finish)
            ended = completion.finish == "stop"
            said = completion.tokens[:-1] if ended else completion.tokens
            assert (completion.tokens[-1] in engine.ends) == ended
            assert not set(said) & set(engine.ends)
            assert completion.text == "".join(f"<{token}>" for token in said)
            exact = logprobs(build(), prompt, completion.tokens, sampling)
            assert completion.logprobs == pytest.approx(exact, abs=1e-4)
    assert finishes == {"stop", "length"}


def test_repeatable_and_apart_from_torchs_own_randomness(
    build: Build, tokenizer: PreTrainedTokenizerFast
) -> None:
    engine = PlainEngine(build(), tokenizer, torch.float32)
    state = torch.random.get_rng_state()
    first = engine.generate(PROMPTS, 3, SAMPLED, SEEDS)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.rand(3)
    assert engine.generate(PROMPTS, 3, SAMPLED, SEEDS) == first
    assert engine.generate(PROMPTS[1:2], 3, SAMPLED, SEEDS[1:2])[0] == first[1]


def test_what_the_model_says_about_generation_does_not_change_the_distribution(
    build: Build, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Checkpoints bring a generation_config with penalties and cuts, which the trainer knows nothing of."""
    model = build()
    engine = PlainEngine(model, tokenizer, torch.float32)
    expected = engine.generate(PROMPTS, 3, SAMPLED, SEEDS)
    config = model.generation_config
    assert config is not None
    config.update(repetition_penalty=3.0, top_k=2, top_p=0.5, min_p=0.3, typical_p=0.5, do_sample=True)
    config.update(no_repeat_ngram_size=1, min_new_tokens=10, max_length=5, forced_eos_token_id=1)
    assert engine.generate(PROMPTS, 3, SAMPLED, SEEDS) == expected
    greedy = Sampling(max_tokens=15, temperature=0.0)
    native = NativeEngine(build(), tokenizer, torch.float32).generate(PROMPTS, 1, greedy, SEEDS)
    plain = engine.generate(PROMPTS, 1, greedy, SEEDS)
    assert [group[0].tokens for group in plain] == [group[0].tokens for group in native]


def test_the_copy_takes_new_weights(build: Build, tokenizer: PreTrainedTokenizerFast) -> None:
    policy = build()
    engine = PlainEngine(policy, tokenizer, torch.bfloat16)
    before = engine.generate(PROMPTS, 2, SAMPLED, SEEDS)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.mul_(-1.3)
    assert engine.generate(PROMPTS, 2, SAMPLED, SEEDS) == before
    engine.sync(policy)
    after = engine.generate(PROMPTS, 2, SAMPLED, SEEDS)
    assert after != before
    assert after == PlainEngine(policy, tokenizer, torch.bfloat16).generate(PROMPTS, 2, SAMPLED, SEEDS)


def test_groups_are_handed_over_one_by_one(build: Build, tokenizer: PreTrainedTokenizerFast) -> None:
    engine = PlainEngine(build(), tokenizer, torch.float32)
    told: list[Any] = []
    groups = engine.generate(
        PROMPTS, 2, SAMPLED, SEEDS, lambda done, _: told.append(done), lambda *given: told.append(given)
    )
    assert told == [0, (0, groups[0]), 2, (1, groups[1]), 4, (2, groups[2])]
    assert all(told[2 * i + 1][1] is group for i, group in enumerate(groups))


def test_progress_may_stop_it(build: Build, tokenizer: PreTrainedTokenizerFast) -> None:
    engine = PlainEngine(build(), tokenizer, torch.float32)
    told: list[tuple[int, int]] = []

    def stop(done: int, total: int) -> None:
        told.append((done, total))
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine.generate(PROMPTS, 2, SAMPLED, SEEDS, stop)
    assert told == [(0, 6), (2, 6)]
    assert len(engine.generate(PROMPTS, 2, SAMPLED, SEEDS)) == 3
    assert engine.generate([], 2, SAMPLED, []) == []

"""A row's tokens and log-probabilities are the same to the last bit, alone and among others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from posttrain import decoder
from posttrain.rollout import steady
from posttrain.rollout.native import NativeEngine
from posttrain.rollout.steady import SteadyEngine
from posttrain.types import Completion, Sampling

Build = Callable[..., PreTrainedModel]
PROMPTS = [[5, 9, 2], [7], list(range(2, 60)), [9] * 6, [3], [*range(2, 90), 4], [5, 9, 2, 2]]
SEEDS = [11, 22, 33, 44, 55, 66, 77]
GREEDY, SAMPLED = Sampling(10, temperature=0.0), Sampling(10, temperature=1.1, top_p=0.95)


@pytest.fixture(params=["llama", "qwen3/layers", "gpt2"])
def make(request: Any, build: Build, tokenizer: PreTrainedTokenizerFast) -> Callable[..., SteadyEngine]:
    def engine(dtype: torch.dtype = torch.bfloat16, rows: int = 16) -> SteadyEngine:
        policy = build(request.param.removesuffix("/layers"))
        layers = decoder.layers_of(policy) if request.param.endswith("/layers") else None
        made = SteadyEngine(policy, tokenizer, dtype, rows, layers)
        made.ends = torch.arange(1, 9)  # so that rows leave the batch on the way
        return made

    return engine


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_neighbours_change_no_bit(make: Any, dtype: torch.dtype, sampling: Sampling) -> None:
    engine = make(dtype)
    together = engine.generate(PROMPTS, 3, sampling, SEEDS)
    alone = [engine.generate([p], 3, sampling, [s])[0] for p, s in zip(PROMPTS, SEEDS, strict=True)]
    assert alone == together, "tokens, or a bit of a log-probability, hang on the batch"
    assert engine.generate(PROMPTS[::-1], 3, sampling, SEEDS[::-1])[::-1] == together
    two = engine.generate([PROMPTS[2], PROMPTS[0]], 3, sampling, [SEEDS[2], SEEDS[0]])
    assert two == [together[2], together[0]]
    assert sampling is GREEDY or len({len(c.tokens) for group in together for c in group}) > 4


def test_the_same_tokens_as_the_native_engine(
    make: Any, build: Build, tokenizer: PreTrainedTokenizerFast
) -> None:
    engine = make(torch.float32)
    other = NativeEngine(
        engine.model.policy if hasattr(engine.model, "policy") else engine.model.model,
        tokenizer,
        torch.float32,
    )
    other.ends = engine.ends
    for sampling in (GREEDY, SAMPLED):
        for a, b in zip(
            engine.generate(PROMPTS, 3, sampling, SEEDS),
            other.generate(PROMPTS, 3, sampling, SEEDS),
            strict=True,
        ):
            for x, y in zip(a, b, strict=True):
                assert (x.tokens, x.finish, x.text) == (y.tokens, y.finish, y.text)
                assert x.logprobs == pytest.approx(y.logprobs, abs=1e-4)


def test_sizes_that_disagree_are_not_used(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Products that round differently with 4 rows, and with 16 by where a row stands."""
    engine = make(torch.float32)
    exact = engine.model.logits

    def rounding(hidden: torch.Tensor) -> torch.Tensor:
        logits = exact(hidden)
        if len(hidden) == 4:
            logits += 1e-5
        if len(hidden) == 16:
            logits[3] += 1e-5
        return logits

    monkeypatch.setattr(engine.model, "logits", rounding)
    assert engine.sizes and not {16, 4} & set(engine.sizes)
    asked: list[int] = []
    monkeypatch.setattr(
        engine.model, "logits", lambda hidden: (asked.append(len(hidden)), rounding(hidden))[1]
    )
    together = engine.generate(PROMPTS, 3, GREEDY, SEEDS)
    assert set(asked) <= set(engine.sizes)
    assert [engine.generate([p], 3, GREEDY, [0])[0] for p in PROMPTS] == together


def test_nothing_agrees(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make(torch.float32)
    monkeypatch.setattr(steady, "_same", lambda *_, **__: False)
    assert engine.sizes == [1]
    assert [len(group) for group in engine.generate(PROMPTS, 2, SAMPLED, SEEDS)] == [2] * len(PROMPTS)


def test_a_prompt_is_run_once_a_batch(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make(torch.float32)
    engine.sizes  # noqa: B018  the trial is no prefill, but it runs the model
    run: list[list[int]] = []
    once = NativeEngine._prefill

    def counted(self: Any, prompts: list[list[int]], n: int) -> Any:
        run.extend(prompts)
        return once(self, prompts, n)

    monkeypatch.setattr(NativeEngine, "_prefill", counted)
    engine.generate(PROMPTS[:2], 5, SAMPLED, SEEDS[:2])
    assert run == PROMPTS[:2]


def test_groups_and_progress_are_told(make: Any) -> None:
    engine = make()
    told: list[tuple[int, int]] = []
    groups: dict[int, list[Completion]] = {}

    def on_group(i: int, group: list[Completion]) -> None:
        assert i not in groups
        groups[i] = group

    out = engine.generate(PROMPTS, 3, SAMPLED, SEEDS, lambda *k: told.append(k), on_group)
    assert [groups[i] for i in range(len(PROMPTS))] == out
    assert told == sorted(told) and told[-1] == (21, 21)
    assert engine.generate([], 3, SAMPLED, []) == []

"""The packed layout: it makes no index that nobody asks for. Which layout is in force, where."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from posttrain import attention
from posttrain.attention import PackedLayout, attending
from posttrain.rollout import native
from posttrain.rollout.native import NativeEngine
from posttrain.train.logprobs import Policy
from posttrain.train.packing import TrainGroup, TrainRow, pack
from posttrain.types import Sampling

Build = Callable[..., PreTrainedModel]
LAZY = ("prompts", "own", "seen", "inverse", "blocks")


def made(layout: PackedLayout) -> set[str]:
    return set(vars(layout)).intersection(LAZY)


def test_the_worked_example() -> None:
    """Prompt 0 1, completions 2 3 and 4; prompt 5, completions 6 and none."""
    layout = PackedLayout.of([2, 1], [[2, 1], [1, 0]])
    assert layout.prompts[0].tolist() == [[0, 1], [5, 0]]
    assert layout.prompts[1].tolist() == [[True, True], [True, False]]
    assert layout.own[0].tolist() == [[2, 3], [4, 0], [6, 0], [0, 0]]
    keys, mask = layout.seen
    assert keys.tolist() == [[0, 1, 2, 3], [0, 1, 4, 0], [5, 0, 6, 0], [5, 0, 0, 0]]
    assert mask[0, 0].int().tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    assert mask[1, 0].int().tolist() == [[1, 1, 1, 0], [1, 1, 1, 0]]
    assert mask[2, 0].int().tolist() == [[1, 0, 1, 0], [1, 0, 1, 0]]
    assert mask[3, 0].int().tolist() == [[1, 0, 0, 0], [1, 0, 0, 0]]  # nobody's, and not NaN
    assert layout.inverse.tolist() == [0, 1, 4, 5, 6, 2, 8]


def test_nothing_is_made_before_it_is_asked_for() -> None:
    layout = PackedLayout.of([2, 1], [[2, 1], [1, 0]])
    assert not [name for name, value in vars(layout).items() if isinstance(value, torch.Tensor)]
    assert not made(layout)


@pytest.mark.parametrize(("by_layers", "expected"), [(True, set()), (False, set(LAZY) - {"blocks"})])
def test_layers_by_hand_ask_for_nothing(by_layers: bool, expected: set[str], build: Build) -> None:
    policy = Policy(build("llama"))
    if not by_layers:
        policy.layers = None
    batch = pack([TrainGroup([5, 6], [TrainRow([7, 8], [0.0, 0.0], 1.0, 1.0)])])
    logp, _ = policy(batch)
    logp.sum().backward()
    assert made(batch.layout) == expected


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_prefill_makes_the_prompts_indices_alone(
    family: str, build: Build, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    layouts: list[PackedLayout] = []

    class Seen(PackedLayout):
        @staticmethod
        def of(*args, **kwargs):
            layouts.append(PackedLayout.of(*args, **kwargs))
            return layouts[-1]

    monkeypatch.setattr(native, "PackedLayout", Seen)
    engine = NativeEngine(build(family), tokenizer, torch.float32)
    engine.generate([[5, 9, 2], [7]], 2, Sampling(max_tokens=3), [1, 2])
    [layout] = layouts
    assert made(layout) == {"prompts", "own", "inverse"} and layout.own[0].numel() == 0


def test_a_layout_is_in_force_in_its_own_thread_alone() -> None:
    mine, other = PackedLayout.of([2], [[1]]), PackedLayout.of([3], [[2]])

    def elsewhere() -> tuple[object, object]:
        before = attention._layout.get()
        with attending(other):
            return before, attention._layout.get()

    with ThreadPoolExecutor(1) as thread, attending(mine):
        assert thread.submit(elsewhere).result() == (None, other)
        with attending(other):
            assert attention._layout.get() is other
        assert attention._layout.get() is mine
    assert attention._layout.get() is None

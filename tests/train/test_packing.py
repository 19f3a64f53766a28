"""Packing: where every token goes, what a budget does to micro-batches; that cutting changes no gradient."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence

import pytest
import torch
from transformers import PreTrainedModel

from posttrain.train.logprobs import Policy
from posttrain.train.packing import TrainGroup, TrainRow, micro_batches, pack

Build = Callable[..., PreTrainedModel]


def row(tokens: list[int], advantage: float = 1.0, weight: float = 1.0) -> TrainRow:
    return TrainRow(tokens, [-0.5 * token for token in tokens], advantage, weight)


def groups_of(seed: int, count: int, longest: int = 30) -> list[TrainGroup]:
    rng = random.Random(seed)

    def ids(most: int) -> list[int]:
        return [rng.randrange(2, 97) for _ in range(rng.randint(1, most))]

    return [
        TrainGroup(
            ids(20), [row(ids(longest), rng.gauss(0, 1), rng.random()) for _ in range(rng.randint(1, 6))]
        )
        for _ in range(count)
    ]


def rows_of(groups: Sequence[TrainGroup]) -> Counter[tuple[tuple[int, ...], tuple[int, ...], float]]:
    return Counter((tuple(g.prompt), tuple(r.tokens), r.advantage) for g in groups for r in g.rows)


def test_the_worked_example() -> None:
    a, b, c, d, e = 10, 11, 12, 13, 14
    batch = pack([TrainGroup([a, b], [row([c, d], 0.5, 0.25), row([e], -1.0, 2.0)])])
    assert batch.tokens.tolist() == [a, b, c, d, e]
    assert batch.positions.tolist() == [0, 1, 2, 3, 2]
    assert batch.predict.tolist() == [1, 2, 1]
    assert batch.target.tolist() == [c, d, e]
    assert batch.row.tolist() == [0, 0, 1]
    assert batch.sampled.tolist() == [-6.0, -6.5, -7.0]
    assert batch.advantage.tolist() == [0.5, -1.0] and batch.weight.tolist() == [0.25, 2.0]
    assert len(batch) == 5


def test_a_second_group_starts_anew() -> None:
    batch = pack([TrainGroup([2, 3], [row([4])]), TrainGroup([5], [row([6, 7]), row([8])])])
    assert batch.tokens.tolist() == [2, 3, 4, 5, 6, 7, 8]
    assert batch.positions.tolist() == [0, 1, 2, 0, 1, 2, 1]
    assert batch.predict.tolist() == [1, 3, 4, 3]
    assert batch.row.tolist() == [0, 1, 1, 2]


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("budget", [1, 40, 100, 333, 100_000])
def test_micro_batches_keep_the_budget_and_every_row(seed: int, budget: int) -> None:
    groups = groups_of(seed, count=seed % 7 + 1)
    batches = micro_batches(groups, budget)
    assert all(batches) and all(group.rows for batch in batches for group in batch)
    assert rows_of([group for batch in batches for group in batch]) == rows_of(groups)
    for batch in batches:
        load = sum(group.tokens for group in batch)
        alone = len(batch) == 1 and len(batch[0].rows) == 1
        assert load <= budget or alone, f"{load} tokens in a batch of {budget}"


def test_micro_batches_are_of_like_size() -> None:
    groups = [TrainGroup([3] * 10, [row([4] * 20) for _ in range(4)]) for _ in range(9)]  # 90 tokens each
    loads = [sum(group.tokens for group in batch) for batch in micro_batches(groups, 300)]
    assert sorted(loads) == [270, 270, 270]
    loads = [sum(group.tokens for group in batch) for batch in micro_batches(groups_of(5, 40), 500)]
    assert max(loads) - min(loads) < 60 and len(loads) <= 1.3 * sum(loads) / 500


def test_one_group_over_the_budget_does_not_take_the_others_apart() -> None:
    small = [TrainGroup([3] * 10, [row([4] * 20) for _ in range(2)]) for _ in range(10)]  # 50 tokens each
    huge = TrainGroup([5] * 250, [row([6] * 100), row([7] * 100)])
    batches = micro_batches([*small, huge], 300)
    loads = sorted(sum(group.tokens for group in batch) for batch in batches)
    assert loads == [250, 250, 350, 350]


def test_a_group_over_the_budget_is_cut_between_completions() -> None:
    group = TrainGroup([2] * 10, [row([3] * n) for n in (30, 10, 20, 40)])
    batches = micro_batches([group], 60)
    lengths = sorted(sorted(len(r.tokens) for r in piece.rows) for batch in batches for piece in batch)
    assert lengths == [[10, 20], [30], [40]]
    assert all(piece.prompt == group.prompt for batch in batches for piece in batch)


def test_nothing_to_pack() -> None:
    assert micro_batches([], 100) == []
    assert micro_batches([TrainGroup([1, 2], [])], 100) == []


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("budget", [1, 60, 150])
def test_micro_batches_add_up_to_the_gradient_of_one(family: str, budget: int, build: Build) -> None:
    groups = groups_of(3, 5)

    def gradient(batches: list[list[TrainGroup]]) -> tuple[float, list[torch.Tensor]]:
        policy = Policy(build(family))
        assert policy.packed
        total = 0.0
        for some in batches:
            batch = pack(some)
            logp, _ = policy(batch)
            loss = -(logp * (batch.advantage * batch.weight)[batch.row]).sum()
            loss.backward()
            total += loss.item()
        return total, [p.grad for p in policy.parameters() if p.grad is not None]

    expected, whole = gradient([groups])
    batches = micro_batches(groups, budget)
    assert len(batches) > 1
    loss, parts = gradient(batches)
    assert loss == pytest.approx(expected, rel=1e-4)
    norm = torch.stack([g.norm() for g in whole]).norm()
    difference = torch.stack([(a - b).norm() for a, b in zip(whole, parts, strict=True)]).norm()
    assert difference < 1e-4 * norm

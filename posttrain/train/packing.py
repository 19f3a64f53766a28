"""Packed batches: each group's prompt once, then its completions, no padding; split by a token budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from posttrain.attention import PackedLayout


@dataclass
class TrainRow:
    """One completion to learn from. `weight` is each token's share in the loss (loss.token_weights)."""

    tokens: list[int]
    sampled: list[float]  # the engine's log-probability of each token
    advantage: float
    weight: float


@dataclass
class TrainGroup:
    """A prompt and those of its completions that carry signal."""

    prompt: list[int]
    rows: list[TrainRow]

    @property
    def tokens(self) -> int:
        return len(self.prompt) + sum(len(row.tokens) for row in self.rows)


@dataclass
class PackedBatch:
    """T packed tokens of which M, the completions' own, are trained on.

    tokens, positions: [T]; a completion's positions go on from its prompt's.
    predict: [M] packed index of the hidden state that predicts each trained token.
    target, row, sampled: [M] its id, its completion (0 ≤ row < N) and the engine's log-probability of it.
    advantage, weight: [N].
    """

    tokens: Tensor
    positions: Tensor
    predict: Tensor
    target: Tensor
    row: Tensor
    sampled: Tensor
    advantage: Tensor
    weight: Tensor
    layout: PackedLayout
    groups: list[TrainGroup]

    def __len__(self) -> int:
        return self.tokens.shape[0]


def pack(groups: Sequence[TrainGroup], device: torch.device | str = "cpu") -> PackedBatch:
    """Pack groups into one row.

    Example: prompt [a b], completions [c d] and [e] -> tokens a b c d e, positions 0 1 2 3 2, trained targets
    c d e predicted at b c b (packed indices 1 2 1), row 0 0 1.
    """
    tokens: list[int] = []
    positions: list[int] = []
    predict: list[int] = []
    row: list[int] = []
    n = 0
    for group in groups:
        p = len(group.prompt)
        last = len(tokens) + p - 1
        tokens += group.prompt
        positions += range(p)
        for item in group.rows:
            r, at = len(item.tokens), len(tokens)
            predict += [last, *range(at, at + r - 1)][:r]
            row += [n] * r
            positions += range(p, p + r)
            tokens += item.tokens
            n += 1
    rows = [item for group in groups for item in group.rows]
    layout = PackedLayout.of(
        [len(g.prompt) for g in groups], [[len(r.tokens) for r in g.rows] for g in groups], device
    )
    long = lambda x: torch.tensor(x, dtype=torch.long, device=device)  # noqa: E731
    real = lambda x: torch.tensor(x, dtype=torch.float32, device=device)  # noqa: E731
    return PackedBatch(
        tokens=long(tokens),
        positions=long(positions),
        predict=long(predict),
        target=long([t for item in rows for t in item.tokens]),
        row=long(row),
        sampled=real([x for item in rows for x in item.sampled]),
        advantage=real([item.advantage for item in rows]),
        weight=real([item.weight for item in rows]),
        layout=layout,
        groups=list(groups),
    )


def micro_batches(groups: Sequence[TrainGroup], budget: int) -> list[list[TrainGroup]]:
    """Split groups into micro-batches of at most `budget` packed tokens each and of nearly equal size.

    A group over the budget is cut between completions (its prompt is then packed more than once); a single
    completion over the budget has a micro-batch to itself.
    """
    pieces = [piece for group in groups if group.rows for piece in _cut(group, budget)]
    pieces.sort(key=lambda group: group.tokens, reverse=True)
    alone = [[piece] for piece in pieces if piece.tokens > budget]
    pieces = pieces[len(alone) :]
    count = max(1, -(-sum(piece.tokens for piece in pieces) // budget))
    while pieces:
        batches: list[list[TrainGroup]] = [[] for _ in range(count)]
        loads = [0] * count
        for piece in pieces:  # longest first onto the lightest
            i = loads.index(min(loads))
            batches[i].append(piece)
            loads[i] += piece.tokens
        if count >= len(pieces) or max(loads) <= budget:
            return alone + [batch for batch in batches if batch]
        count += 1
    return alone


def _cut(group: TrainGroup, budget: int) -> list[TrainGroup]:
    pieces: list[TrainGroup] = []
    rows: list[TrainRow] = []
    load = len(group.prompt)
    for row in sorted(group.rows, key=lambda row: len(row.tokens)):
        if rows and load + len(row.tokens) > budget:
            pieces.append(TrainGroup(group.prompt, rows))
            rows, load = [], len(group.prompt)
        rows.append(row)
        load += len(row.tokens)
    return [*pieces, TrainGroup(group.prompt, rows)]

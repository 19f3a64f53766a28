"""The native engine where a row's tokens hang on the row alone, to the last bit, whatever is beside it.

Rounding depends on shapes: a product of another number of rows may add in another order, keys that begin in
another column too, and in bfloat16 a near tie of two tokens then falls the other way. Here every shape that a
row meets follows from the row itself. Its prompt is run alone. It is decoded among rows whose prompts fill
the same number of columns, in batches of sizes that a trial at the start found to give each row the same
bits; a batch that comes to none of them is filled up with rows that nobody reads. All of it holds for one
machine, with the same versions and as many threads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

import torch
from torch import Tensor

from posttrain.attention import DecodeLayout, KVCache
from posttrain.rollout.engine import OnGroup, Progress
from posttrain.rollout.native import NativeEngine, _uniform
from posttrain.rollout.sampling import draw
from posttrain.types import Completion, Sampling

COLUMNS = 64  # a prompt's columns in the cache are a multiple of these
TRIED = (64, 320)  # columns of the cache in the trial


class SteadyEngine(NativeEngine):
    _sizes: list[int] | None = None

    @property
    def sizes(self) -> list[int]:
        """Rows that a batch may have, the most first. On many machines the smallest are not among them: a
        product with a single row is made another way."""
        if self._sizes is None:
            with torch.no_grad():
                self._sizes = self._agreeing()
        return self._sizes

    @torch.no_grad()
    def generate(
        self,
        prompts: Sequence[list[int]],
        n: int,
        sampling: Sampling,
        seeds: Sequence[int],
        on_progress: Progress | None = None,
        on_group: OnGroup | None = None,
    ) -> list[list[Completion]]:
        """As Engine.generate; the same prompt, seed, sampling and weights give the same completions.

        Completions of one prompt are rows of their own; the prompt is run once in each batch that has some.
        """
        found: list[dict[int, Completion]] = [{} for _ in prompts]
        done, total = 0, n * len(prompts)
        for rows in self._batches(prompts, n):
            size = self._size(len(rows))
            padded = rows + rows[-1:] * (size - len(rows))
            uniform = torch.stack([_uniform(seeds[i], n, sampling.max_tokens)[k] for i, k in padded])

            def report(ended: int, done: int = done, most: int = len(rows)) -> None:
                if on_progress is not None:
                    on_progress(done + min(ended, most), total)

            def take(row: int, completions: list[Completion], rows=rows) -> None:
                if row < len(rows):
                    i, k = rows[row]
                    found[i][k] = completions[0]
                    if on_group is not None and len(found[i]) == n:
                        on_group(i, [found[i][k] for k in range(n)])

            self._batch([prompts[i] for i, _ in padded], uniform[:, None], sampling, report, take)
            done += len(rows)
        return [[of[k] for k in range(n)] for of in found]

    def keeps(self, alive: Tensor) -> Tensor:
        """Rows that have ended stay where they are needed to make up a size."""
        left = int(alive.sum())
        spare = self._size(left) - left
        return alive | (~alive & (torch.cumsum(~alive, 0) <= spare))

    def _batches(self, prompts: Sequence[list[int]], n: int) -> Iterator[list[tuple[int, int]]]:
        """Rows (prompt, completion) that are decoded together; prompts of one batch have as many columns."""
        order = sorted(range(len(prompts)), key=lambda i: _columns(prompts[i]))
        for _, same in groupby(order, key=lambda i: _columns(prompts[i])):
            rows = [(i, k) for i in same for k in range(n)]
            most = self.sizes[0]
            yield from (rows[first : first + most] for first in range(0, len(rows), most))

    def _size(self, rows: int) -> int:
        return min(size for size in self.sizes if size >= rows)

    def _prefill(self, prompts: Sequence[list[int]], n: int) -> tuple[Tensor, KVCache, None]:
        """Every prompt alone, those that follow each other and are the same once."""
        assert n == 1
        cache = self._cache(len(prompts), _columns(prompts[0]))
        states: list[Tensor] = []
        for i, prompt in enumerate(prompts):
            if i and prompt == prompts[i - 1]:
                states.append(states[-1])
                for tensor in (*cache.keys, *cache.values):
                    tensor[i] = tensor[i - 1]
                continue
            hidden, own, _ = super()._prefill([prompt], 1)
            states.append(hidden[0])
            pairs = ((cache.keys, own.keys), (cache.values, own.values))
            for tensor, mine in (pair for whole, part in pairs for pair in zip(whole, part, strict=True)):
                tensor[i, :, : len(prompt)] = mine[0]
        return torch.stack(states), cache, None

    def _agreeing(self) -> list[int]:
        """Sizes, halved from the most on, that give a row the bits that the largest steady one gives it.

        Steady: a row comes to the same wherever in the batch it stands. Rows are made of random tokens and
        random keys; bits that are the same for all of the vocabulary come of sums in the same order.
        """
        sizes: list[int] = []
        seen: list[Tensor] = []
        size = self.rows
        while size:
            tried = self._trial(size)
            if sizes and _same(tried, [x[:size] for x in seen]):
                sizes.append(size)
            elif not sizes and _same(self._trial(size, turn=1), tried, turn=1):
                sizes, seen = [size], tried
            size //= 2
        return sizes or [1]

    def _trial(self, rows: int, turn: int = 0) -> list[Tensor]:
        """What `rows` random rows come to, turned by so many places: logits [rows, V] and what is drawn."""
        return [out for columns in TRIED for out in self._step(rows, columns, turn)]

    def _step(self, rows: int, columns: int, turn: int) -> list[Tensor]:
        random = torch.Generator().manual_seed(columns)
        keys, values = torch.randn(2, self.rows, self.kv_heads, columns, self.head_dim, generator=random)
        lengths = torch.randint(columns // 2, columns - 1, (self.rows,), generator=random)
        tokens = torch.randint(2, 90, (self.rows,), generator=random)
        uniform = torch.rand(self.rows, generator=random)

        def some(x: Tensor) -> Tensor:
            return x[:rows].roll(turn, 0).to(self.device)

        # One tensor serves all layers: each writes its own new column before it looks.
        cache = KVCache(*([some(x).to(self.dtype)] * self.depth for x in (keys, values)))
        length = some(lengths)
        at = torch.arange(columns, device=self.device)
        hide = torch.finfo(self.dtype).min
        bias = torch.zeros(rows, columns, dtype=self.dtype, device=self.device)
        bias.masked_fill_((at >= length[:, None]) & (at < columns - 1), hide)
        layout = DecodeLayout(cache, bias, columns - 1)
        positions = length[:, None] % 32  # of any model's: a table of positions may be a short one
        hidden = self.model.hidden(some(tokens)[:, None], positions, layout)[:, 0]
        logits = self.model.logits(hidden)
        drawn = draw(logits.clone(), some(uniform), Sampling(1, temperature=0.7, top_k=20, top_p=0.9))
        return [logits, *drawn]


def _columns(prompt: list[int]) -> int:
    return -(-len(prompt) // COLUMNS) * COLUMNS


def _same(one: list[Tensor], other: list[Tensor], turn: int = 0) -> bool:
    """Bit by bit; one is turned by so many places."""
    return all(torch.equal(a, b.roll(turn, 0)) for a, b in zip(one, other, strict=True))

"""From a tower's tokens to the language model's: fewer, if asked, and as wide as its embeddings."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from posttrain.types import PosttrainError
from posttrain.vision.merging import merge
from posttrain.words import did_you_mean

DEPTH = 2  # blocks of the resampler
HEAD = 64  # the width of one of its heads, where that divides

Grid = tuple[int, int]


def build(kind: str, *, width: int, into: int, tokens: int | None, grid: Grid) -> Connector:
    """A connector [B, rows * columns, width] -> [B, n, into] with weights drawn from torch's generator.

    Args:
        kind: linear, mlp, pixel_shuffle, resampler or merge.
        tokens: n, the tokens an image becomes. None: as many as the tower gives (linear, mlp).
        grid: the tower's (rows, columns).
    Raises PosttrainError for an unknown kind and for a number of tokens that it cannot reach.
    """
    if kind not in KINDS:
        near = did_you_mean(kind, KINDS) or f"the kinds are {', '.join(KINDS)}"
        raise PosttrainError(f"there is no connector {kind!r}; {near}")
    if min(grid) < 1:
        raise PosttrainError(
            f"a connector needs at least one token: the tower's grid is {grid[0]} x {grid[1]}"
        )
    return KINDS[kind](width, into, tokens, grid)


def space_to_depth(tokens: Tensor, grid: Grid, factor: int) -> Tensor:
    """Each block of factor x factor tokens becomes one, its rows' features side by side.

    [B, rows * columns, D] -> [B, rows * columns / factor^2, factor^2 * D]; factor divides rows and columns.
    """
    rows, columns = grid
    blocks = tokens.unflatten(1, (rows // factor, factor, columns // factor, factor))
    return blocks.transpose(2, 3).flatten(3, 5).flatten(1, 2)


def depth_to_space(tokens: Tensor, grid: Grid, factor: int) -> Tensor:
    """The inverse of space_to_depth; grid is the large one, that comes out."""
    rows, columns = grid
    blocks = tokens.unflatten(1, (rows // factor, columns // factor)).unflatten(3, (factor, factor, -1))
    return blocks.transpose(2, 3).flatten(1, 4)


def positions(grid: Grid, width: int, like: Tensor) -> Tensor:
    """[rows * columns, width]: sines and cosines of the row, then the column (arXiv 1706.03762, 3.5).

    What four does not divide stays zero.
    """
    quarter = width // 4
    rates = 10_000 ** (-torch.arange(quarter, device=like.device, dtype=torch.float) / max(quarter, 1))
    waves = [torch.arange(side, device=like.device)[:, None] * rates for side in grid]
    row, column = (torch.cat([wave.sin(), wave.cos()], 1) for wave in waves)
    both = torch.cat([row.repeat_interleave(grid[1], 0), column.repeat(grid[0], 1)], 1)
    return F.pad(both, (0, width - both.shape[1])).to(like.dtype)


class Connector(nn.Module):
    """[B, N, D] -> [B, tokens, H]."""

    tokens: int
    """Of an image of the grid that the connector was built for; `count` says it of others."""
    block = 1
    """Rows and columns that become one token each way: a grid's sides are multiples of it."""

    def __init__(self, grid: Grid, tokens: int):
        super().__init__()
        self.grid = grid
        self.tokens = tokens

    def forward(self, x: Tensor, grid: Grid | None = None) -> Tensor:
        """grid: the tokens' rows and columns, where they are not those that it was built for."""
        rows, columns = grid or self.grid
        if x.shape[1] != rows * columns or rows % self.block or columns % self.block:
            raise PosttrainError(
                f"the connector was built for {rows} x {columns} = {rows * columns} tokens an image and got "
                f"{x.shape[1]}: give it images of the size that the model was built for"
                if x.shape[1] != rows * columns
                else f"the connector makes one token of {self.block} x {self.block}, which do not fill an "
                f"image of {rows} x {columns}"
            )
        return self.connect(x, (rows, columns))

    def connect(self, x: Tensor, grid: Grid) -> Tensor:
        raise NotImplementedError

    def count(self, grid: Grid) -> int:
        """The tokens that an image of such a grid becomes."""
        raise NotImplementedError

    def member(self, x: Tensor, grid: Grid | None = None) -> Tensor | None:
        """[B, N, D] -> [B, N]: the token that each of the tower's goes into; None where all go into all."""
        return torch.arange(x.shape[1], device=x.device).expand(len(x), -1)


class Linear(Connector):
    """One layer on every token."""

    def __init__(self, width: int, into: int, tokens: int | None, grid: Grid):
        count = grid[0] * grid[1]
        if tokens not in (None, count):
            raise PosttrainError(
                f"linear and mlp keep the tower's {count} tokens and cannot make {tokens} of them: leave "
                "tokens out, or take pixel_shuffle, resampler or merge"
            )
        super().__init__(grid, count)
        self.project = self.layers(width, into)

    def layers(self, width: int, into: int) -> nn.Module:
        return nn.Linear(width, into)

    def connect(self, x: Tensor, grid: Grid) -> Tensor:
        return self.project(x)

    def count(self, grid: Grid) -> int:
        return grid[0] * grid[1]


class MLP(Linear):
    """Two layers on every token, as in LLaVA 1.5 (arXiv 2310.03744)."""

    def layers(self, width: int, into: int) -> nn.Module:
        return mlp(width, into)


class PixelShuffle(Connector):
    """Blocks of neighbours become one token, then two layers, as in InternVL 1.5 (arXiv 2404.16821)."""

    def __init__(self, width: int, into: int, tokens: int | None, grid: Grid):
        rows, columns = grid
        factors = {rows * columns // f**2: f for f in range(1, min(grid) + 1) if rows % f == 0 == columns % f}
        if tokens is None or tokens not in factors:
            raise PosttrainError(
                f"{_wanted('pixel_shuffle', tokens)} from a grid of {rows} x {columns}; it can make "
                f"{_choice(sorted(factors), tokens)}"
            )
        super().__init__(grid, tokens)
        self.factor = self.block = factors[tokens]
        self.project = mlp(width * self.factor**2, into)

    def connect(self, x: Tensor, grid: Grid) -> Tensor:
        return self.project(space_to_depth(x, grid, self.factor))

    def count(self, grid: Grid) -> int:
        return grid[0] * grid[1] // self.factor**2

    def member(self, x: Tensor, grid: Grid | None = None) -> Tensor:
        grid = grid or self.grid
        places = torch.arange(self.count(grid), device=x.device)[None, :, None]
        return depth_to_space(places.expand(len(x), -1, self.factor**2), grid, self.factor).squeeze(2)


class Merge(Connector):
    """The most alike tokens are averaged until `tokens` are left (`merging.merge`), then two layers."""

    def __init__(self, width: int, into: int, tokens: int | None, grid: Grid):
        count = grid[0] * grid[1]
        if tokens is None or not 1 <= tokens <= count:
            near = "" if tokens is None else f"; the nearest is {min(max(tokens, 1), count)}"
            raise PosttrainError(f"{_wanted('merge', tokens)}; it can make 1 to {count}{near}")
        super().__init__(grid, tokens)
        self.project = mlp(width, into)

    def connect(self, x: Tensor, grid: Grid) -> Tensor:
        return self.project(merge(x, self.count(grid))[0])

    def count(self, grid: Grid) -> int:
        return min(self.tokens, grid[0] * grid[1])

    def member(self, x: Tensor, grid: Grid | None = None) -> Tensor:
        return merge(x, self.count(grid or self.grid))[2]


class Block(nn.Module):
    """Queries look at the image's tokens, then each thinks alone."""

    def __init__(self, width: int):
        super().__init__()
        self.heads = next(heads for heads in range(max(1, width // HEAD), 0, -1) if width % heads == 0)
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        self.value, self.out = nn.Linear(width, width), nn.Linear(width, width)
        self.think = mlp(width, width, 4 * width)

    def forward(self, queries: Tensor, seen: Tensor, places: Tensor) -> Tensor:
        def split(x: Tensor) -> Tensor:
            return x.unflatten(2, (self.heads, -1)).transpose(1, 2)

        query, key = self.query(self.before(queries)), self.key(seen + places)
        found = F.scaled_dot_product_attention(split(query), split(key), split(self.value(seen)))
        queries = queries + self.out(found.transpose(1, 2).flatten(2))
        return queries + self.think(self.between(queries))


class Resampler(Connector):
    """Learned queries that look at all of the image's tokens, as in Flamingo (arXiv 2204.14198, section 2.1).

    It works at the tower's width; keys carry 2D positions as in Qwen-VL (arXiv 2308.12966), values do not.
    """

    def __init__(self, width: int, into: int, tokens: int | None, grid: Grid):
        if tokens is None or tokens < 1:
            near = "" if tokens is None else "; the nearest is 1"
            raise PosttrainError(f"{_wanted('resampler', tokens)}; it can make 1 or more{near}")
        super().__init__(grid, tokens)
        # A module and no bare parameter: transformers initialises only what it knows.
        self.queries = nn.Embedding(tokens, width)
        self.norm, self.last = nn.LayerNorm(width), nn.LayerNorm(width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(DEPTH))
        self.project = nn.Linear(width, into)

    def count(self, grid: Grid) -> int:
        return self.tokens

    def connect(self, x: Tensor, grid: Grid) -> Tensor:
        seen = self.norm(x)
        # Made anew each time: a buffer that no checkpoint holds stays empty where a model is built on "meta".
        places = positions(grid, x.shape[2], seen)
        queries = self.queries.weight.expand(len(x), -1, -1)
        for block in self.blocks:
            queries = block(queries, seen, places)
        return self.project(self.last(queries))

    def member(self, x: Tensor, grid: Grid | None = None) -> None:
        return None


KINDS: dict[str, Callable[[int, int, int | None, Grid], Connector]] = {
    "linear": Linear,
    "mlp": MLP,
    "pixel_shuffle": PixelShuffle,
    "resampler": Resampler,
    "merge": Merge,
}


def mlp(width: int, into: int, inner: int | None = None) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, inner or into), nn.GELU(), nn.Linear(inner or into, into))


def _wanted(kind: str, tokens: int | None) -> str:
    return (
        f"a {kind} connector needs to know how many tokens"
        if tokens is None
        else f"{kind} cannot make {tokens} tokens"
    )


def _choice(able: list[int], tokens: int | None) -> str:
    near = "" if tokens is None else f"; the nearest is {min(able, key=lambda n: abs(n - tokens))}"
    return f"{', '.join(map(str, able))}{near}"

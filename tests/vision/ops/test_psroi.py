"""Position-sensitive pooling against a loop in whole fractions."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from torch import Tensor

from posttrain.vision.ops.psroi import psroi_pool, vote


def by_loop(maps: Tensor, boxes: list[list[int]], k: int, stride: int) -> Tensor:
    _, channels, H, W = maps.shape
    C = channels // k**2
    out = torch.zeros(len(boxes), k * k, C, dtype=maps.dtype)
    for n, (image, x0, y0, x1, y1) in enumerate(boxes):
        for i in range(k):
            for j in range(k):
                top, low = (Fraction(y0 * k + (y1 - y0) * e, k * stride) for e in (i, i + 1))
                left, right = (Fraction(x0 * k + (x1 - x0) * e, k * stride) for e in (j, j + 1))
                cells = [
                    (row, column)
                    for row in range(max(math.floor(top), 0), min(math.ceil(low), H))
                    for column in range(max(math.floor(left), 0), min(math.ceil(right), W))
                ]
                for c in range(C):
                    own = maps[image, (i * k + j) * C + c]
                    if cells and x0 < x1 and y0 < y1:
                        out[n, i * k + j, c] = sum(own[row, column] for row, column in cells) / len(cells)
    return out


BOXES = [
    [1, 0, 0, 40, 28],
    [0, 3, 5, 17, 27],
    [0, 0, 0, 40, 28],
    [1, 12, 8, 13, 9],  # smaller than a cell
    [0, -9, -5, 21, 100],  # hangs over
    [1, 39, 27, 400, 300],
    [0, 60, 60, 80, 80],  # outside
    [0, -30, -30, 0, 0],
    [1, 8, 8, 8, 20],  # no width
    [1, 8, 8, 20, 8],
    [0, 20, 20, 10, 10],  # reversed
]


@pytest.mark.parametrize("k", [1, 2, 3, 7])
@pytest.mark.parametrize("stride", [1, 4])
def test_as_by_loop(k: int, stride: int) -> None:
    torch.manual_seed(k)
    maps = torch.randn(2, k * k * 2, 7, 10).double()
    pooled = psroi_pool(maps, torch.tensor(BOXES, dtype=torch.float32), k, stride)
    torch.testing.assert_close(pooled, by_loop(maps, BOXES, k, stride))


def test_boxes_without_area_are_zero() -> None:
    maps = torch.ones(2, 4, 7, 10)
    pooled = psroi_pool(maps, torch.tensor(BOXES).float(), 2, 4)
    assert pooled.flatten(1).any(1).tolist() == [True] * 6 + [False] * 5
    odd = torch.tensor([[0, math.nan, 0, 8, 8], [0, 0, 0, math.inf, 8], [0, 0, 0, 8, 8]])
    assert psroi_pool(maps, odd, 2, 4).flatten(1).any(1).tolist() == [False, False, True]


def test_each_bin_reads_its_own_channels() -> None:
    maps = torch.arange(18.0)[None, :, None, None].expand(1, 18, 6, 6)
    pooled = psroi_pool(maps, torch.tensor([[0, 1.0, 1, 5, 5]]), 3)
    torch.testing.assert_close(pooled, torch.arange(18.0).view(1, 9, 2))


def test_a_whole_image_keeps_its_last_row_and_column() -> None:
    maps = torch.zeros(1, 4, 5, 5)
    maps[:, :, -1, :] = 1
    maps[:, :, :, -1] = 1
    pooled = psroi_pool(maps, [torch.tensor([[0.0, 0, 80, 80]])], 2, 16)[0, :, 0]
    # Bins of three cells a side: one of them last, in a row, a column or both.
    torch.testing.assert_close(pooled, torch.tensor([0, 3 / 9, 3 / 9, 5 / 9]))


def test_edges_that_do_not_round_well() -> None:
    """Half of 1/3 to 11/3 ends on a cell's border, which floating point misses: 1.9999999999999998."""
    maps = torch.randn(1, 8, 7, 10).double()
    boxes = [[0, 1, 1, 11, 11], [0, 1, 2, 17, 16], [0, 2, 4, 22, 32]]
    pooled = psroi_pool(maps, torch.tensor(boxes).float(), 2, 3)
    torch.testing.assert_close(pooled, by_loop(maps, boxes, 2, 3))


def test_lists_of_boxes_are_numbered() -> None:
    maps = torch.randn(3, 8, 6, 6)
    lists = [
        torch.rand(2, 4) + torch.tensor([0.0, 0, 3, 3]),
        torch.zeros(0, 4),
        torch.tensor([[1.0, 2, 5, 6]]),
    ]
    flat = torch.cat([torch.cat([torch.full((len(b), 1), float(i)), b], 1) for i, b in enumerate(lists)])
    pooled = psroi_pool(maps, lists, 2)
    assert pooled.shape == (3, 4, 2)
    assert torch.equal(pooled, psroi_pool(maps, flat, 2))
    swapped = psroi_pool(maps, flat[[2, 0, 1]], 2)  # the order is the boxes', not the images'
    assert torch.equal(swapped, pooled[[2, 0, 1]])


def test_no_boxes_and_no_images() -> None:
    assert psroi_pool(torch.randn(2, 8, 6, 6), torch.zeros(0, 5), 2).shape == (0, 4, 2)
    assert psroi_pool(torch.randn(0, 8, 6, 6), [], 2).shape == (0, 4, 2)


def test_gradients() -> None:
    maps = torch.randn(2, 8, 4, 5).double().requires_grad_()
    boxes = torch.tensor(BOXES).double()
    assert torch.autograd.gradcheck(lambda m: psroi_pool(m, boxes, 2, 6), (maps,))


@pytest.mark.parametrize(
    ("boxes", "k"),
    [
        (torch.zeros(1, 4), 2),
        (torch.tensor([[2.0, 0, 0, 1, 1]]), 2),
        (torch.tensor([[-1.0, 0, 0, 1, 1]]), 2),
        (torch.zeros(1, 5), 3),
        ([torch.zeros(1, 4)], 2),
    ],
)
def test_what_does_not_fit(boxes: Tensor | list[Tensor], k: int) -> None:
    with pytest.raises(ValueError, match="boxes|image"):
        psroi_pool(torch.randn(2, 8, 6, 6), boxes, k)


def test_bins_vote() -> None:
    tokens = torch.randn(5, 9, 4)
    torch.testing.assert_close(vote(tokens), sum(tokens[:, i] for i in range(9)) / 9)

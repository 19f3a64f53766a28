"""Trident blocks (arXiv 1901.01892): one set of weights, dilations 1, 2, 3; branches differ in reach."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

DILATIONS = (1, 2, 3)
MIDDLE = DILATIONS[1:2]  # the branch that stands for all three at inference
RANGES = ((0.0, 90.0), (30.0, 160.0), (90.0, math.inf))  # pixels of images whose short side is 800


def trained_by(boxes: Tensor, ranges: Iterable[tuple[float, float]] = RANGES) -> Tensor:
    """Which boxes [K, 4] (x0, y0, x1, y1) train which branch: low <= sqrt(w · h) <= high; [K, branches].

    Ranges overlap, so a box may train two branches. A reversed box counts as one of no size.
    """
    width, height = (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).unbind(1)
    size = (width * height).sqrt()
    return torch.stack([(low <= size) & (size <= high) for low, high in ranges], 1)


class TridentConv2d(nn.Conv2d):
    """A convolution of an odd kernel whose one weight is used with several dilations; the map keeps its size.

    forward([branches * B, C, H, W], dilations) -> [branches * B, O, H, W], branch after branch.
    """

    def __init__(self, channels: int, out: int, kernel: int = 3, bias: bool = True) -> None:
        if kernel % 2 == 0:
            raise ValueError(f"an even kernel ({kernel}) has no middle to dilate around")
        super().__init__(channels, out, kernel, bias=bias)
        self.reach = kernel // 2

    def forward(self, x: Tensor, dilations: tuple[int, ...] = DILATIONS) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        branches = x.unflatten(0, (len(dilations), len(x) // len(dilations))).unbind(0)
        return torch.cat(
            [
                F.conv2d(branch, self.weight, self.bias, padding=self.reach * dilation, dilation=dilation)
                for branch, dilation in zip(branches, dilations, strict=True)
            ]
        )


class TridentBlock(nn.Module):
    """A residual bottleneck (1×1, dilated 3×3, 1×1) around a TridentConv2d. Branches share its BatchNorms.

    In training a norm's statistics are those of all branches together. `scale` is what the last norm's weight
    starts as; 1 / sqrt(blocks) holds a fresh stack's size, in eval mode too, before there are statistics.
    """

    def __init__(self, width: int, inner: int, scale: float = 1.0) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(width, inner, 1, bias=False)
        self.reduce_norm = nn.BatchNorm2d(inner)
        self.conv = TridentConv2d(inner, inner, bias=False)
        self.conv_norm = nn.BatchNorm2d(inner)
        self.expand = nn.Conv2d(inner, width, 1, bias=False)
        self.expand_norm = nn.BatchNorm2d(width)
        for conv in (self.reduce, self.conv, self.expand):
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
        nn.init.constant_(self.expand_norm.weight, scale)

    def forward(self, x: Tensor, dilations: tuple[int, ...] = DILATIONS) -> Tensor:
        """[branches * B, width, H, W] -> the same, branch after branch."""
        inner = self.reduce_norm(self.reduce(x)).relu()
        inner = self.conv_norm(self.conv(inner, dilations)).relu()
        return (x + self.expand_norm(self.expand(inner))).relu()


class TridentStage(nn.Module):
    """Trident blocks in a row: [B, width, H, W] -> [branches, B, width, H, W].

    All branches run in training mode and the middle one alone in eval mode, as the paper has it; with
    `every`, the mode does not matter.
    """

    def __init__(self, width: int, inner: int, depth: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(TridentBlock(width, inner, depth**-0.5) for _ in range(depth))

    def forward(self, x: Tensor, every: bool | None = None) -> Tensor:
        dilations = DILATIONS if (self.training if every is None else every) else MIDDLE
        branches = x.repeat(len(dilations), 1, 1, 1)
        for block in self.blocks:
            branches = block(branches, dilations)
        return branches.unflatten(0, (len(dilations), len(x)))

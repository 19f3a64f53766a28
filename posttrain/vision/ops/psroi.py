"""Position-sensitive region pooling (R-FCN, arXiv 1605.06409): a box becomes k² tokens, each of its maps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

NEAR = 1e-6  # a bin's edge this near to a cell's border, in cells, lies on it, however it was rounded


def psroi_pool(maps: Tensor, boxes: Tensor | Sequence[Tensor], k: int, stride: float = 1.0) -> Tensor:
    """Average each of a box's k × k bins, bin (i, j) over its own C channels alone (equation 1).

    Args:
        maps: [B, k² * C, H, W]; channels (i * k + j) * C to + C are those of row i, column j.
        boxes: [K, 5] of (image, x0, y0, x1, y1), or one [n, 4] of (x0, y0, x1, y1) an image. In pixels, x1
            and y1 just past the box: (0, 0, width, height) is the whole image, last row and column included.
        stride: pixels that a cell of the maps stands for.

    Returns:
        [K, k², C], in the order of the boxes. A bin takes every cell that it touches. One with none (outside
        of the maps), and every bin of a box without area (no width or height, reversed, not finite), is zero.
        ValueError where shapes do not fit or a box names an image that is not there.
    """
    if not isinstance(boxes, Tensor):
        if len(boxes) != len(maps):
            raise ValueError(f"boxes of {len(boxes)} images for the maps of {len(maps)}")
        numbered = [torch.cat([b.new_full((len(b), 1), i), b], 1) for i, b in enumerate(boxes)]
        boxes = torch.cat(numbered) if numbered else maps.new_zeros(0, 5)
    B, channels, H, W = maps.shape
    if boxes.ndim != 2 or boxes.shape[1] != 5 or channels % k**2:
        raise ValueError(
            f"boxes {list(boxes.shape)} are not [K, 5], or {channels} channels not k² = {k**2} times C"
        )
    image = boxes[:, 0].long()
    if len(image) and (int(image.min()) < 0 or int(image.max()) >= B):
        raise ValueError(f"a box names image {int(image.max())} or {int(image.min())} of {B}")

    x0, y0, x1, y1 = (boxes[:, 1:].double() / stride).unbind(1)
    sound = boxes.isfinite().all(1) & (x0 < x1) & (y0 < y1)
    down = _cells(y0, y1, k, H, sound).to(maps.dtype)  # [K, k, H]
    right = _cells(x0, x1, k, W, sound).to(maps.dtype)  # [K, k, W]
    own = maps.view(B, k, k, channels // k**2, H, W)
    out = maps.new_zeros(len(boxes), k, k, channels // k**2)
    for b in image.unique().tolist():
        which = (image == b).nonzero()[:, 0]
        within = torch.einsum("nih,ijchw->nijcw", down[which], own[b])
        out = out.index_copy(0, which, torch.einsum("njw,nijcw->nijc", right[which], within))
    return out.flatten(1, 2)


def _cells(low: Tensor, high: Tensor, k: int, cells: int, sound: Tensor) -> Tensor:
    """[K, k, cells]: what each cell along one side counts in each bin's average; a row sums to 1 or 0."""
    edges = low[:, None] + (high - low)[:, None] * torch.arange(k + 1, device=low.device) / k
    first, last = (edges[:, :-1] + NEAR).floor(), (edges[:, 1:] - NEAR).ceil()
    cell = torch.arange(cells, device=low.device)
    inside = (first[..., None] <= cell) & (cell < last[..., None]) & sound[:, None, None]
    return inside / inside.sum(-1, keepdim=True).clamp(min=1)


def vote(tokens: Tensor) -> Tensor:
    """Bins vote by their average: [K, k², C] -> a score a channel, [K, C]."""
    return tokens.mean(1)

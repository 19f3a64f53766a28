"""FlexiViT (arXiv 2212.08013): weights of one patch size made to fit another, and positions of a grid."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def resize_patches(weight: Tensor, size: tuple[int, int]) -> Tensor:
    """PI-resize, w [out, C, h, w] to ŵ = (Bᵀ)⁺ w, [out, C, *size]; B resizes a patch (section 3.4).

    B is bilinear. For every patch x, <Bx, ŵ> = <x, w> when the patch grows; when it shrinks they are as near
    as can be.
    """
    down, right = (_bilinear(old, new, weight) for old, new in zip(weight.shape[2:], size, strict=True))
    # B is a Kronecker product of a side each, and so is its pseudo-inverse.
    out = torch.linalg.pinv(down).mT @ weight.to(down.dtype) @ torch.linalg.pinv(right)
    return out.to(weight.dtype)


def _bilinear(old: int, new: int, like: Tensor) -> Tensor:
    """The matrix [new, old] that resizes a row of cells bilinearly, smoothed where it shrinks."""
    eye = torch.eye(old, dtype=torch.float64, device=like.device)[None, None]
    return F.interpolate(eye, (new, old), mode="bilinear", antialias=new < old)[0, 0]


def resize_positions(table: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Position embeddings [rows * columns, D] of an old grid, read bilinearly for a new one."""
    if old == new:
        return table
    if len(table) != old[0] * old[1]:
        raise ValueError(f"{len(table)} positions are not a grid of {old[0]} × {old[1]}")
    grid = table.T.reshape(1, -1, *old).to(torch.promote_types(table.dtype, torch.float32))
    shrinks = new[0] < old[0] or new[1] < old[1]
    return F.interpolate(grid, new, mode="bilinear", antialias=shrinks)[0].flatten(1).T.to(table.dtype)

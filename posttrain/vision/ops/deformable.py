"""Deformable convolution, v1 (arXiv 1703.06211) and v2 (arXiv 1811.11168): taps move with the image."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def deform_conv2d(
    x: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
    mask: Tensor | None = None,
) -> Tensor:
    """y(p) = bias + Σ_k weight_k · x(p + p_k + Δp_k) · m_k, x read bilinearly, zero outside of the image.

    Args:
        x: [B, C, H, W]. weight: [out, C, kh, kw]. bias: [out].
        offset: Δp in cells of x, [B, groups * kh * kw * 2, rows, columns], each tap's (down, right) side by
            side. The channels of x part into as many groups as that holds, each with its own offsets.
        mask: m, [B, groups * kh * kw, rows, columns]; None is 1, which is v1.

    Returns:
        [B, out, rows, columns], of conv2d's size. ValueError where shapes do not fit each other.
    """
    B, C, H, W = x.shape
    kh, kw = weight.shape[2:]
    K = kh * kw
    rows = (H + 2 * padding - dilation * (kh - 1) - 1) // stride + 1
    columns = (W + 2 * padding - dilation * (kw - 1) - 1) // stride + 1
    groups, odd = divmod(offset.shape[1], 2 * K)
    if weight.shape[1] != C or odd or not groups or C % groups:
        raise ValueError(
            f"x {list(x.shape)}, weight {list(weight.shape)} and offset {list(offset.shape)} do not fit"
        )
    if min(rows, columns) < 1 or offset.shape != (B, groups * K * 2, rows, columns):
        raise ValueError(f"offset {list(offset.shape)} is not [{B}, {groups * K * 2}, {rows}, {columns}]")
    if mask is not None and mask.shape != (B, groups * K, rows, columns):
        raise ValueError(f"mask {list(mask.shape)} is not [{B}, {groups * K}, {rows}, {columns}]")

    # Half precision cannot name a cell beyond 256 exactly, so places are held in float32 at least.
    exact = torch.promote_types(x.dtype, torch.float32)
    at = offset.to(exact).reshape(B * groups, kh, kw, 2, rows, columns)
    down = _taps(rows, kh, stride, padding, dilation, at).view(1, kh, 1, rows, 1)
    right = _taps(columns, kw, stride, padding, dilation, at).view(1, 1, kw, 1, columns)
    # grid_sample counts from -1 to 1, from the first cell's outer edge to the last one's.
    grid = torch.stack(
        [(2 * (at[:, :, :, 1] + right) + 1) / W - 1, (2 * (at[:, :, :, 0] + down) + 1) / H - 1], -1
    )
    read = F.grid_sample(
        x.to(exact).reshape(B * groups, C // groups, H, W),
        grid.view(B * groups, K * rows, columns, 2),
        padding_mode="zeros",
        align_corners=False,
    )
    if mask is not None:
        read = read * mask.to(exact).reshape(B * groups, 1, K * rows, columns)
    out = weight.flatten(1) @ read.to(x.dtype).view(B, C * K, rows * columns)
    if bias is not None:
        out = out + bias[:, None]
    return out.view(B, len(weight), rows, columns)


def _taps(outputs: int, kernel: int, stride: int, padding: int, dilation: int, like: Tensor) -> Tensor:
    """[kernel, outputs]: where along one side a tap that did not move reads."""
    tap = torch.arange(kernel, dtype=like.dtype, device=like.device)[:, None] * dilation - padding
    return tap + torch.arange(outputs, dtype=like.dtype, device=like.device) * stride


class DeformableConv2d(nn.Module):
    """A convolution whose offsets (and v2's mask) come from its input; takes [B, C, H, W].

    Offsets start at 0 and v2's mask at sigmoid(0) = 0.5. v2's offsets and mask learn at RATE, a tenth, of the
    learning rate: they are RATE times what `where` says, so a step of Adam, whose size does not hang on the
    gradient's, moves them a tenth as far without a parameter group of their own.
    """

    RATE = 0.1

    def __init__(
        self,
        channels: int,
        out: int,
        kernel: int,
        *,
        stride: int = 1,
        padding: int = 0,
        dilation: int = 1,
        version: int = 2,
        groups: int = 1,
    ) -> None:
        super().__init__()
        if version not in (1, 2):
            raise ValueError(f"deformable convolution has versions 1 and 2, not {version!r}")
        self.modulated = version == 2
        self.stride, self.padding, self.dilation = stride, padding, dilation
        plain = nn.Conv2d(channels, out, kernel)
        self.weight, self.bias = plain.weight, plain.bias
        self.taps = groups * kernel**2
        self.where = nn.Conv2d(
            channels, self.taps * (3 if self.modulated else 2), kernel, stride, padding, dilation
        )
        nn.init.zeros_(self.where.weight)
        assert self.where.bias is not None
        nn.init.zeros_(self.where.bias)

    def forward(self, x: Tensor) -> Tensor:
        said = self.where(x)
        mask = None
        if self.modulated:
            said = self.RATE * said
            mask = said[:, 2 * self.taps :].sigmoid()
        return deform_conv2d(
            x,
            said[:, : 2 * self.taps],
            self.weight,
            self.bias,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            mask=mask,
        )

"""Deformable convolution against a loop over every tap, conv2d and shifted images."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from posttrain.vision.ops.deformable import DeformableConv2d, deform_conv2d


def read(x: Tensor, down: float, right: float) -> Tensor:
    """x [C, H, W] at a place between cells."""
    total = x.new_zeros(len(x))
    for row in (math.floor(down), math.floor(down) + 1):
        for column in (math.floor(right), math.floor(right) + 1):
            if 0 <= row < x.shape[1] and 0 <= column < x.shape[2]:
                total = total + (1 - abs(down - row)) * (1 - abs(right - column)) * x[:, row, column]
    return total


def by_loop(
    x: Tensor, offset: Tensor, weight: Tensor, bias: Tensor, mask: Tensor | None, s: int, p: int, d: int
) -> Tensor:
    B, C = x.shape[:2]
    out, _, kh, kw = weight.shape
    rows, columns = offset.shape[2:]
    groups = offset.shape[1] // (2 * kh * kw)
    y = torch.zeros(B, out, rows, columns, dtype=x.dtype) + bias[:, None, None]
    for b in range(B):
        for g in range(groups):
            own = slice(g * C // groups, (g + 1) * C // groups)
            for tap in range(kh * kw):
                n = g * kh * kw + tap
                for i in range(rows):
                    for j in range(columns):
                        down = i * s - p + tap // kw * d + float(offset[b, 2 * n, i, j])
                        right = j * s - p + tap % kw * d + float(offset[b, 2 * n + 1, i, j])
                        value = read(x[b, own], down, right)
                        if mask is not None:
                            value = value * mask[b, n, i, j]
                        y[b, :, i, j] += weight[:, own, tap // kw, tap % kw] @ value
    return y


def case(groups: int = 1, kh: int = 3, kw: int = 2, rows: int = 5, columns: int = 6, batch: int = 2):
    torch.manual_seed(groups + kh)
    taps = groups * kh * kw
    return (
        torch.randn(batch, 4, 5, 6).double(),
        2 * torch.randn(batch, 2 * taps, rows, columns).double(),
        torch.randn(3, 4, kh, kw).double(),
        torch.randn(3).double(),
        torch.rand(batch, taps, rows, columns).double(),
    )


@pytest.mark.parametrize(
    ("s", "p", "d", "rows", "columns"), [(1, 1, 1, 5, 7), (2, 0, 1, 2, 3), (1, 2, 2, 5, 8)]
)
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("modulated", [False, True])
def test_as_by_loop(s: int, p: int, d: int, rows: int, columns: int, groups: int, modulated: bool) -> None:
    x, offset, weight, bias, mask = case(groups, rows=rows, columns=columns)
    given = mask if modulated else None
    y = deform_conv2d(x, offset, weight, bias, stride=s, padding=p, dilation=d, mask=given)
    torch.testing.assert_close(y, by_loop(x, offset, weight, bias, given, s, p, d))


@pytest.mark.parametrize("modulated", [False, True])
def test_gradients(modulated: bool) -> None:
    x, offset, weight, bias, mask = case(2, 2, 2, rows=2, columns=3, batch=1)
    # Between cells the value is smooth; on a cell it has a kink.
    offset = offset.floor() + 0.2 + 0.6 * torch.rand_like(offset)
    inputs = [t.requires_grad_() for t in (x, offset, weight, bias, mask)]

    def run(x: Tensor, offset: Tensor, weight: Tensor, bias: Tensor, mask: Tensor) -> Tensor:
        return deform_conv2d(x, offset, weight, bias, stride=2, mask=mask if modulated else None)

    assert torch.autograd.gradcheck(run, inputs)


def test_unmoved_is_conv2d() -> None:
    x, weight, bias = torch.randn(2, 6, 9, 1), torch.randn(4, 6, 3, 3), torch.randn(4)
    expected = F.conv2d(x, weight, bias, stride=2, padding=2, dilation=2)
    still = torch.zeros(2, 18, *expected.shape[2:])
    for mask in (None, torch.ones(2, 9, *expected.shape[2:])):
        y = deform_conv2d(x, still, weight, bias, stride=2, padding=2, dilation=2, mask=mask)
        torch.testing.assert_close(y, expected, atol=1e-4, rtol=1e-5)


def test_whole_offset_is_a_shift() -> None:
    x, weight = torch.randn(2, 3, 8, 8), torch.randn(4, 3, 3, 3)
    offset = torch.zeros(2, 9, 2, 8, 8)
    offset[:, :, 0], offset[:, :, 1] = 2, -1
    shifted = F.pad(x, (2, 0, -1, 3))  # padded by one, then two rows further down and one column further left
    y = deform_conv2d(x, offset.flatten(1, 2), weight, padding=1)
    torch.testing.assert_close(y, F.conv2d(shifted, weight), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("far", [100.0, -100.0, 1e30, -1e30])
def test_outside_of_the_image_is_zero(far: float) -> None:
    x = torch.randn(1, 2, 4, 4, requires_grad=True)
    offset = torch.full((1, 2, 4, 4), far, requires_grad=True)
    y = deform_conv2d(x, offset, torch.ones(3, 2, 1, 1), torch.arange(3.0))
    assert torch.equal(y, torch.arange(3.0)[:, None, None].expand(3, 4, 4)[None])
    y.sum().backward()
    assert x.grad is not None and not x.grad.any()
    assert offset.grad is not None and not offset.grad.any()


def test_the_edge_fades_out() -> None:
    x = torch.ones(1, 1, 3, 3)
    offset = torch.zeros(1, 2, 3, 3)
    offset[:, 0] = 0.25  # the last row reads a quarter from beyond it
    y = deform_conv2d(x, offset, torch.ones(1, 1, 1, 1))
    torch.testing.assert_close(y[0, 0, :, 0], torch.tensor([1, 1, 0.75]))


def test_no_images() -> None:
    conv = DeformableConv2d(3, 5, 2, stride=2)
    x = torch.randn(0, 3, 4, 6, requires_grad=True)
    y = conv(x)
    assert y.shape == (0, 5, 2, 3)
    y.sum().backward()
    assert conv.weight.grad is not None and not conv.weight.grad.any()


def test_half_precision_keeps_its_places() -> None:
    x = torch.randn(1, 1, 1, 700).bfloat16()  # bfloat16 itself counts by fours up there
    y = deform_conv2d(x, torch.zeros(1, 2, 1, 700).bfloat16(), torch.ones(1, 1, 1, 1).bfloat16())
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y, x, atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize(
    ("offset", "mask"),
    [
        ((1, 17, 4, 4), None),
        ((1, 18, 3, 4), None),
        ((2, 18, 4, 4), None),
        ((1, 54, 4, 4), None),  # three groups of two channels
        ((1, 0, 4, 4), None),
        ((1, 18, 4, 4), (1, 18, 4, 4)),
    ],
)
def test_shapes_that_do_not_fit(offset: tuple[int, ...], mask: tuple[int, ...] | None) -> None:
    x, weight = torch.randn(1, 2, 4, 4), torch.randn(3, 2, 3, 3)
    with pytest.raises(ValueError, match="fit|is not"):
        deform_conv2d(
            x, torch.zeros(offset), weight, padding=1, mask=None if mask is None else torch.zeros(mask)
        )


def test_image_smaller_than_the_kernel() -> None:
    with pytest.raises(ValueError, match="is not"):
        deform_conv2d(torch.randn(1, 2, 2, 2), torch.zeros(1, 18, 0, 0), torch.randn(3, 2, 3, 3))


@pytest.mark.parametrize(("version", "share"), [(1, 1.0), (2, 0.5)])
def test_fresh_module(version: int, share: float) -> None:
    conv = DeformableConv2d(4, 6, 3, stride=2, padding=1, version=version, groups=2)
    x = torch.randn(2, 4, 7, 7)
    expected = F.conv2d(x, conv.weight * share, conv.bias, stride=2, padding=1)
    torch.testing.assert_close(conv(x), expected, atol=1e-5, rtol=1e-5)


def test_unknown_version() -> None:
    with pytest.raises(ValueError, match="1 and 2"):
        DeformableConv2d(3, 4, 3, version=3)


@pytest.mark.parametrize(("version", "share"), [(1, 1.0), (2, 0.1)])
def test_offsets_learn_at_their_own_rate(version: int, share: float) -> None:
    """What one step of Adam moves an offset by, against what it would by the whole learning rate."""
    torch.manual_seed(0)
    conv = DeformableConv2d(3, 4, 3, padding=1, version=version)
    x = torch.rand(2, 3, 6, 6) + 0.1
    conv(x).square().sum().backward()
    assert conv.where.weight.grad is not None
    sign = conv.where.weight.grad.sign()
    seen: list[Tensor] = []
    torch.optim.AdamW(conv.parameters(), lr=1e-3, weight_decay=0).step()
    conv.where.bias.data.zero_()  # pyright: ignore[reportOptionalMemberAccess]
    moved = -1e-3 * share * F.conv2d(x, sign, padding=1)[:, :18]

    def keep(x: Tensor, offset: Tensor, *args: object, **kwargs: object) -> Tensor:
        seen.append(offset)
        return x

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("posttrain.vision.ops.deformable.deform_conv2d", keep)
        conv(x)
    torch.testing.assert_close(seen[0], moved, atol=1e-6, rtol=1e-3)

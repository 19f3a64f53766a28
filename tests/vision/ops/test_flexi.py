"""Patch weights of another size: against patches resized by torch and the pseudo-inverse written out."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from posttrain.vision.ops.flexi import resize_patches, resize_positions


@pytest.mark.parametrize("size", [(8, 8), (16, 16), (32, 32), (9, 13), (8, 31)])
def test_what_a_patch_says_is_kept_as_it_grows(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    weight, x = torch.randn(6, 3, 8, 8), torch.randn(5, 3, 8, 8)
    grown = F.interpolate(x, size, mode="bilinear")
    said = torch.einsum("bchw,ochw->bo", grown, resize_patches(weight, size))
    torch.testing.assert_close(said, torch.einsum("bchw,ochw->bo", x, weight), atol=1e-4, rtol=1e-4)


def test_a_whole_image_and_its_enlargement_give_the_same_tokens() -> None:
    """Each patch is enlarged by itself: bilinear resizing of a whole image mixes neighbours at the seams."""
    weight, image = torch.randn(6, 3, 4, 4).double(), torch.randn(2, 3, 12, 8).double()
    parts = image.unflatten(2, (3, 4)).unflatten(4, (2, 4)).permute(0, 2, 4, 1, 3, 5)
    grown = F.interpolate(parts.flatten(0, 2), (6, 6), mode="bilinear").unflatten(0, (2, 3, 2))
    large = grown.permute(0, 3, 1, 4, 2, 5).reshape(2, 3, 18, 12)
    tokens = F.conv2d(large, resize_patches(weight, (6, 6)), stride=6)
    torch.testing.assert_close(tokens, F.conv2d(image, weight, stride=4))


@pytest.mark.parametrize(
    ("old", "new"), [((4, 5), (7, 6)), ((6, 6), (3, 4)), ((4, 4), (8, 2)), ((1, 1), (3, 3))]
)
def test_closed_form(old: tuple[int, int], new: tuple[int, int]) -> None:
    weight = torch.randn(2, 3, *old).double()
    # Both sides at once, from the images of single pixels.
    pixels = torch.eye(old[0] * old[1]).double().view(-1, 1, *old)
    rows = F.interpolate(pixels, (new[0], old[1]), mode="bilinear", antialias=new[0] < old[0])
    B = F.interpolate(rows, new, mode="bilinear", antialias=new[1] < old[1]).flatten(1).T
    expected = weight.flatten(2) @ torch.linalg.pinv(B)
    torch.testing.assert_close(resize_patches(weight, new), expected.view(2, 3, *new), atol=1e-8, rtol=1e-8)


def test_shrunken_weights_are_the_nearest() -> None:
    """No other weights answer random patches better: the gradient of the squared error is zero."""
    weight = torch.randn(1, 1, 6, 6).double()
    x = torch.eye(36).double().view(36, 1, 6, 6)  # a basis stands for white noise
    small = F.interpolate(x, (4, 4), mode="bilinear", antialias=True)
    guess = resize_patches(weight, (4, 4)).requires_grad_()
    error = (
        (torch.einsum("bchw,ochw->bo", small, guess) - torch.einsum("bchw,ochw->bo", x, weight))
        .square()
        .sum()
    )
    (slope,) = torch.autograd.grad(error, guess)
    assert error > 0.1 and slope.abs().max() < 1e-9


def test_same_size_is_the_same_and_the_type_stays() -> None:
    weight = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(resize_patches(weight, (8, 8)), weight)
    assert resize_patches(weight.bfloat16(), (12, 12)).dtype == torch.bfloat16


def test_gradients_reach_the_weights() -> None:
    weight = torch.randn(1, 2, 3, 3).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda w: resize_patches(w, (5, 4)), (weight,))


def test_positions() -> None:
    table = torch.randn(12, 5, requires_grad=True)
    assert resize_positions(table, (3, 4), (3, 4)) is table
    level = resize_positions(torch.ones(12, 5), (3, 4), (7, 2))
    torch.testing.assert_close(level, torch.ones(14, 5))
    # A slope stays a slope between the outer cells' middles: row r of 9 lies at (r + 0.5) / 3 - 0.5 of 3.
    slope = torch.arange(3.0).repeat_interleave(4)[:, None]
    grown = resize_positions(slope, (3, 4), (9, 4)).view(9, 4)
    torch.testing.assert_close(grown[:, 1], ((torch.arange(9) + 0.5) / 3 - 0.5).clamp(0, 2))
    resize_positions(table, (3, 4), (6, 6)).sum().backward()
    assert table.grad is not None and (table.grad > 0).all()
    assert resize_positions(table.bfloat16(), (3, 4), (2, 2)).dtype == torch.bfloat16


def test_positions_of_another_grid() -> None:
    with pytest.raises(ValueError, match="not a grid of 3 × 3"):
        resize_positions(torch.randn(12, 5), (3, 3), (4, 4))

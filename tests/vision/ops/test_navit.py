"""Packing against images by themselves; nothing leaks from one to another."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from posttrain.types import PosttrainError
from posttrain.vision.ops.encoder import Encoder
from posttrain.vision.ops.navit import axis_positions, pack, patches


def test_patches_and_a_linear_layer_are_the_patch_convolution() -> None:
    weight, image = torch.randn(6, 3, 4, 4), torch.randn(3, 13, 22)
    tokens = patches(image, 4) @ weight.flatten(1).T
    expected = F.conv2d(image[None], weight, stride=4)
    assert tokens.shape == (3 * 5, 6)
    torch.testing.assert_close(tokens, expected[0].flatten(1).T, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(patches(image[None], 4)[0], patches(image, 4))


def test_axis_positions() -> None:
    table = torch.arange(4.0)[:, None]
    assert axis_positions(table, 4) is table
    torch.testing.assert_close(axis_positions(table, 2)[:, 0], torch.tensor([0.5, 2.5]))
    torch.testing.assert_close(
        axis_positions(table, 8)[:, 0], ((torch.arange(8) + 0.5) / 2 - 0.5).clamp(0, 3)
    )
    assert axis_positions(table.bfloat16(), 3).dtype == torch.bfloat16


@pytest.mark.parametrize("length", [0, 9, 1000])
@pytest.mark.parametrize("lengths", [[5], [3, 9, 1, 4, 4], [1] * 12, [2, 7, 0, 7]])
def test_packed_and_unpacked(lengths: list[int], length: int) -> None:
    tokens = [torch.randn(n, 3) for n in lengths]
    packed = pack(tokens, length)
    assert packed.tokens.shape[:2] == packed.image.shape
    assert packed.image.shape[1] <= max(length, *lengths)
    assert int((packed.image >= 0).sum()) == sum(lengths)
    for given, back in zip(tokens, packed.unpack(packed.tokens), strict=True):
        assert torch.equal(given, back)


def test_rows_are_shared() -> None:
    packed = pack([torch.randn(n, 2) for n in (2, 6, 3, 5)], 8)
    assert packed.image.tolist() == [[1] * 6 + [0] * 2, [3] * 5 + [2] * 3]
    assert packed.mask[0].int().tolist() == [[1] * 6 + [0] * 2] * 6 + [[0] * 6 + [1] * 2] * 2


def test_nothing_to_pack() -> None:
    with pytest.raises(ValueError, match="no image"):
        pack([])


@pytest.mark.parametrize("grad", [True, False])
def test_encoded_together_as_apart(grad: bool) -> None:
    """torch may take another way through its layers where no gradient is asked for."""
    torch.manual_seed(0)
    encoder = Encoder(16, 3, 4).eval()
    tokens = [torch.randn(n, 16) for n in (5, 11, 3, 8, 1)]
    with torch.set_grad_enabled(grad):
        packed = pack(tokens, 12)
        assert packed.image.shape[0] < len(tokens) and (packed.image < 0).any()
        together = packed.unpack(encoder(packed.tokens, packed.mask))
        for x, y in zip(tokens, together, strict=True):
            torch.testing.assert_close(y, encoder(x[None])[0], atol=1e-5, rtol=1e-5)


def test_the_same_to_the_bit_without_gradients() -> None:
    encoder = Encoder(16, 2, 4).eval().bfloat16()
    packed = pack([torch.randn(n, 16).bfloat16() for n in (5, 11, 3)])
    with torch.no_grad():
        quiet = encoder(packed.tokens, packed.mask), encoder(packed.tokens)
    assert torch.equal(encoder(packed.tokens, packed.mask), quiet[0])
    assert torch.equal(encoder(packed.tokens), quiet[1])


def test_what_fills_a_row_is_not_seen() -> None:
    encoder = Encoder(8, 2, 2).eval()
    packed = pack([torch.randn(n, 8) for n in (7, 4)])
    other = torch.where(packed.image[..., None] < 0, 1e4, packed.tokens)
    assert not torch.equal(other, packed.tokens)
    own = packed.image >= 0
    torch.testing.assert_close(encoder(other, packed.mask)[own], encoder(packed.tokens, packed.mask)[own])


def test_layers_start_apart_and_heads_must_divide() -> None:
    first, second = (layer.self_attn.in_proj_weight for layer in Encoder(8, 2, 2).layers)  # type: ignore[union-attr]
    assert not torch.equal(first, second)  # type: ignore[arg-type]
    with pytest.raises(PosttrainError, match="width 8, heads 3, depth 1: heads has to divide width"):
        Encoder(8, 1, 3)

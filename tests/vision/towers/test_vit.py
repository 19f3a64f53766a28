"""A ViT's tokens: a patch each, cut out and multiplied."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from posttrain.vision import towers


def small(**settings: Any) -> Any:
    torch.manual_seed(0)
    return towers.build(
        "vit", {"image_size": 32, "patch": 8, "width": 32, "depth": 2, "heads": 4, **settings}
    ).eval()


def test_the_patch_convolution_is_unfold_and_a_linear_map() -> None:
    found = small().model.embeddings.patch_embeddings
    images = torch.randn(2, 3, 32, 32)
    weight, bias = found.projection.weight, found.projection.bias
    patches = torch.stack(  # by hand, row by row, as [channel, row, column]
        [images[:, :, r : r + 8, c : c + 8].flatten(1) for r in range(0, 32, 8) for c in range(0, 32, 8)], 1
    )
    expected = patches @ weight.flatten(1).T + bias
    torch.testing.assert_close(found(images), expected)
    unfolded = torch.nn.functional.unfold(images, 8, stride=8).transpose(1, 2)
    torch.testing.assert_close(unfolded, patches)


@pytest.mark.parametrize(("height", "width", "patch"), [(32, 32, 8), (64, 32, 8), (40, 56, 8), (32, 48, 16)])
def test_there_are_as_many_tokens_as_patches(height: int, width: int, patch: int) -> None:
    tower = small(patch=patch)
    assert tower(torch.zeros(1, 3, height, width)).shape[1] == height * width // patch**2


def test_a_token_that_ends_at_no_whole_patch_is_cut_off() -> None:
    """As the convolution does: SigLIP's 384 pixels are 27 patches of 14 and six pixels more."""
    tower, image = small(), torch.randn(1, 3, 40, 40)
    cut = image.clone()
    cut[..., 36:] = 0
    padded = torch.nn.functional.pad(image, (0, 4, 0, 4), value=9.0)
    assert tower.grid(44, 44) == (5, 5)
    torch.testing.assert_close(tower(padded), tower(image))
    assert not torch.allclose(tower(cut), tower(image))


def test_patches_tell_where_they_are() -> None:
    """The class token is not among the tokens, and a blank image has as many different ones as patches."""
    tower = small()
    tokens = tower(torch.zeros(1, 3, 32, 32))[0]
    distances = torch.cdist(tokens, tokens) + torch.eye(16) * 9
    assert distances.min() > 1e-4
    whole = tower.model(torch.zeros(1, 3, 32, 32)).last_hidden_state[0]
    torch.testing.assert_close(tokens, whole[1:])


def test_interpolated_positions_of_one_value_stay_it() -> None:
    tower = small()
    with torch.no_grad():
        tower.model.embeddings.position_embeddings.fill_(0.25)
    tokens = tower(torch.zeros(1, 3, 64, 48))[0]
    torch.testing.assert_close(tokens, tokens[:1].expand_as(tokens))

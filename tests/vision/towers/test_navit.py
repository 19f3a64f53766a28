"""Images of any size in one call: as each by itself, gradients included."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from posttrain.types import PosttrainError
from posttrain.vision.ops import navit
from posttrain.vision.towers import navit as tower_file
from posttrain.vision.towers.model import open_tower

SMALL = {"image_size": 32, "patch": 8, "width": 16, "depth": 3, "heads": 2}
SIZES = [(32, 32), (8, 40), (61, 17), (16, 8), (32, 32), (80, 48)]


def opened(**settings: Any) -> Any:
    torch.manual_seed(0)
    return open_tower("navit", {**SMALL, **settings}).tower


def images() -> list[Tensor]:
    torch.manual_seed(1)
    return [torch.randn(3, *size) for size in SIZES]


@pytest.mark.parametrize("grad", [True, False])
def test_packed_as_image_by_image(grad: bool) -> None:
    tower = opened()
    with torch.set_grad_enabled(grad):
        together = tower(images())
        for image, tokens in zip(images(), together, strict=True):
            assert tokens.shape == ((image.shape[1] // 8) * (image.shape[2] // 8), 16)
            torch.testing.assert_close(tokens, tower(image[None])[0], atol=1e-5, rtol=1e-5)


def test_gradients_packed_as_image_by_image() -> None:
    tower = opened()
    goals = [torch.randn(*tokens.shape) for tokens in tower(images())]
    torch.stack([(t * g).sum() for t, g in zip(tower(images()), goals, strict=True)]).sum().backward()
    packed = {name: p.grad.clone() for name, p in tower.named_parameters()}
    tower.zero_grad()
    for image, goal in zip(images(), goals, strict=True):
        (tower(image[None])[0] * goal).sum().backward()
    for name, p in tower.named_parameters():
        torch.testing.assert_close(
            packed[name], p.grad, atol=1e-4, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_images_share_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = []

    def counted(tokens: list[Tensor], length: int) -> navit.Packed:
        packed = navit.pack(tokens, length)
        rows.append(packed.image.shape)
        return packed

    monkeypatch.setattr(tower_file, "pack", counted)
    tower = opened()
    tower([torch.randn(3, 16, 16)] * 8)
    assert rows == [(2, 16)]


def test_an_image_does_not_hang_on_its_neighbours() -> None:
    tower, given = opened(), images()
    before = tower(given)[2]
    given[0], given[5] = given[0] + 100, torch.full_like(given[5], torch.nan)
    # A weight of 0 does not stop a NaN: what keeps it away is that so large an image has a row to itself.
    torch.testing.assert_close(tower(given)[2], before)


def test_equal_sizes_as_a_batch_and_as_a_list() -> None:
    tower, x = opened(), torch.randn(5, 3, 24, 40)
    torch.testing.assert_close(torch.stack(tower(list(x))), tower(x), atol=1e-5, rtol=1e-5)


def test_no_images() -> None:
    assert opened()([]) == []
    assert opened()(torch.randn(0, 3, 32, 32)).shape == (0, 16, 16)


def test_places_are_told_apart() -> None:
    tokens = opened()(torch.zeros(1, 3, 24, 40))[0]
    assert torch.pdist(tokens).min() > 1e-3


@pytest.mark.parametrize(
    ("settings", "said"), [({"heads": 5}, "heads has to divide"), ({"patch": 0}, "1 or more")]
)
def test_wrong_settings(settings: dict[str, int], said: str) -> None:
    with pytest.raises(PosttrainError, match=said):
        opened(**settings)


def test_an_image_smaller_than_a_patch() -> None:
    with pytest.raises(PosttrainError, match="8 pixels each way or more, not 3 × 100"):
        opened()([torch.randn(3, 8, 8), torch.randn(3, 3, 100)])

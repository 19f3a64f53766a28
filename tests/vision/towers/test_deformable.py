"""A tower of bending patches: plain while fresh, and one function with and without gradients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from posttrain.types import PosttrainError
from posttrain.vision.towers.model import TowerModel, open_tower

SMALL = {"image_size": 32, "patch": 8, "width": 16, "depth": 2, "heads": 2}


def opened(**settings: Any) -> Any:
    torch.manual_seed(0)
    return open_tower("deformable", {**SMALL, **settings})


@pytest.mark.parametrize(("version", "share"), [(1, 1.0), (2, 0.5)])
def test_fresh_patches_are_a_vits(version: int, share: float) -> None:
    tower = opened(version=version).tower
    x = torch.randn(2, 3, 32, 32)
    plain = F.conv2d(x, share * tower.embed.weight, tower.embed.bias, stride=8).flatten(2).mT
    expected = tower.encoder(plain + tower.positions)
    assert tower(x).shape == (2, 16, 16)
    torch.testing.assert_close(tower(x), expected, atol=1e-4, rtol=1e-4)


def test_every_parameter_learns() -> None:
    model = opened()
    model(torch.randn(2, 3, 32, 32)).last_hidden_state.square().sum().backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not without
    assert model.tower.embed.where.weight.grad.any()


def test_offsets_come_to_follow_the_image() -> None:
    """Fresh offsets are zero; after a few steps they differ from image to image."""
    model = opened(version=1)
    x = torch.rand(4, 3, 32, 32)
    goal = torch.randn(4, 16, 16)
    steps = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(30):
        loss = (model(x).last_hidden_state - goal).square().mean()
        loss.backward()
        steps.step()
        steps.zero_grad()
        losses.append(loss.item())
    offsets = model.tower.embed.where(x)
    assert losses[-1] < 0.8 * losses[0]
    assert (offsets[0] - offsets[1]).abs().max() > 1e-3


@pytest.mark.parametrize(("height", "width"), [(32, 64), (8, 8), (43, 20)])
def test_other_sizes(height: int, width: int) -> None:
    tower = opened().tower
    rows, columns = tower.grid(height, width)
    assert tower(torch.randn(1, 3, height, width)).shape == (1, rows * columns, 16)


def test_same_tokens_without_gradients_and_for_one_image() -> None:
    tower = opened().tower
    x = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        quiet = tower(x)
    assert torch.equal(tower(x), quiet)
    torch.testing.assert_close(tower(x[1:2]), quiet[1:2], atol=1e-5, rtol=1e-5)


def test_saved_and_loaded(tmp_path: Path) -> None:
    model = opened(version=1)
    torch.nn.init.normal_(model.tower.embed.where.weight, std=0.05)
    model.save_pretrained(tmp_path)
    again = TowerModel.from_pretrained(tmp_path).eval()
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(model(x).last_hidden_state, again(x).last_hidden_state)


def test_half_precision() -> None:
    tokens = opened().bfloat16()(torch.randn(1, 3, 32, 32)).last_hidden_state
    assert tokens.dtype == torch.bfloat16 and tokens.isfinite().all()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"heads": 3}, "heads has to divide width"),
        ({"depth": 0}, "1 or more"),
        ({"patch": 64}, "hold a patch"),
        ({"width": 0}, "1 or more"),
        ({"version": 3}, "version"),
        ({"verion": 1}, "did you mean 'version'"),
    ],
)
def test_wrong_settings(settings: dict[str, int], said: str) -> None:
    with pytest.raises(PosttrainError, match=said):
        opened(**settings)


def test_an_image_smaller_than_a_patch() -> None:
    with pytest.raises(PosttrainError, match="8 pixels each way or more, not 32 × 7"):
        opened().tower(torch.randn(1, 3, 32, 7))

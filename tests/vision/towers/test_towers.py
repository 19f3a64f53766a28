"""The contract of every kind of tower, and what is said of a wrong kind or setting."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from posttrain.types import PosttrainError
from posttrain.vision import towers
from posttrain.vision.towers.model import TowerConfig, TowerModel, open_tower

# Settings that make a kind small; one that is not named here is tried with its defaults.
SMALL: dict[str, dict[str, Any]] = {
    "vit": {"image_size": 32, "patch": 8, "width": 32, "depth": 2, "heads": 4},
    "deformable": {"image_size": 32, "patch": 8, "width": 32, "depth": 2, "heads": 4},
    "navit": {"image_size": 32, "patch": 8, "width": 32, "depth": 2, "heads": 4},
    "trident": {"image_size": 32, "patch": 8, "width": 32, "depth": 2},
    "swin": {"image_size": 32, "depths": [2, 2], "heads": [2, 4], "width": 16, "window": 4},
    "efficientnet": {"stride": 8, "width": 0.25, "image_size": 64},
    "pretrained": {
        "config": {
            "model_type": "dinov2_with_registers",
            "image_size": 32,
            "patch_size": 8,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
        }
    },
}


@pytest.fixture(scope="module", params=towers.names())
def tower(request: pytest.FixtureRequest) -> towers.Tower:
    torch.manual_seed(0)
    return towers.build(request.param, SMALL.get(request.param, {})).eval()


def test_the_shipped_kinds_are_found() -> None:
    assert {"efficientnet", "pretrained", "swin", "vit"} <= set(towers.names())
    assert not {"model", "__init__"} & set(towers.names())


@pytest.mark.parametrize(("rows", "columns"), [(0, 0), (0, 1), (2, 0)])
def test_an_image_becomes_the_grid_that_is_announced(tower: towers.Tower, rows: int, columns: int) -> None:
    size, stride = tower.image_size, tower.stride
    height, width = size + rows * stride, size + columns * stride
    with torch.no_grad():
        tokens = tower(torch.randn(2, 3, height, width))
    grid = tower.grid(height, width)
    assert grid == (height // stride, width // stride)
    assert tokens.shape == (2, grid[0] * grid[1], tower.width)
    assert tokens.isfinite().all()


def test_images_do_not_see_each_other_and_twice_is_the_same(tower: towers.Tower) -> None:
    size = tower.image_size
    images = torch.randn(3, 3, size, size)
    with torch.no_grad():
        together, again = tower(images), tower(images)
        apart = torch.cat([tower(image[None]) for image in images])
    torch.testing.assert_close(together, again, rtol=0, atol=0)
    torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-5)


def test_every_pixel_normalization_is_told(tower: towers.Tower) -> None:
    assert len(tower.mean) == len(tower.std) == 3
    assert all(0 <= value <= 1 for value in tower.mean) and all(0 < value <= 1 for value in tower.std)


@pytest.mark.parametrize("kind", towers.names())
def test_any_kind_takes_the_pixels_mean_and_std(kind: str, tmp_path: Path) -> None:
    told = {"mean": [0.9, 0.8, 0.7], "std": [0.3, 0.2, 0.1]}
    made = TowerModel(TowerConfig(kind=kind, settings=SMALL.get(kind, {}) | told))
    made.save_pretrained(tmp_path)
    for tower in (made.tower, open_tower(str(tmp_path)).tower):
        assert (tower.mean, tower.std) == ((0.9, 0.8, 0.7), (0.3, 0.2, 0.1))
    over = open_tower(str(tmp_path), {"mean": [0.5, 0.5, 0.5]}).tower
    assert (over.mean, over.std) == ((0.5, 0.5, 0.5), (0.3, 0.2, 0.1))


def test_every_kind_learns(tower: towers.Tower) -> None:
    tower.train()
    size = tower.image_size
    tower(torch.randn(2, 3, size, size)).square().sum().backward()
    grads = [parameter.grad for parameter in tower.parameters() if parameter.grad is not None]
    tower.zero_grad(set_to_none=True)
    tower.eval()
    assert len(grads) > len(list(tower.parameters())) / 2
    assert all(grad.isfinite().all() for grad in grads)


def test_an_image_below_one_token_is_told(tower: towers.Tower) -> None:
    with pytest.raises(PosttrainError, match="pixels each way or more"):
        tower(torch.zeros(1, 3, tower.stride - 1, tower.image_size))


@pytest.mark.parametrize(
    ("kind", "settings", "said"),
    [
        (
            "vitt",
            {},
            "no kind of tower 'vitt'; did you mean 'vit'.; there are .*vit",
        ),
        ("", {}, "no kind of tower ''"),
        ("model", {}, "no kind of tower 'model'"),
        ("../vit", {}, "no kind of tower '../vit'"),
        ("視覚", {}, "no kind of tower '視覚'"),
        (
            "vit",
            {"pach": 8},
            "tower vit takes no 'pach'; did you mean 'patch'.; it takes image_size, patch, width",
        ),
        ("vit", {"patch": "large"}, "tower vit: patch should be a valid integer.*not 'large'"),
        ("vit", {"patch": 0}, "patch 0"),
        ("trident", {"std": [0.5, 0, 0.5]}, "above 0"),
        ("trident", {"mean": [0.5, 0.5]}, "mean"),
        ("vit", {"width": 65}, "heads has to divide width"),
        ("vit", {"image_size": 8}, "an image to hold a patch"),
        ("swin", {"depths": [2, 2]}, "one number, 1 or more, for each stage"),
        ("swin", {"depths": []}, "one number, 1 or more, for each stage"),
        ("swin", {"heads": [3, 6, 12, 25]}, "stage 4: width 768 is no multiple of 25 heads"),
        (
            "swin",
            {"image_size": 64},
            "window of 7 tokens spans 224 pixels, the image has 64; take fewer stages",
        ),
        ("efficientnet", {"variant": "b9"}, "no variant 'b9'.*there are b0, b1"),
        ("efficientnet", {"stride": 5}, "stride is 2, 4, 8, 16 or 32, not 5"),
        ("efficientnet", {"width": 0.0}, "above 0"),
        ("efficientnet", {"width": float("nan")}, "width should be a finite number"),
        ("pretrained", {}, "tower pretrained needs 'config'"),
    ],
)
def test_a_wrong_kind_or_setting_is_told(kind: str, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(PosttrainError, match=said):
        towers.build(kind, settings)


def test_complete_tells_the_defaults() -> None:
    found = towers.complete("swin", {"width": 32})
    assert found["width"] == 32 and found["window"] == 7
    assert towers.complete("swin", {"depths": [1, 2]})["depths"] == (1, 2)

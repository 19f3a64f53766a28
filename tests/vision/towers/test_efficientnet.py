"""EfficientNet against the numbers published of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import EfficientNetForImageClassification, EfficientNetModel

from posttrain.vision import towers
from posttrain.vision.towers import efficientnet

# Parameters with the classifier of 1000 (as torchvision counts them), multiply-adds (the paper's table 2).
PUBLISHED = {
    "b0": (5_288_548, 0.39e9),
    "b1": (7_794_184, 0.70e9),
    "b2": (9_109_994, 1.0e9),
    "b3": (12_233_232, 1.8e9),
    "b4": (19_341_616, 4.2e9),
    "b5": (30_389_784, 9.9e9),
    "b6": (43_040_704, 19e9),
    "b7": (66_347_960, 37e9),
}


def work(config: Any, size: int) -> float:
    """Multiply-adds of one image."""
    with torch.device("meta"):
        model, image = EfficientNetModel(config).eval(), torch.empty(1, 3, size, size)
    with FlopCounterMode(display=False) as counter:
        model(image)
    return counter.get_total_flops() / 2


@pytest.mark.parametrize("variant", PUBLISHED)
def test_parameters_are_as_published(variant: str) -> None:
    width, depth, pixels = efficientnet.VARIANTS[variant]
    config = efficientnet.scaled(width, depth, round(pixels))
    config.num_labels = 1000
    with torch.device("meta"):
        whole = EfficientNetForImageClassification(config)
        tower = towers.build("efficientnet", {"variant": variant})
    count = sum(p.numel() for p in whole.parameters())
    assert count == PUBLISHED[variant][0]
    classifier = (config.hidden_dim + 1) * 1000
    assert sum(p.numel() for p in tower.parameters()) == count - classifier
    assert tower.width == config.hidden_dim
    assert tower.image_size == -(-pixels // 32) * 32


@pytest.mark.parametrize("variant", ["b0", "b1", "b3", "b7"])
def test_work_is_as_published(variant: str) -> None:
    """At a size that halves five times, brought to the published one by the area; maps of B1's round up."""
    width, depth, pixels = efficientnet.VARIANTS[variant]
    size = -(-round(pixels) // 32) * 32
    found = work(efficientnet.scaled(width, depth, size), size) * (pixels / size) ** 2
    assert found == pytest.approx(PUBLISHED[variant][1], rel=0.08)


def test_phi_about_doubles_the_work() -> None:
    product = efficientnet.ALPHA * efficientnet.BETA**2 * efficientnet.GAMMA**2
    assert product == pytest.approx(2, rel=0.05)
    sizes = {}
    for phi in (1.0, 2.0, 3.0):
        with torch.device("meta"):
            tower: Any = towers.build("efficientnet", {"phi": phi})
        size = tower.image_size
        sizes[phi] = work(tower.model.config, size) * (224 * 1.15**phi / size) ** 2
    assert 1.5 < sizes[2.0] / sizes[1.0] < 2.5
    assert 3 < sizes[3.0] / sizes[1.0] < 5


def test_phi_0_is_b0() -> None:
    with torch.device("meta"):
        plain, scaled = towers.build("efficientnet"), towers.build("efficientnet", {"phi": 0})
    shapes = {name: p.shape for name, p in plain.named_parameters()}
    assert shapes == {name: p.shape for name, p in scaled.named_parameters()}
    assert plain.image_size == scaled.image_size == 224


@pytest.mark.parametrize("stride", [2, 4, 8, 16, 32])
def test_an_early_end_keeps_the_stages_before_it(stride: int) -> None:
    with torch.device("meta"):
        whole: Any = towers.build("efficientnet", {"width": 0.5})
        early: Any = towers.build("efficientnet", {"width": 0.5, "stride": stride, "image_size": 64})
        image = torch.empty(1, 3, 64, 128)
    assert early.stride == stride and early(image).shape == (1, 64 * 128 // stride**2, 640)
    kept = [tuple(b.projection.project_conv.weight.shape) for b in early.model.encoder.blocks]
    blocks = [tuple(b.projection.project_conv.weight.shape) for b in whole.model.encoder.blocks]
    assert len(kept) == {2: 1, 4: 3, 8: 5, 16: 11, 32: 16}[stride]
    assert kept == blocks[: len(kept)]


def test_fresh_weights_pass_the_image_on() -> None:
    """Scales of the norms near 0, as transformers draws them, would give the same tokens for every image."""
    torch.manual_seed(0)
    tower = towers.build("efficientnet", {"image_size": 64, "stride": 8, "width": 0.5})
    tokens = tower(torch.randn(4, 3, 64, 64))
    assert 0.1 < tokens.std(0).mean() < 10


def test_statistics_move_slowly() -> None:
    torch.manual_seed(0)
    tower: Any = towers.build("efficientnet", {"image_size": 64, "stride": 2, "width": 0.5})
    norm = tower.model.embeddings.batchnorm
    tower(torch.randn(4, 3, 64, 64) * 100)
    assert norm.running_var.max() < 0.2 * 100**2
    assert norm.num_batches_tracked == 1

"""EfficientNet from scratch: inverted residuals with squeeze and excitation, scaled as a whole by one number.

Tan and Le, 2019, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks".
"""

from __future__ import annotations

import itertools
import math
import operator

from torch import nn
from transformers import EfficientNetConfig
from transformers.models.efficientnet.modeling_efficientnet import round_filters

from posttrain.types import PosttrainError
from posttrain.vision.towers import Tower
from posttrain.vision.towers.pretrained import PretrainedTower
from posttrain.words import did_you_mean

# Width, depth and pixels as published: near what phi gives at 0, 0.5, 1, 2, …, 6.
VARIANTS: dict[str, tuple[float, float, float]] = {
    "b0": (1.0, 1.0, 224),
    "b1": (1.0, 1.1, 240),
    "b2": (1.1, 1.2, 260),
    "b3": (1.2, 1.4, 300),
    "b4": (1.4, 1.8, 380),
    "b5": (1.6, 2.2, 456),
    "b6": (1.8, 2.6, 528),
    "b7": (2.0, 3.1, 600),
}
ALPHA, BETA, GAMMA = 1.2, 1.1, 1.15  # of depth, width and pixels: alpha · beta² · gamma² is about 2
STRIDES = (1, 2, 2, 2, 1, 2, 1)  # of B0's seven stages; the stem before them halves the image too
TOP = 1280  # channels that B0 ends with


def build(
    *,
    variant: str = "b0",
    phi: float | None = None,
    width: float | None = None,
    stride: int = 32,
    image_size: int | None = None,
) -> Tower:
    """Tokens of 1280 · width channels, one for each `stride` pixels each way.

    Args:
        variant: b0 to b7. phi: a scale in its place: depth 1.2^phi, width 1.1^phi and 224 · 1.15^phi pixels.
        width: times B0's channels, in place of what those say.
        stride: 32, or 16, 8, 4 or 2 to leave out the stages behind that, for small images.
        image_size: where not given that of the scale, rounded up to a multiple of `stride`.

    Raises:
        PosttrainError: another variant or stride, or a scale that is not above 0.
    """
    if variant not in VARIANTS:
        raise PosttrainError(
            f"tower efficientnet: no variant {variant!r}{did_you_mean(variant, VARIANTS, '; did you mean')}; "
            f"there are {', '.join(VARIANTS)}"
        )
    wide, deep, pixels = VARIANTS[variant]
    if phi is not None:
        wide, deep, pixels = BETA**phi, ALPHA**phi, 224 * GAMMA**phi
    wide = wide if width is None else width
    reached = [2 * step for step in itertools.accumulate(STRIDES, operator.mul)]
    if stride not in reached:
        raise PosttrainError(f"tower efficientnet: stride is 2, 4, 8, 16 or 32, not {stride}")
    if wide <= 0 or (image_size is not None and image_size < 1):
        raise PosttrainError("tower efficientnet: width and image_size have to be above 0")
    stages = sum(step <= stride for step in reached)
    tower = PretrainedTower(scaled(wide, deep, image_size or round(pixels), stages))
    _initialize(tower)
    return tower


def scaled(width: float, depth: float, image_size: int, stages: int = 7) -> EfficientNetConfig:
    """transformers' configuration of the first stages of B0 (the paper's table 1), scaled."""
    config = EfficientNetConfig(
        image_size=image_size,
        width_coefficient=width,
        depth_coefficient=depth,
        kernel_sizes=[3, 3, 5, 3, 5, 5, 3][:stages],
        in_channels=[32, 16, 24, 40, 80, 112, 192][:stages],
        out_channels=[16, 24, 40, 80, 112, 192, 320][:stages],
        strides=list(STRIDES[:stages]),
        num_block_repeats=[1, 2, 2, 3, 3, 4, 1][:stages],
        expand_ratios=[1, 6, 6, 6, 6, 6, 6][:stages],
        batch_norm_momentum=0.01,  # torch's is the share of the new batch, TensorFlow's 0.99 that of the old
        drop_connect_rate=0.0,  # transformers drops single values and not whole layers
    )
    config.hidden_dim = round_filters(config, TOP)
    return config


def _initialize(tower: nn.Module) -> None:
    """He's values, by fan-out; transformers gives the norms scales about 0.02, which end the signal."""
    for module in tower.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.out_channels // module.groups * math.prod(module.kernel_size)
            nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)

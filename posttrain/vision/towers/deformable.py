"""A vision transformer whose patches bend: its patch embedding is a deformable convolution."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from posttrain.vision.ops.deformable import DeformableConv2d
from posttrain.vision.ops.encoder import Encoder
from posttrain.vision.ops.flexi import resize_positions
from posttrain.vision.towers import Tower
from posttrain.vision.towers._patches import PatchTower


class DeformableTower(PatchTower):
    """Each of a patch's pixels is read where the patch itself says, then transformer layers as in a ViT."""

    def __init__(self, image_size: int, patch: int, width: int, depth: int, heads: int, version: int):
        super().__init__(image_size, patch, width)
        self.embed = DeformableConv2d(3, width, patch, stride=patch, version=version)
        rows, columns = self.native
        self.positions = nn.Parameter(0.02 * torch.randn(rows * columns, width))
        self.encoder = Encoder(width, depth, heads)

    def forward(self, pixels: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, rows * columns, D]. Raises PosttrainError for an image smaller than a patch."""
        places = resize_positions(self.positions, self.native, self.grid_of(pixels))
        return self.encoder(self.embed(pixels.to(places.dtype)).flatten(2).mT + places)


def build(
    *,
    image_size: int = 224,
    patch: int = 16,
    width: int = 384,
    depth: int = 12,
    heads: int = 6,
    version: Literal[1, 2] = 2,
) -> Tower:
    """(H / patch) · (W / patch) tokens of `width`. Version 2 weighs each pixel too, and learns to at a tenth.

    Fresh, version 1 reads its patches as a ViT does. Other sizes than `image_size` interpolate the positions.

    Raises:
        PosttrainError: a size below 1, a width that `heads` does not divide, an image smaller than a patch.
    """
    return DeformableTower(image_size, patch, width, depth, heads, version)

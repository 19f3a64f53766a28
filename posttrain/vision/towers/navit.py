"""A vision transformer for images of any size and shape, many to a row of tokens (arXiv 2307.06304)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

import torch
from torch import Tensor, nn

from posttrain.vision.ops.encoder import Encoder
from posttrain.vision.ops.navit import axis_positions, pack, patches
from posttrain.vision.towers import Tower
from posttrain.vision.towers._patches import PatchTower


class NaViTTower(PatchTower):
    """A patch's position is its row's embedding plus its column's, as fractions of the image's sides."""

    def __init__(self, image_size: int, patch: int, width: int, depth: int, heads: int):
        super().__init__(image_size, patch, width)
        self.embed = nn.Linear(3 * patch**2, width)
        rows, columns = self.native
        self.rows = nn.Parameter(0.02 * torch.randn(rows, width))
        self.columns = nn.Parameter(0.02 * torch.randn(columns, width))
        self.encoder = Encoder(width, depth, heads)

    @overload
    def forward(self, pixels: Tensor) -> Tensor: ...
    @overload
    def forward(self, pixels: Sequence[Tensor]) -> list[Tensor]: ...
    def forward(self, pixels: Tensor | Sequence[Tensor]) -> Tensor | list[Tensor]:
        """[B, 3, H, W] -> [B, rows * columns, D]; a list of images [3, H_i, W_i] -> a list of [N_i, D].

        Images of a list share rows of as many tokens as a square one of `image_size` has, or the largest has.

        Raises:
            PosttrainError: an image smaller than a patch.
        """
        if isinstance(pixels, Tensor):
            return self.encoder(self._embedded(pixels))
        if not pixels:
            return []
        packed = pack([self._embedded(image) for image in pixels], len(self.rows) * len(self.columns))
        return packed.unpack(self.encoder(packed.tokens, packed.mask))

    def _embedded(self, pixels: Tensor) -> Tensor:
        """[..., 3, H, W] -> [..., N, D], positions added."""
        rows, columns = self.grid_of(pixels)
        places = axis_positions(self.rows, rows)[:, None] + axis_positions(self.columns, columns)
        return self.embed(patches(pixels.to(places.dtype), self.stride)) + places.flatten(0, 1)


def build(
    *, image_size: int = 224, patch: int = 16, width: int = 384, depth: int = 12, heads: int = 6
) -> Tower:
    """(H / patch) · (W / patch) tokens of `width`; sizes may differ from image to image, given as a list.

    Raises:
        PosttrainError: a size below 1, a width that `heads` does not divide, an image smaller than a patch.
    """
    return NaViTTower(image_size, patch, width, depth, heads)

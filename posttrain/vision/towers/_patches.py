"""What towers from scratch with square patches share."""

from __future__ import annotations

from torch import Tensor

from posttrain.types import PosttrainError
from posttrain.vision.towers import Tower


class PatchTower(Tower):
    """A token a patch, from pixels that are scaled to -1..1."""

    mean = std = (0.5, 0.5, 0.5)

    def __init__(self, image_size: int, patch: int, width: int):
        super().__init__()
        if min(patch, width) < 1 or image_size < patch:
            raise PosttrainError(
                f"image_size {image_size}, patch {patch}, width {width}: an image has to hold a patch, "
                "and each to be 1 or more"
            )
        self.width, self.stride, self.image_size = width, patch, image_size

    @property
    def native(self) -> tuple[int, int]:
        """Rows and columns of an image of the default size."""
        return self.grid(self.image_size, self.image_size)

    def grid_of(self, pixels: Tensor) -> tuple[int, int]:
        """Rows and columns of tokens of [..., H, W]. Raises PosttrainError for less than a patch."""
        height, width = pixels.shape[-2:]
        rows, columns = self.grid(height, width)
        if min(rows, columns) < 1:
            raise PosttrainError(
                f"this tower takes images of {self.stride} pixels each way or more, not {height} × {width}"
            )
        return rows, columns

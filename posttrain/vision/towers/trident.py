"""A convolutional tower that sees every place at three scales with one set of weights (arXiv 1901.01892)."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from posttrain.types import PosttrainError
from posttrain.vision.ops.trident import TridentStage
from posttrain.vision.towers import Tower
from posttrain.vision.towers._patches import PatchTower


class TridentTower(PatchTower):
    """Strided convolutions down to a token a patch, trident blocks, the mean over branches, a norm.

    The mean is taken in training and in eval mode alike. The paper's detector trains a branch on boxes of its
    size and keeps the middle one afterwards; a token has no one size, and a policy that learns in eval mode
    would leave the other branches out for good. `middle` asks for the paper's way in eval mode.
    BatchNorm uses its running statistics there, so that an image's tokens do not hang on its neighbours.
    """

    def __init__(self, image_size: int, patch: int, width: int, depth: int, middle: bool):
        super().__init__(image_size, patch, width)
        halvings = patch.bit_length() - 1
        if patch != 1 << halvings or not halvings or depth < 1:
            raise PosttrainError(
                f"patch {patch}, depth {depth}: a trident tower takes patches of 2, 4, 8, 16, … pixels and a "
                "depth of 1 or more"
            )
        self.middle = middle
        stem: list[nn.Module] = []
        for channels, out in pairwise([3, *(max(width >> left, 1) for left in reversed(range(halvings)))]):
            conv = nn.Conv2d(channels, out, 3, stride=2, padding=1, bias=False)
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
            stem += [conv, nn.BatchNorm2d(out), nn.ReLU()]
        self.stem = nn.Sequential(*stem)
        self.stage = TridentStage(width, max(width // 4, 1), depth)
        self.norm = nn.LayerNorm(width)

    def forward(self, pixels: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, rows * columns, D]. Raises PosttrainError for an image smaller than a patch."""
        rows, columns = self.grid_of(pixels)
        whole = pixels[..., : rows * self.stride, : columns * self.stride].to(self.norm.weight.dtype)
        branches = self.stage(self.stem(whole), every=self.training or not self.middle)
        return self.norm(branches.mean(0).flatten(2).mT)


def build(
    *, image_size: int = 224, patch: int = 16, width: int = 384, depth: int = 6, middle: bool = False
) -> Tower:
    """(H / patch) · (W / patch) tokens of `width`, from `depth` trident blocks. Any image size fits.

    Args:
        middle: in eval mode run the middle branch alone, for a third of the blocks' work. Its tokens are then
            others than in training mode: for a tower that was trained before and stays as it is.

    Raises:
        PosttrainError: a size below 1, a patch that is no power of two, an image smaller than a patch.
    """
    return TridentTower(image_size, patch, width, depth, middle)

"""A vision transformer from scratch: square patches, a layer of tokens each, one resolution throughout.

Dosovitskiy et al., 2021, "An Image is Worth 16x16 Words".
"""

from __future__ import annotations

from transformers import ViTConfig

from posttrain.types import PosttrainError
from posttrain.vision.towers import Tower
from posttrain.vision.towers.pretrained import PretrainedTower


def build(
    *, image_size: int = 224, patch: int = 16, width: int = 384, depth: int = 12, heads: int = 6, mlp: int = 4
) -> Tower:
    """(H / patch) · (W / patch) tokens of `width`; `mlp` is how many times wider the hidden layers are.

    The defaults are ViT-S/16 (Touvron et al., 2021). Other sizes than `image_size` interpolate the positions.

    Raises:
        PosttrainError: a size below 1, a width that `heads` does not divide, an image smaller than a patch.
    """
    if min(image_size, patch, width, depth, heads, mlp) < 1 or width % heads or image_size < patch:
        raise PosttrainError(
            f"tower vit: width {width} with heads {heads}, image_size {image_size} with patch {patch}: heads "
            "has to divide width, an image to hold a patch, and each to be 1 or more"
        )
    config = ViTConfig(
        image_size=image_size,
        patch_size=patch,
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        intermediate_size=mlp * width,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return PretrainedTower(config)

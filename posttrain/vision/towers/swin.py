"""A Swin transformer from scratch: attention in windows, shifted every other layer, on ever smaller maps.

Liu et al., 2021, "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows".
"""

from __future__ import annotations

from transformers import SwinConfig

from posttrain.types import PosttrainError
from posttrain.vision.towers import Tower
from posttrain.vision.towers.pretrained import PretrainedTower


def build(
    *,
    image_size: int = 224,
    patch: int = 4,
    width: int = 96,
    depths: tuple[int, ...] = (2, 2, 6, 2),
    heads: tuple[int, ...] = (3, 6, 12, 24),
    window: int = 7,
    drop_path: float = 0.0,
) -> Tower:
    """Tokens of width · 2^(stages - 1) channels, one for each patch · 2^(stages - 1) pixels each way.

    `depths` and `heads` are per stage, `window` is in tokens each way, `drop_path` is the last layer's chance
    of being left out (0 to 1). The defaults are Swin-T; for 64 pixels take three stages and a window of 4.

    Raises:
        PosttrainError: not as many heads as depths, a stage's width that its heads do not divide, or a last
            stage whose map is smaller than a window.
    """
    if not depths or len(depths) != len(heads) or min(patch, width, window, *depths, *heads) < 1:
        raise PosttrainError("tower swin: depths and heads take one number, 1 or more, for each stage")
    stride = patch * 2 ** (len(depths) - 1)
    for stage, count in enumerate(heads):
        if width * 2**stage % count:
            raise PosttrainError(
                f"tower swin: stage {stage + 1}: width {width * 2**stage} is no multiple of {count} heads"
            )
    if image_size < window * stride:
        raise PosttrainError(
            f"tower swin: in stage {len(depths)} a window of {window} tokens spans {window * stride} pixels, "
            f"the image has {image_size}; take fewer stages, or a smaller window or patch"
        )
    config = SwinConfig(
        image_size=image_size,
        patch_size=patch,
        embed_dim=width,
        depths=list(depths),
        num_heads=list(heads),
        window_size=window,
        drop_path_rate=drop_path,
    )
    return PretrainedTower(config)

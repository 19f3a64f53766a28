"""Layers of a vision transformer, with the norm first, and the last norm."""

from __future__ import annotations

from torch import Tensor, nn

from posttrain.types import PosttrainError


class Encoder(nn.Module):
    """[B, N, width] -> the same. `mask` is a bool [B, N, N]: may this query see that key?"""

    def __init__(self, width: int, depth: int, heads: int) -> None:
        super().__init__()
        if min(depth, heads) < 1 or width % heads:
            raise PosttrainError(
                f"width {width}, heads {heads}, depth {depth}: heads has to divide width, each to be "
                "1 or more"
            )
        self.heads = heads
        # Each is made by itself: nn.TransformerEncoder copies one layer, so that all would start alike.
        # Without batch_first torch stays away from its fused path where no gradient is asked for: a
        # policy's tokens have to be the same with and without.
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, heads, 4 * width, dropout=0.0, activation="gelu", norm_first=True
            )
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        hidden = None if mask is None else ~mask.repeat_interleave(self.heads, 0)
        x = x.transpose(0, 1).contiguous()
        for layer in self.layers:
            x = layer(x, hidden)
        return self.norm(x.transpose(0, 1))

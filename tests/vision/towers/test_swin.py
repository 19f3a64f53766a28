"""Swin's windows against loops over tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers.models.swin.modeling_swin import window_partition, window_reverse

from posttrain.types import PosttrainError
from posttrain.vision import towers

SETTINGS = {"image_size": 64, "depths": [2, 2], "heads": [2, 4], "width": 16, "window": 4}


def small() -> Any:
    torch.manual_seed(0)
    tower: Any = towers.build("swin", SETTINGS).eval()
    with torch.no_grad():  # the tables of relative positions start as zeros
        for parameter in tower.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return tower


def test_windows_are_blocks_and_go_back() -> None:
    maps = torch.randn(2, 8, 12, 5)
    windows = window_partition(maps, 4)
    blocks = [m[r : r + 4, c : c + 4] for m in maps for r in (0, 4) for c in (0, 4, 8)]
    torch.testing.assert_close(windows, torch.stack(blocks), rtol=0, atol=0)
    torch.testing.assert_close(window_reverse(windows, 4, 8, 12), maps, rtol=0, atol=0)


def by_loop(layer: Any, x: torch.Tensor, rows: int, columns: int, shift: int) -> torch.Tensor:
    """A layer on [rows * columns, D], token by token: windows start at shift, shift + 4, … and none wraps."""
    attention, window = layer.attention, 4
    normed = layer.layernorm_before(x)
    heads, size = attention.num_attention_heads, attention.head_dim
    query, key, value = (
        part(normed).view(-1, heads, size) for part in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    table = attention.relative_position_bias.relative_position_bias_table
    places = [(r, c) for r in range(rows) for c in range(columns)]
    out = torch.zeros_like(query)
    for i, (r, c) in enumerate(places):
        home = ((r - shift) // window, (c - shift) // window)
        seen = [
            j for j, (s, d) in enumerate(places) if ((s - shift) // window, (d - shift) // window) == home
        ]
        for h in range(heads):
            scores = torch.stack(
                [
                    query[i, h] @ key[j, h] / size**0.5
                    + table[(r - places[j][0] + 3) * 7 + (c - places[j][1] + 3), h]
                    for j in seen
                ]
            )
            out[i, h] = sum(p * value[j, h] for p, j in zip(scores.softmax(0), seen, strict=True))
    x = x + attention.o_proj(out.flatten(1))
    return x + layer.mlp(layer.layernorm_after(x))


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize(("rows", "columns"), [(8, 8), (8, 12)])
def test_a_layer_equals_a_loop_over_its_tokens(shifted: bool, rows: int, columns: int) -> None:
    layer = small().model.encoder.layers[0].blocks[int(shifted)]
    assert layer.shift_size == (2 if shifted else 0)
    x = torch.randn(rows * columns, 16)
    with torch.no_grad():
        found = layer(x[None], (rows, columns))[0][0]
        torch.testing.assert_close(
            found, by_loop(layer, x, rows, columns, layer.shift_size), rtol=1e-4, atol=1e-5
        )


def test_a_small_image_leaves_nothing_behind() -> None:
    """transformers' layers keep the shift of 0 that an image of one window gave them."""
    tower, large, tiny = small(), torch.randn(1, 3, 64, 96), torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        before = tower(large)
        assert tower(tiny).shape == (1, 16, 32)
        torch.testing.assert_close(tower(large), before, rtol=0, atol=0)


def test_what_no_window_fits_in_is_told() -> None:
    with pytest.raises(PosttrainError, match="32 pixels each way or more, not 24 × 64"):
        small()(torch.zeros(1, 3, 24, 64))
    with pytest.raises(PosttrainError, match="not cut an image of 60 × 60 pixels.*use multiples of 8"):
        small()(torch.zeros(1, 3, 60, 60))


def test_the_defaults_are_swin_t() -> None:
    """28,288,354 parameters in the published model, of which the classifier has 769,000."""
    with torch.device("meta"):
        tower = towers.build("swin")
    assert sum(p.numel() for p in tower.parameters()) == 28_288_354 - 769_000

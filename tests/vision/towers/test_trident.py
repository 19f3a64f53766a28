"""A tower of three branches: what it averages, which of them learn, and what BatchNorm does to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from posttrain.types import PosttrainError
from posttrain.vision.ops import trident
from posttrain.vision.towers.model import TowerModel, open_tower

SMALL = {"image_size": 32, "patch": 4, "width": 16, "depth": 2}


def opened(**settings: Any) -> Any:
    """A tower that has taken some statistics."""
    torch.manual_seed(0)
    model = open_tower("trident", {**SMALL, **settings})
    model.train()
    for _ in range(3):
        model(torch.randn(4, 3, 32, 32))
    return model.eval()


def branch(tower: Any, x: Tensor, dilation: int) -> Tensor:
    """One branch as an ordinary network of that dilation, in eval mode: [B, D, rows, columns]."""
    x = tower.stem(x)
    for block in tower.stage.blocks:
        inner = block.reduce_norm(block.reduce(x)).relu()
        inner = F.conv2d(inner, block.conv.weight, padding=dilation, dilation=dilation)
        x = (x + block.expand_norm(block.expand(block.conv_norm(inner).relu()))).relu()
    return x


def test_tokens_are_the_mean_over_branches() -> None:
    tower, x = opened().tower, torch.randn(2, 3, 32, 32)
    mean = sum(branch(tower, x, d) for d in (1, 2, 3)) / 3
    expected = tower.norm(mean.flatten(2).mT)  # pyright: ignore[reportAttributeAccessIssue]
    assert tower(x).shape == (2, 64, 16)
    torch.testing.assert_close(tower(x), expected, atol=1e-5, rtol=1e-5)


def test_the_middle_branch_alone() -> None:
    tower, x = opened(middle=True).tower, torch.randn(2, 3, 32, 32)
    expected = tower.norm(branch(tower, x, 2).flatten(2).mT)
    torch.testing.assert_close(tower(x), expected, atol=1e-5, rtol=1e-5)
    assert tower.train()(x).shape == expected.shape


def test_scales_cost_no_parameters() -> None:
    """As many as one branch has: the convolutions and norms of the stem and of two bottlenecks."""
    stem = 3 * 8 * 9 + 8 * 16 * 9 + 2 * (8 + 16)
    block = 16 * 4 + 4 * 4 * 9 + 4 * 16 + 2 * (4 + 4 + 16)
    assert sum(p.numel() for p in opened().parameters()) == stem + 2 * block + 2 * 16


def test_every_parameter_learns_in_eval_mode() -> None:
    model = open_tower("trident", SMALL)  # fresh: no statistics yet
    model(torch.randn(2, 3, 32, 32)).last_hidden_state[..., ::2].sum().backward()
    assert not [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]


def test_eval_mode_is_one_function_image_by_image() -> None:
    model = opened()
    x = torch.randn(3, 3, 32, 32)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    tokens = model(x).last_hidden_state
    torch.testing.assert_close(model(x[1:2]).last_hidden_state, tokens[1:2], atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(model(x).last_hidden_state, tokens, atol=1e-6, rtol=1e-6)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


def test_one_image_in_training_mode() -> None:
    model = open_tower("trident", SMALL).train()
    assert model(torch.randn(1, 3, 32, 32)).last_hidden_state.isfinite().all()


@pytest.mark.parametrize(("height", "width"), [(32, 64), (4, 4), (43, 21), (7, 33)])
def test_other_sizes(height: int, width: int) -> None:
    tower = opened().tower
    rows, columns = tower.grid(height, width)
    assert (rows, columns) == (height // 4, width // 4)
    assert tower(torch.randn(1, 3, height, width)).shape == (1, rows * columns, 16)


def test_statistics_are_saved_and_loaded(tmp_path: Path) -> None:
    model = opened()
    model.save_pretrained(tmp_path)
    again = TowerModel.from_pretrained(tmp_path).eval()
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(model(x).last_hidden_state, again(x).last_hidden_state)


def test_branches_share_one_run_of_each_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, ...]] = []
    forward = trident.TridentConv2d.forward

    def watched(self: Any, x: Tensor, dilations: tuple[int, ...]) -> Tensor:
        seen.append((len(x), *dilations))
        return forward(self, x, dilations)

    monkeypatch.setattr(trident.TridentConv2d, "forward", watched)
    open_tower("trident", SMALL)(torch.randn(2, 3, 32, 32))
    assert seen == [(6, 1, 2, 3)] * 2


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"patch": 6}, "2, 4, 8, 16"),
        ({"patch": 1}, "2, 4, 8, 16"),
        ({"depth": 0}, "depth of 1 or more"),
        ({"image_size": 2}, "hold a patch"),
    ],
)
def test_wrong_settings(settings: dict[str, int], said: str) -> None:
    with pytest.raises(PosttrainError, match=said):
        open_tower("trident", {**SMALL, **settings})


def test_an_image_smaller_than_a_patch() -> None:
    with pytest.raises(PosttrainError, match="4 pixels each way or more"):
        opened().tower(torch.randn(1, 3, 3, 32))

"""Trident blocks against conv2d with each dilation and batch_norm over all branches."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.nn.grad import conv2d_weight

from posttrain.vision.ops.trident import TridentBlock, TridentConv2d, TridentStage, trained_by


def test_each_branch_is_conv2d_with_its_dilation() -> None:
    conv = TridentConv2d(4, 6)
    x = torch.randn(6, 4, 7, 9)
    y = conv(x).chunk(3)
    for branch, d in enumerate((1, 2, 3)):
        expected = F.conv2d(x[2 * branch : 2 * branch + 2], conv.weight, conv.bias, padding=d, dilation=d)
        torch.testing.assert_close(y[branch], expected)


def test_one_set_of_weights_whose_gradient_is_the_sum_over_branches() -> None:
    conv = TridentConv2d(4, 6, bias=False)
    assert [name for name, _ in conv.named_parameters()] == ["weight"]
    x = torch.randn(6, 4, 7, 7)
    goal = torch.randn(6, 6, 7, 7)
    (conv(x) * goal).sum().backward()
    total = torch.zeros_like(conv.weight)
    for branch, d in enumerate((1, 2, 3)):
        own = slice(2 * branch, 2 * branch + 2)
        total += conv2d_weight(x[own], conv.weight.shape, goal[own], padding=d, dilation=d)
    torch.testing.assert_close(conv.weight.grad, total, atol=1e-4, rtol=1e-4)


def test_even_kernel() -> None:
    with pytest.raises(ValueError, match="middle"):
        TridentConv2d(3, 4, 2)


def test_branches_share_their_norms() -> None:
    block = TridentBlock(8, 4).train()
    norms = [m for m in block.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert len(norms) == 3
    x = torch.randn(6, 8, 5, 5)
    block(x)
    inner = F.batch_norm(block.reduce(x), None, None, training=True).relu()
    seen = torch.cat(
        [
            F.conv2d(part, block.conv.weight, padding=d, dilation=d)
            for part, d in zip(inner.chunk(3), (1, 2, 3), strict=True)
        ]
    )
    running = block.conv_norm.running_mean
    assert running is not None
    torch.testing.assert_close(running, 0.1 * seen.mean((0, 2, 3)), atol=1e-5, rtol=1e-4)
    assert not torch.allclose(running, 0.1 * seen[2:4].mean((0, 2, 3)), atol=1e-5, rtol=1e-4)


def test_all_branches_in_training_and_the_middle_one_after() -> None:
    torch.manual_seed(0)
    stage = TridentStage(8, 4, 2)
    x = torch.randn(2, 8, 6, 6)
    for _ in range(3):
        assert stage.train()(x).shape == (3, 2, 8, 6, 6)
    stage.eval()
    middle = stage(x)
    assert middle.shape == (1, 2, 8, 6, 6)
    every = stage(x, every=True)
    torch.testing.assert_close(every[1], middle[0])
    assert not torch.allclose(every[0], every[1])
    assert not torch.allclose(every[2], every[1])
    assert torch.equal(stage(x), middle)
    assert len(stage.train()(x, every=False)) == 1


def test_one_image_in_training() -> None:
    y = TridentStage(8, 4, 2).train()(torch.randn(1, 8, 1, 1))
    assert y.isfinite().all()


def test_no_images_in_eval() -> None:
    assert TridentStage(8, 4, 1).eval()(torch.randn(0, 8, 4, 4), every=True).shape == (3, 0, 8, 4, 4)


def test_a_fresh_deep_stack_keeps_its_size() -> None:
    torch.manual_seed(0)
    stage = TridentStage(32, 16, 24).eval()
    x = torch.randn(4, 32, 8, 8).relu()
    assert 0.3 < (stage(x).square().mean() / x.square().mean()).item() < 10


def test_valid_ranges() -> None:
    sides = [0.0, 29.9, 30.0, 60.0, 90.0, 120.0, 160.0, 161.0, 5000.0]
    boxes = torch.tensor([[10.0, 20.0, 10 + s * 2, 20 + s / 2] for s in sides])
    assert trained_by(boxes).int().tolist() == [
        [1, 0, 0],
        [1, 0, 0],
        [1, 1, 0],
        [1, 1, 0],
        [1, 1, 1],
        [0, 1, 1],
        [0, 1, 1],
        [0, 0, 1],
        [0, 0, 1],
    ]
    assert trained_by(torch.tensor([[50.0, 50, 10, 10]])).tolist() == [[True, False, False]]
    assert trained_by(torch.zeros(0, 4)).shape == (0, 3)
    assert trained_by(boxes, ranges=[(0, 10), (5, 100)]).shape == (9, 2)

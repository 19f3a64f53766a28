"""Measures of tokens against closed forms, and alarms that ring for one thing each."""

from __future__ import annotations

import math

import pytest
import torch

from posttrain.vision.health import alarms, effective_rank, health


def noise(images: int = 8, tokens: int = 9, width: int = 6, seed: int = 0) -> torch.Tensor:
    return torch.randn(images, tokens, width, generator=torch.Generator().manual_seed(seed))


def test_the_rank_of_known_matrices() -> None:
    assert effective_rank(torch.eye(7).double()) == pytest.approx(7)
    assert effective_rank(3 * torch.eye(7).double()[:4]) == pytest.approx(4)
    assert effective_rank(torch.ones(5, 3).double()) == pytest.approx(1, abs=1e-6)
    assert effective_rank(torch.zeros(5, 3).double()) == 0
    expected = math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))  # singular values 3 and 1
    assert effective_rank(torch.diag(torch.tensor([3.0, 1.0]).double())) == pytest.approx(expected)


def test_orthogonal_tokens() -> None:
    now = health(torch.eye(6).view(3, 2, 6))
    assert now["images"] == 3 and now["tokens"] == 6 and now["finite"] == 1
    assert now["rank"] == pytest.approx(6) and now["images_rank"] == pytest.approx(3)
    assert now["norm"] == 1 and now["norm_spread"] == 0 and now["outliers"] == 0
    assert now["cosine"] == pytest.approx(0) and now["dead"] == 0
    assert alarms(now, now) == []


def test_equal_tokens_are_told_to_be_blind() -> None:
    now = health(torch.tensor([3.0, 4.0]).expand(4, 5, 2))
    assert now["rank"] == pytest.approx(1, abs=1e-6) and now["images_rank"] == pytest.approx(1, abs=1e-6)
    assert now["norm"] == pytest.approx(5) and now["norm_spread"] == pytest.approx(0)
    assert now["cosine"] == pytest.approx(1) and now["dead"] == 1
    blind, collapsed, dead = alarms(now, None)
    assert "blind: the mean tokens of 4 pictures" in blind and "learning rate" in blind
    assert "effective rank is 1.0" in collapsed
    assert dead.startswith("100% of the dimensions")


def test_one_far_token_is_an_outlier() -> None:
    tokens = torch.eye(10).view(2, 5, 10).clone()
    tokens[1, 4] *= 10
    now = health(tokens)
    assert now["outliers"] == pytest.approx(0.1) and now["norm"] == pytest.approx(1.9)
    assert now["norm_spread"] == pytest.approx(2.7 / 1.9)  # 9 * sqrt(0.1 * 0.9)
    (only,) = alarms(now, None)
    assert only.startswith("10.0% of the image tokens are over 5 times as long") and "registers" in only
    tokens[1, 4] *= 0.5
    assert health(tokens)["outliers"] == 0  # exactly five times is none


def test_the_cosine_is_the_mean_over_pairs() -> None:
    tokens = noise()
    means = tokens.double().mean(1)
    pairs = [
        torch.cosine_similarity(means[a], means[b], dim=0).item()
        for a in range(8)
        for b in range(8)
        if a != b
    ]
    assert health(tokens)["cosine"] == pytest.approx(sum(pairs) / len(pairs))


def test_dead_dimensions_are_counted_at_any_scale() -> None:
    for scale in (1e-6, 1.0, 1e6):
        tokens = noise() * scale
        tokens[..., :3] = tokens[0, 0, :3]
        now = health(tokens)
        assert now["dead"] == 0.5
        assert sum("50% of the dimensions" in alarm for alarm in alarms(now, None)) == 1


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_all_that_is_said(poison: float) -> None:
    tokens = noise(2, 5)
    tokens[1, 2, 3] = poison
    now = health(tokens)
    assert now["finite"] == pytest.approx(0.9) and math.isnan(now["rank"]) and math.isnan(now["cosine"])
    (only,) = alarms(now, health(noise(2, 5)))
    assert only.startswith("1 of 10 image tokens are NaN or infinite. Go back to the last checkpoint")
    assert alarms(health(noise(2, 5)), now) == []  # nothing to compare with


def test_one_picture_has_no_other_to_be_like() -> None:
    now = health(noise(1))
    assert math.isnan(now["cosine"]) and now["images_rank"] == pytest.approx(1)
    assert alarms(now, now) == []


def test_one_token_each_and_one_alone() -> None:
    now = health(noise(8, 1))
    assert now["rank"] == pytest.approx(now["images_rank"])
    alone = health(noise(1, 1))
    assert math.isnan(alone["dead"]) and alone["norm_spread"] == 0 and alone["rank"] == pytest.approx(1)
    assert alarms(alone, alone) == []


def test_zeros_have_no_rank() -> None:
    now = health(torch.zeros(3, 4, 5))
    assert now["rank"] == now["norm"] == now["norm_spread"] == now["outliers"] == now["cosine"] == 0
    assert any("effective rank is 0.0" in alarm for alarm in alarms(now, now))


def test_half_precision_and_gradients_do_not_matter() -> None:
    tokens = noise().bfloat16().requires_grad_()
    assert health(tokens) == health(tokens.detach().float())


@pytest.mark.parametrize("shape", [(0, 4, 5), (2, 0, 5), (2, 4, 0)])
def test_nothing_cannot_be_measured(shape: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="no tokens to measure"):
        health(torch.zeros(shape))


def test_a_healthy_batch_that_moves_a_little_is_quiet() -> None:
    before, now = health(noise()), health(noise(seed=1) * 2)
    assert alarms(now, before) == []


def test_a_fall_of_the_rank_is_told() -> None:
    before = health(torch.eye(20).view(4, 5, 20))
    fallen = health(torch.eye(20)[:, :4].repeat(1, 5)[torch.arange(20) % 4].view(4, 5, 20))
    (only,) = alarms(fallen | {"cosine": 0.0, "norm": before["norm"], "images_rank": 4.0}, before)
    assert only.startswith("The effective rank of the image tokens fell from 20.0 to 4.0: ")
    assert alarms(fallen | {"cosine": 0.0, "norm": before["norm"]}, before | {"images": 5.0}) == []


def test_pictures_that_grow_alike_are_told() -> None:
    tokens = noise(width=40)
    before, now = health(tokens), health(tokens + 2)
    (only,) = alarms(now, before)
    assert only.startswith("The pictures grew alike: the mean cosine between them rose from")
    assert alarms(before, now) == []


@pytest.mark.parametrize("scale", [0.3, 3.5])
def test_tokens_of_another_length_are_told(scale: float) -> None:
    before, now = health(noise()), health(noise() * scale)
    (only,) = alarms(now, before)
    assert only.startswith("The image tokens' mean length went from") and "connector" in only
    assert alarms(health(noise() * 2.9), before) == []

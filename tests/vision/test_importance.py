"""A planted token is found, its score gets back to its patches, and what is drawn lies where it should."""

from __future__ import annotations

import io
import math
import time

import pytest
import torch

from posttrain.vision import importance
from posttrain.vision.connector import space_to_depth
from posttrain.vision.importance import gradient_times_input, heat, overlay, to_patches
from posttrain.vision.merging import merge

Image = pytest.importorskip("PIL.Image", reason="pictures need pillow")

GREY = (100, 100, 100)


def test_the_planted_token_is_found() -> None:
    torch.manual_seed(0)
    embeddings = torch.randn(12, 8, requires_grad=True)
    asked, scorer = torch.randn(8), torch.nn.Linear(8, 5)
    with torch.no_grad():
        embeddings[7] = 4 * asked / asked.norm()
    look = (embeddings @ asked).softmax(0)
    log_probability = scorer(look @ embeddings).log_softmax(0)[2]
    (gradient,) = torch.autograd.grad(log_probability, embeddings)
    assert gradient_times_input(embeddings, gradient).abs().argmax() == 7


def test_scores_of_a_linear_function_are_its_terms() -> None:
    embeddings = torch.tensor([[1.0, 2.0], [0.0, 0.0], [-1.0, 3.0]], requires_grad=True)
    weight = torch.tensor([[2.0, 1.0], [9.0, 9.0], [4.0, -1.0]])
    (gradient,) = torch.autograd.grad((embeddings * weight).sum(), embeddings)
    scores = gradient_times_input(embeddings, gradient)
    assert scores.tolist() == [4.0, 0.0, -7.0] and not scores.requires_grad
    assert gradient_times_input(embeddings.bfloat16(), gradient.bfloat16()).tolist() == [4.0, 0.0, -7.0]
    assert gradient_times_input(torch.zeros(0, 4), torch.zeros(0, 4)).shape == (0,)


def test_merged_scores_are_those_of_the_patches_themselves() -> None:
    """Where the rest is linear, sharing evenly gives on average just what gradients at the patches give."""
    patches = torch.randn(1, 30, 6, dtype=torch.float64, requires_grad=True)
    merged, sizes, member = merge(patches, 8)
    weight = torch.randn_like(merged)
    at_tokens, at_patches = torch.autograd.grad((merged * weight).sum(), [merged, patches])
    scores = gradient_times_input(merged[0], at_tokens[0])
    shared = to_patches(scores, member[0])
    torch.testing.assert_close(shared.sum(), scores.sum())
    direct = gradient_times_input(patches[0], at_patches[0])
    torch.testing.assert_close(torch.zeros(8).index_add(0, member[0], direct), scores)
    for token in range(8):
        mine = shared[member[0] == token]
        assert len(mine) == sizes[0, token] and (mine - scores[token] / len(mine)).abs().max() < 1e-6


def test_scores_of_a_shuffled_grid_go_back_to_their_block() -> None:
    places = torch.arange(24.0).view(1, 24, 1)
    blocks = space_to_depth(places, (4, 6), 2)[0].long()
    member = torch.empty(24, dtype=torch.long)
    for token, block in enumerate(blocks):
        member[block] = token
    scores = torch.zeros(6)
    scores[4] = 8.0
    shown = to_patches(scores, member).view(4, 6)
    assert (shown[2:, 2:4] == 2).all() and shown.sum() == 8


def test_heat_is_relative_and_survives_anything() -> None:
    assert heat(torch.tensor([1.0, -4.0, 0.0])).tolist() == [0.25, 1.0, 0.0]
    assert heat(torch.tensor([math.nan, 2.0, math.inf, -math.inf])).tolist() == [0.0, 1.0, 0.0, 0.0]
    assert heat(torch.zeros(3)).tolist() == [0.0] * 3
    assert heat(torch.tensor([1e-42, 0.0]))[0] <= 1
    assert heat(torch.tensor([3e38, -3e38])).tolist() == [1.0, 1.0]


def opened(data: bytes):
    assert data.startswith(b"\x89PNG")
    return Image.open(io.BytesIO(data))


def test_heat_lies_on_its_patch() -> None:
    scores = torch.zeros(6)
    scores[4], scores[0] = 2.0, -1.0  # row 1, column 1; and half as hot at the corner
    shown = opened(overlay(Image.new("RGB", (300, 400), GREY), scores, (2, 3)))
    assert shown.size == (300, 400) and shown.mode == "RGB"

    def mixed(share: float) -> tuple[int, ...]:
        return tuple(
            round(g + share * importance.COVER * (h - g)) for g, h in zip(GREY, importance.HEAT, strict=True)
        )

    def close(at: tuple[int, int], color: tuple[int, ...]) -> bool:
        return all(abs(a - b) <= 1 for a, b in zip(shown.getpixel(at), color, strict=True))

    for at in ((101, 201), (198, 398), (150, 300)):
        assert close(at, mixed(1))
    for at in ((1, 1), (98, 198)):
        assert close(at, mixed(0.5))
    for at in ((98, 202), (202, 202), (150, 198), (299, 399)):
        assert shown.getpixel(at) == GREY


def colors(picture) -> set[tuple[int, int, int]]:
    return {color for _, color in picture.getcolors(10**6)}


def test_boxes_and_their_legend() -> None:
    plain = Image.new("RGB", (300, 300), GREY)
    shown = opened(overlay(plain, None, (1, 1), predicted=[(10, 20, 100, 200)], true=[(150, 30, 250, 90)]))
    assert shown.size == (300, 300 + importance.LEGEND)
    for at in ((10, 100), (100, 100), (50, 20), (50, 200)):
        assert shown.getpixel(at) == importance.PREDICTED
    for at in ((150, 60), (154, 60), (250, 60), (200, 30), (200, 90)):
        assert shown.getpixel(at) == importance.TRUE
    assert shown.getpixel((50, 100)) == GREY and shown.getpixel((200, 60)) == GREY
    legend = shown.crop((0, 300, 300, 324))
    assert {importance.PREDICTED, importance.TRUE, (0, 0, 0), (255, 255, 255)} <= colors(legend)
    assert plain.getpixel((10, 100)) == GREY  # the caller's picture stays as it was


def test_equal_boxes_show_both_colors() -> None:
    box = (50.0, 50.0, 200.0, 200.0)
    shown = opened(overlay(Image.new("RGB", (300, 300)), None, (1, 1), [box], [box]))
    assert shown.getpixel((50, 100)) == importance.PREDICTED
    assert shown.getpixel((53, 100)) == importance.TRUE or shown.getpixel((54, 100)) == importance.TRUE


def test_small_pictures_grow_with_their_boxes_and_large_ones_shrink() -> None:
    small = Image.new("L", (16, 32), 100)
    small.putpixel((3, 4), 255)
    shown = opened(overlay(small, None, (1, 1), true=[(8, 8, 12, 20)]))
    assert shown.size == (256, 512 + importance.LEGEND)
    assert shown.getpixel((3 * 16, 4 * 16)) == shown.getpixel((4 * 16 - 1, 5 * 16 - 1)) == (255, 255, 255)
    assert shown.getpixel((8 * 16, 14 * 16)) == importance.TRUE
    assert opened(overlay(Image.new("RGB", (4096, 2048)), torch.ones(4), (2, 2))).size == (1024, 512)
    assert (
        opened(overlay(Image.new("RGB", (1, 5000)), torch.ones(4), (2, 2), true=[(0, 0, 1, 9)])).size[1]
        == 1048
    )


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I", "F"])
def test_pictures_of_every_mode(mode: str) -> None:
    assert opened(overlay(Image.new(mode, (300, 300)), torch.ones(4), (2, 2))).mode == "RGB"


def test_what_is_no_box_is_left_out_and_far_ones_cost_nothing() -> None:
    bad = [(math.nan, 0, 5, 5), (9, 9, 1, 1), (0, 0, math.inf, 5), (1, 2, 3), "box", None, (0, 0, 0, 0)]
    start = time.monotonic()
    shown = opened(overlay(Image.new("RGB", (8, 8), GREY), None, (1, 1), bad, [(-1e6, -1e6, 1e6, 1e6)]))  # type: ignore[arg-type]
    assert time.monotonic() - start < 5
    assert colors(shown.crop((6, 6, 250, 250))) == {GREY}
    assert shown.getpixel((0, 100)) == shown.getpixel((255, 100)) == importance.TRUE

"""Connectors: shapes, space-to-depth against loops, what may not depend on what, and what is refused."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from posttrain.types import PosttrainError
from posttrain.vision.connector import (
    KINDS,
    Block,
    Connector,
    Resampler,
    build,
    depth_to_space,
    positions,
    space_to_depth,
)

WIDTH, INTO, GRID = 24, 40, (4, 6)
BUDGETS = {"linear": None, "mlp": None, "pixel_shuffle": 6, "resampler": 5, "merge": 7}


def make(kind: str, seed: int = 0) -> Connector:
    torch.manual_seed(seed)
    return build(kind, width=WIDTH, into=INTO, tokens=BUDGETS[kind], grid=GRID)


def images(count: int = 3, seed: int = 1) -> Tensor:
    return torch.randn(count, 24, WIDTH, generator=torch.Generator().manual_seed(seed))


def test_every_kind_is_tried_here() -> None:
    assert set(BUDGETS) == set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_shapes_and_tokens(kind: str) -> None:
    connector = make(kind)
    assert connector.tokens == (BUDGETS[kind] or 24)
    for count in (0, 1, 3):
        assert connector(images(count)).shape == (count, connector.tokens, INTO)


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_does_not_depend_on_its_neighbours(kind: str) -> None:
    connector, batch = make(kind), images(5)
    together = connector(batch)
    for place in range(5):
        torch.testing.assert_close(connector(batch[place : place + 1])[0], together[place])
    torch.testing.assert_close(connector(batch.flip(0)), together.flip(0))


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_reaches_every_parameter_and_token(kind: str) -> None:
    connector, batch = make(kind), images().requires_grad_()
    connector(batch).square().sum().backward()
    for name, parameter in connector.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        # A key's bias adds the same to all of a query's scores, which the softmax takes out again.
        assert name.endswith("key.bias") or parameter.grad.abs().max() > 1e-6, name
    assert batch.grad is not None and (batch.grad.abs().amax(-1) > 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_autocast_in_bfloat16(kind: str) -> None:
    connector, batch = make(kind), images()
    with torch.autocast("cpu", torch.bfloat16):
        half = connector(batch)
    assert half.dtype == torch.bfloat16
    full = connector(batch)
    assert (half - full).norm() < 0.03 * full.norm()
    assert connector.bfloat16()(batch.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("kind", KINDS)
def test_the_seed_decides_the_weights(kind: str) -> None:
    first, again, other = (make(kind, seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_built_without_memory_is_whole_once_its_weights_are_there(kind: str) -> None:
    connector = make(kind)
    with torch.device("meta"):
        empty = build(kind, width=WIDTH, into=INTO, tokens=BUDGETS[kind], grid=GRID)
    empty.load_state_dict(connector.state_dict(), assign=True)
    assert torch.equal(empty(images()), connector(images()))


def test_linear_and_mlp_are_the_layers_by_hand() -> None:
    batch = images()
    one = make("linear").state_dict()
    by_hand = batch @ one["project.weight"].T + one["project.bias"]
    torch.testing.assert_close(make("linear")(batch), by_hand)
    two = make("mlp").state_dict()
    inner = batch @ two["project.0.weight"].T + two["project.0.bias"]
    inner = inner * 0.5 * (1 + torch.erf(inner / math.sqrt(2)))
    torch.testing.assert_close(make("mlp")(batch), inner @ two["project.2.weight"].T + two["project.2.bias"])


@pytest.mark.parametrize(
    ("rows", "columns", "factor"), [(4, 6, 2), (6, 6, 3), (2, 2, 2), (3, 5, 1), (8, 4, 4)]
)
def test_space_to_depth_is_the_naive_loop_and_has_an_inverse(rows: int, columns: int, factor: int) -> None:
    tokens = torch.randn(2, rows * columns, 3)
    small = space_to_depth(tokens, (rows, columns), factor)
    assert small.shape == (2, rows * columns // factor**2, 3 * factor**2)
    place = 0
    for row in range(0, rows, factor):
        for column in range(0, columns, factor):
            block = [(row + y) * columns + column + x for y in range(factor) for x in range(factor)]
            assert torch.equal(small[:, place], torch.cat([tokens[:, patch] for patch in block], -1))
            place += 1
    assert torch.equal(depth_to_space(small, (rows, columns), factor), tokens)


@pytest.mark.parametrize("kind", ["linear", "mlp", "pixel_shuffle", "merge"])
def test_member_says_which_patch_went_into_which_token(kind: str) -> None:
    connector, batch = make(kind), images(1)
    member = connector.member(batch)
    assert member is not None and member.shape == (1, 24)
    before = connector(batch)[0]
    for patch in (0, 1, 7, 23):
        changed = batch.clone()
        changed[0, patch] *= 1.01  # the direction stays, so no other pair becomes the best
        moved = (connector(changed)[0] - before).abs().amax(-1) > 1e-6
        assert moved.nonzero().flatten().tolist() == [member[0, patch].item()]


def test_a_resampler_has_no_members() -> None:
    assert make("resampler").member(images()) is None


def test_positions_tell_every_place_apart() -> None:
    table = positions((4, 6), 16, torch.zeros(1))
    for row in range(4):
        for column in range(6):
            angles = [place * 10_000 ** (-k / 4) for place in (row, column) for k in range(4)]
            waves = [[f(a) for a in angles[i : i + 4]] for i in (0, 4) for f in (math.sin, math.cos)]
            expected = torch.tensor([value for wave in waves for value in wave])
            torch.testing.assert_close(table[row * 6 + column], expected)
    assert torch.cdist(table, table).add(10 * torch.eye(24)).min() > 0.1
    assert torch.equal(positions((4, 6), 19, torch.zeros(1))[:, 16:], torch.zeros(24, 3))
    assert positions((2, 2), 3, torch.zeros(1)).shape == (4, 3)


def test_a_resampler_sees_where_tokens_are_and_queries_take_their_place() -> None:
    connector, batch = make("resampler"), images()
    assert isinstance(connector, Resampler)
    shuffled = batch[:, torch.randperm(24, generator=torch.Generator().manual_seed(0))]
    assert (connector(shuffled) - connector(batch)).abs().max() > 1e-3
    before = connector(batch)
    with torch.no_grad():
        connector.queries.weight.copy_(connector.queries.weight.flip(0))
    torch.testing.assert_close(connector(batch), before.flip(1))


def test_a_resampler_without_positions_does_not_see_where(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "posttrain.vision.connector.positions", lambda grid, width, like: torch.zeros(24, width)
    )
    connector, batch = make("resampler"), images()
    torch.testing.assert_close(connector(batch.flip(1)), connector(batch))


def test_attention_is_that_of_torch() -> None:
    torch.manual_seed(0)
    connector = build("resampler", width=128, into=8, tokens=3, grid=(2, 2))
    assert isinstance(connector, Resampler)
    block = connector.blocks[0]
    assert isinstance(block, Block)
    peer = nn.MultiheadAttention(128, 2, batch_first=True)
    assert block.heads == 2
    mine = block.state_dict()
    peer.load_state_dict(
        {
            "in_proj_weight": torch.cat([mine[f"{part}.weight"] for part in ("query", "key", "value")]),
            "in_proj_bias": torch.cat([mine[f"{part}.bias"] for part in ("query", "key", "value")]),
            "out_proj.weight": mine["out.weight"],
            "out_proj.bias": mine["out.bias"],
        }
    )
    queries, seen, places = torch.randn(2, 3, 128), torch.randn(2, 4, 128), torch.randn(4, 128)
    looked = queries + peer(block.before(queries), seen + places, seen)[0]
    torch.testing.assert_close(block(queries, seen, places), looked + block.think(block.between(looked)))


@pytest.mark.parametrize(
    ("width", "heads"), [(384, 6), (192, 3), (64, 1), (20, 1), (200, 2), (7, 1), (130, 2)]
)
def test_heads_divide_the_width(width: int, heads: int) -> None:
    connector = build("resampler", width=width, into=8, tokens=2, grid=(2, 2))
    assert isinstance(connector, Resampler) and [block.heads for block in connector.blocks] == [heads] * 2


@pytest.mark.parametrize(
    ("kind", "tokens", "grid", "says"),
    [
        ("pixelshuffle", 4, (4, 4), "there is no connector 'pixelshuffle'; did you mean 'pixel_shuffle'?"),
        ("变换", 4, (4, 4), "the kinds are linear, mlp, pixel_shuffle, resampler, merge"),
        (
            "linear",
            4,
            (4, 4),
            "keep the tower's 16 tokens and cannot make 4 of them: leave tokens out, or take",
        ),
        ("mlp", 0, (4, 4), "keep the tower's 16 tokens and cannot make 0"),
        ("pixel_shuffle", 64, (14, 14), "14 x 14; it can make 1, 4, 49, 196; the nearest is 49"),
        (
            "pixel_shuffle",
            None,
            (4, 6),
            "needs to know how many tokens from a grid of 4 x 6; it can make 6, 24",
        ),
        ("pixel_shuffle", 3, (3, 5), "it can make 15; the nearest is 15"),
        ("merge", 17, (4, 4), "merge cannot make 17 tokens; it can make 1 to 16; the nearest is 16"),
        ("merge", 0, (3, 3), "it can make 1 to 9; the nearest is 1"),
        ("merge", None, (4, 4), "a merge connector needs to know how many tokens; it can make 1 to 16"),
        ("resampler", 0, (4, 4), "resampler cannot make 0 tokens; it can make 1 or more; the nearest is 1"),
        ("resampler", None, (4, 4), "a resampler connector needs to know how many tokens"),
        ("mlp", None, (0, 4), "the tower's grid is 0 x 4"),
    ],
)
def test_what_cannot_be_built_is_refused(
    kind: str, tokens: int | None, grid: tuple[int, int], says: str
) -> None:
    with pytest.raises(PosttrainError) as error:
        build(kind, width=8, into=8, tokens=tokens, grid=grid)
    assert says in str(error.value)


def test_linear_takes_the_number_that_it_gives_anyway() -> None:
    assert build("linear", width=8, into=8, tokens=16, grid=(4, 4)).tokens == 16


def test_images_of_another_size_are_refused() -> None:
    with pytest.raises(PosttrainError, match="built for 4 x 6 = 24 tokens an image and got 25"):
        make("mlp")(torch.randn(1, 25, WIDTH))

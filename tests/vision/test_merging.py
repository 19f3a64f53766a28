"""Merging against a loop over lists of members, and what has to hold of any merger."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from posttrain.vision import merging
from posttrain.vision.merging import merge


def cosine(a: list[float], b: list[float]) -> float:
    lengths = math.sqrt(sum(x * x for x in a)) * math.sqrt(sum(x * x for x in b))
    return sum(x * y for x, y in zip(a, b, strict=True)) / lengths


def naive(tokens: list[list[float]], n: int) -> list[tuple[list[float], list[int]]]:
    """One image's tokens -> n of (mean, members), with size-weighted running means."""
    now = [(token, [place]) for place, token in enumerate(tokens)]
    while len(now) > n:
        pairs = min(len(now) - n, max(1, len(now) // merging.PACE))
        odd = list(range(1, len(now), 2))
        best = []
        for even in range(0, len(now), 2):
            score, target = max((cosine(now[even][0], now[o][0]), -o) for o in odd)
            best.append((-score, even, -target))
        for _, even, target in sorted(best)[:pairs]:
            (a, mine), (b, theirs) = now[even], now[target]
            size, other = len(mine), len(theirs)
            mean = [(size * x + other * y) / (size + other) for x, y in zip(a, b, strict=True)]
            now[target] = (mean, theirs + mine)
            now[even] = ([], [])
        now = sorted((pair for pair in now if pair[1]), key=lambda pair: min(pair[1]))
    return now


@pytest.mark.parametrize(("count", "n"), [(16, 7), (15, 4), (9, 8), (36, 3), (5, 1), (2, 1), (49, 16)])
def test_merge_is_the_naive_loop(count: int, n: int) -> None:
    tokens = torch.randn(3, count, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(count))
    merged, sizes, member = merge(tokens, n)
    for image in range(3):
        expected = naive(tokens[image].tolist(), n)
        means = torch.tensor([mean for mean, _ in expected], dtype=torch.float64)
        torch.testing.assert_close(merged[image], means)
        assert sizes[image].tolist() == [len(members) for _, members in expected]
        for new, (_, members) in enumerate(expected):
            assert (member[image] == new).nonzero().flatten().tolist() == sorted(members)


def check(tokens: Tensor, n: int) -> tuple[Tensor, Tensor, Tensor]:
    merged, sizes, member = merge(tokens, n)
    count = tokens.shape[1]
    assert merged.shape == (len(tokens), n, tokens.shape[2])
    assert (sizes >= 1).all() and (sizes.sum(1) == count).all()
    assert all(torch.equal(torch.bincount(m, minlength=n), s) for m, s in zip(member, sizes, strict=True))
    weighted = (merged * sizes[..., None]).sum(1) / count
    torch.testing.assert_close(weighted, tokens.mean(1), rtol=1e-4, atol=1e-5)
    return merged, sizes, member


@pytest.mark.parametrize("n", [1, 2, 25, 48, 49])
def test_sizes_sum_to_all_and_the_mean_stays(n: int) -> None:
    check(torch.randn(4, 49, 8, generator=torch.Generator().manual_seed(n)), n)


def test_all_kept_is_the_identity() -> None:
    tokens = torch.randn(2, 9, 4)
    merged, sizes, member = merge(tokens, 9)
    assert torch.equal(merged, tokens) and (sizes == 1).all()
    assert torch.equal(member, torch.arange(9).expand(2, 9))


def test_one_token_is_the_mean() -> None:
    tokens = torch.randn(2, 9, 4)
    merged, sizes, member = check(tokens, 1)
    torch.testing.assert_close(merged[:, 0], tokens.mean(1))
    assert (member == 0).all() and (sizes == 9).all()


def test_identical_tokens_merge_in_order_and_keep_their_value() -> None:
    tokens = torch.ones(1, 8, 4)
    merged, _, member = check(tokens, 7)
    assert torch.equal(merged, torch.ones(1, 7, 4))
    assert member.tolist() == [[0, 0, 1, 2, 3, 4, 5, 6]]  # the first of equal pairs
    check(tokens, 3)


def test_of_many_ties_the_first_are_taken() -> None:
    _, sizes, member = check(torch.ones(1, 300, 4), 280)
    together = (member[0] == 0).nonzero().flatten().tolist()
    assert together == sorted([*range(0, 40, 2), 1]) and (sizes[0, 1:] == 1).all()


def test_groups_of_equal_tokens_are_found() -> None:
    kinds = torch.tensor([0, 0, 1, 1, 2, 2])
    merged, sizes, member = check(torch.eye(3)[kinds][None], 3)
    assert torch.equal(member[0], kinds)
    assert torch.equal(merged[0], torch.eye(3)) and sizes.tolist() == [[2, 2, 2]]


def test_zero_and_nan_tokens_are_survived() -> None:
    check(torch.zeros(2, 6, 3), 2)
    tokens = torch.randn(2, 6, 3)
    alone = merge(tokens[1:], 3)[0]
    tokens[0, 2] = torch.nan
    merged, sizes, _ = merge(tokens, 3)
    torch.testing.assert_close(merged[1:], alone)  # the neighbour is untouched
    assert sizes.sum(1).tolist() == [6, 6]


def test_the_gradient_is_that_of_the_averages() -> None:
    tokens = torch.randn(2, 6, 3, dtype=torch.float64, requires_grad=True)
    _, sizes, member = merge(tokens, 3)
    weight = torch.randn(2, 3, 3, dtype=torch.float64)
    (merge(tokens, 3)[0] * weight).sum().backward()
    share = (weight / sizes[..., None]).gather(1, member[..., None].expand(-1, -1, 3))
    torch.testing.assert_close(tokens.grad, share)


def test_half_precision_chooses_as_its_values_in_full_do() -> None:
    tokens = torch.randn(2, 64, 16).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        merged, _, member = merge(tokens, 20)
    assert merged.dtype == torch.bfloat16
    assert torch.equal(member, merge(tokens.float(), 20)[2])


@pytest.mark.parametrize("n", [0, -1, 10])
def test_an_impossible_number_is_refused(n: int) -> None:
    with pytest.raises(ValueError, match=f"9 tokens cannot be merged into {n}"):
        merge(torch.randn(1, 9, 4), n)

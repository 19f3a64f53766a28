"""Drawing tokens: the right distribution, the right log-probabilities, and nothing odd at the edges."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from posttrain.rollout.sampling import BLOCK, draw, inverse_cdf, truncate
from posttrain.types import Sampling

ALMOST_ONE = math.nextafter(1.0, 0.0)


def logits_of(rows: int, vocab: int, seed: int = 0, scale: float = 3.0) -> Tensor:
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed)) * scale


def uniforms(n: int, seed: int = 0) -> Tensor:
    return torch.rand(n, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("vocab", [7, BLOCK, 3 * BLOCK + 5], ids=["small", "one block", "odd"])
@pytest.mark.parametrize("temperature", [1.0, 0.7, 1.6])
def test_draws_follow_the_softmax(vocab: int, temperature: float) -> None:
    n = 50_000
    logits = logits_of(1, vocab, seed=vocab)
    expected = (logits[0].double() / temperature).softmax(-1) * n
    tokens, _ = draw(logits.repeat(n, 1), uniforms(n), Sampling(1, temperature))
    counts = torch.bincount(tokens, minlength=vocab).double()
    # Pearson's chi-square, rare tokens together: its mean is the degrees of freedom, its variance twice that.
    rare = expected < 10
    counts = torch.cat([counts[~rare], counts[rare].sum()[None]])
    expected = torch.cat([expected[~rare], expected[rare].sum()[None]]).clamp(min=1e-9)
    freedom = len(counts) - 1
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    assert chi_square < freedom + 5 * math.sqrt(2 * freedom)


def test_log_probabilities_are_those_of_the_distribution_drawn_from() -> None:
    logits = logits_of(500, 1000)
    sampling = Sampling(1, temperature=0.8)
    tokens, logprobs = draw(logits.clone(), uniforms(500), sampling)
    exact = (logits.double() / 0.8).log_softmax(-1).gather(1, tokens[:, None])[:, 0]
    torch.testing.assert_close(logprobs.double(), exact, atol=2e-6, rtol=0)


def test_log_probabilities_after_truncation() -> None:
    logits = logits_of(300, 300)
    tokens, logprobs = draw(logits.clone(), uniforms(300), Sampling(1, top_k=5))
    kept = logits.double().masked_fill(logits < logits.topk(5).values[:, -1:], -torch.inf)
    exact = kept.log_softmax(-1).gather(1, tokens[:, None])[:, 0]
    assert torch.isfinite(exact).all(), "a token left out was drawn"
    torch.testing.assert_close(logprobs.double(), exact, atol=2e-6, rtol=0)


def test_greedy_takes_the_likeliest_whatever_the_rest_says() -> None:
    logits = logits_of(50, 700)
    sampling = Sampling(1, temperature=0.0, top_k=3, top_p=0.1, min_p=0.9)
    tokens, logprobs = draw(logits.clone(), torch.full((50,), ALMOST_ONE), sampling)
    assert torch.equal(tokens, logits.argmax(-1))
    exact = logits.log_softmax(-1).gather(1, tokens[:, None])[:, 0]
    torch.testing.assert_close(logprobs, exact, atol=2e-6, rtol=0)


def naive_kept(row: list[float], top_k: int, top_p: float, min_p: float) -> set[int]:
    """What stays, one rule after the other, over plain lists."""

    def probs(over: list[int]) -> dict[int, float]:
        top = max(row[i] for i in over)
        mass = {i: math.exp(row[i] - top) for i in over}
        return {i: m / sum(mass.values()) for i, m in mass.items()}

    kept = sorted(range(len(row)), key=lambda i: -row[i])
    if top_k:
        kept = kept[:top_k]
    if top_p < 1:
        p, before, some = probs(kept), 0.0, []
        for i in kept:
            if some and before >= top_p:
                break
            some.append(i)
            before += p[i]
        kept = some
    if min_p:
        p = probs(kept)
        kept = [i for i in kept if p[i] >= min_p * max(p.values())]
    return set(kept)


@pytest.mark.parametrize(
    ("top_k", "top_p", "min_p"),
    [
        (1, 1.0, 0.0),
        (4, 1.0, 0.0),
        (40, 1.0, 0.0),  # more than there are
        (0, 0.5, 0.0),
        (0, 0.9, 0.0),
        (0, 1e-9, 0.0),  # the likeliest always stays
        (0, 1.0, 0.1),
        (0, 1.0, 1.0),
        (6, 0.8, 0.05),
    ],
)
def test_truncation_equals_a_naive_one(top_k: int, top_p: float, min_p: float) -> None:
    logits = logits_of(60, 30)
    cut = logits.clone()
    truncate(cut, Sampling(1, top_k=top_k, top_p=top_p, min_p=min_p))
    for row, now in zip(logits.tolist(), cut.tolist(), strict=True):
        kept = {i for i, x in enumerate(now) if x != -math.inf}
        assert kept == naive_kept(row, top_k, top_p, min_p)
        assert all(now[i] == row[i] for i in kept)


@pytest.mark.parametrize("uniform", [0.0, 1e-30, 0.5, 1 - 2**-24, ALMOST_ONE])
@pytest.mark.parametrize("vocab", [3, BLOCK, 2 * BLOCK, 2 * BLOCK + 3])
def test_only_tokens_with_mass_are_drawn(uniform: float, vocab: int) -> None:
    """Few tokens with mass, at the edges of blocks and in the middle, and the ends of the uniform's range."""
    for alive in {0, 1, vocab // 2, min(BLOCK, vocab) - 1, vocab - 1}:
        logits = torch.full((1, vocab), -torch.inf)
        logits[0, alive] = 3.0
        tokens, logprobs = draw(logits, torch.tensor([uniform], dtype=torch.float64), Sampling(1))
        assert tokens.tolist() == [alive] and logprobs.tolist() == [0.0]
    logits = torch.full((1, vocab), -torch.inf)
    logits[0, [1, vocab - 1]] = torch.tensor([0.0, math.log(3)])
    tokens, logprobs = draw(logits, torch.tensor([uniform], dtype=torch.float64), Sampling(1))
    assert tokens.item() == (1 if uniform < 0.25 else vocab - 1)
    assert logprobs.item() == pytest.approx(math.log(0.25 if uniform < 0.25 else 0.75), abs=1e-6)


def test_huge_logits_and_tiny_masses() -> None:
    logits = torch.tensor([[1e30, -1e30, 0.0, 1e30], [80.0, 0.0, -80.0, -torch.inf], [-1e30] * 4])
    u = torch.tensor([0.75, ALMOST_ONE, 0.3])
    tokens, logprobs = draw(logits, u, Sampling(1))
    assert tokens.tolist() == [3, 0, 1]
    assert logprobs.tolist() == pytest.approx([math.log(0.5), 0.0, math.log(0.25)], abs=1e-6)


def test_a_small_uniform_reaches_rare_tokens_at_the_front() -> None:
    """Cumulative sums lose nothing of a small mass that comes first."""
    mass = torch.zeros(1, 2 * BLOCK)
    mass[0, 5], mass[0, 2 * BLOCK - 1] = 1e-12, 1.0
    tokens, total = inverse_cdf(mass.repeat(2, 1), torch.tensor([1e-13, 1e-11], dtype=torch.float64))
    assert tokens.tolist() == [5, 2 * BLOCK - 1]
    assert total.tolist() == [1.0, 1.0]


def test_rounding_at_a_block_edge_draws_no_token_without_mass() -> None:
    """The start of the second block, got back by a subtraction, lies above the uniform that points at it."""
    first = math.nextafter(2.0, 0.0)  # below 2 numbers are spaced half as wide as above
    second = 2.0**-30 + 5 * 2.0**-53
    mass = torch.zeros(1, 3 * BLOCK, dtype=torch.float64)
    mass[0, 0], mass[0, BLOCK + 7] = first, second
    mass[0, 3 * BLOCK - 1] = 2 * first - (first + second)
    assert (first + second) - second > first, "the case is no longer the one it was made for"
    tokens, _ = inverse_cdf(mass, torch.tensor([0.5], dtype=torch.float64))
    assert tokens.item() == BLOCK + 7

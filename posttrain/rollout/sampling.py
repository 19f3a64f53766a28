"""Drawing tokens from logits, with the log-probability of what was drawn."""

from __future__ import annotations

import torch
from torch import Tensor

from posttrain.types import Sampling

BLOCK = 256  # vocabulary entries a block of the two-level search


def draw(logits: Tensor, uniform: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """Draw one token a row.

    Args:
        logits: [B, V] float32; overwritten.
        uniform: [B] in [0, 1), the only randomness; ignored when greedy.

    Returns:
        tokens [B] and the natural-log probability [B] of each under the distribution it was drawn from
        (temperature and truncation applied; for greedy, under the plain softmax).
    """
    if sampling.temperature == 0:
        top, tokens = logits.max(-1)
        return tokens, top - logits.logsumexp(-1)
    if sampling.temperature != 1:
        logits.div_(sampling.temperature)
    truncate(logits, sampling)
    top = logits.amax(-1, keepdim=True)
    mass = logits.sub_(top).exp_()
    tokens, total = inverse_cdf(mass, uniform)
    return tokens, (mass.gather(1, tokens[:, None])[:, 0] / total).log()


def truncate(logits: Tensor, sampling: Sampling) -> None:
    """Set to -inf, in place, what top-k, top-p and min-p leave out, in that order; the likeliest stays."""
    if 0 < sampling.top_k < logits.shape[-1]:
        least = logits.topk(sampling.top_k).values[:, -1:]
        logits.masked_fill_(logits < least, -torch.inf)
    if sampling.top_p < 1:
        ordered, index = logits.sort(descending=True)
        probs = ordered.softmax(-1)
        cut = probs.cumsum(-1) - probs >= sampling.top_p
        cut[:, 0] = False  # rounding must never cut the likeliest
        logits.masked_fill_(torch.zeros_like(cut).scatter(1, index, cut), -torch.inf)
    if sampling.min_p > 0:
        probs = logits.softmax(-1)
        logits.masked_fill_(probs < sampling.min_p * probs.max(-1, keepdim=True).values, -torch.inf)


def inverse_cdf(mass: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Where the cumulative sum of mass [B, V] first exceeds uniform [B] times its total; and the totals [B].

    Two levels, so that the whole vocabulary is summed once and scanned never: block sums find the block, one
    block is scanned. A token without mass is never drawn.
    """
    B, V = mass.shape
    if V % BLOCK:
        mass = torch.nn.functional.pad(mass, (0, BLOCK - V % BLOCK))
    blocks = mass.view(B, -1, BLOCK)
    edges = blocks.sum(-1, dtype=torch.float64).cumsum(-1)
    total = edges[:, -1:]
    want = uniform[:, None].double() * total
    block = torch.searchsorted(edges, want, right=True).clamp_(max=edges.shape[1] - 1)
    # Rounding can push the search one past the mass: step back to the last block that has any.
    last = (edges < total).sum(-1, keepdim=True).clamp_(max=edges.shape[1] - 1)
    block = torch.minimum(block, last)
    rows = torch.arange(B, device=mass.device)
    inside = blocks[rows, block[:, 0]].double()
    before = edges.gather(1, block) - inside.sum(-1, keepdim=True)
    within = inside.cumsum(-1)
    # Rounding may put `before` above what is wanted: never below the first token with mass.
    offset = torch.searchsorted(within, (want - before).clamp_(min=0), right=True)
    last = (within < within[:, -1:]).sum(-1, keepdim=True)
    offset = torch.minimum(offset, last)
    return (block * BLOCK + offset)[:, 0], total[:, 0].to(mass.dtype)

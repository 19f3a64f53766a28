"""Fewer tokens by averaging those that are alike (token merging: ToMe, arXiv 2210.09461, section 3)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# A round merges at most one token in PACE. On smooth made-up features 2, the most that pairs allow, leaves up
# to twice the squared error that 4 does; 8 and more win little on 4 and take longer.
PACE = 4


def merge(tokens: Tensor, n: int) -> tuple[Tensor, Tensor, Tensor]:
    """Merge each image's N tokens into n, in rounds of bipartite soft matching.

    A round pairs each token at an even place with the most alike (cosine) at an odd one, and joins the best
    pairs. What comes out stands in the order of first members. Gradients flow through the averages, not the
    choice of pairs. Of equal pairs the first is taken, so the same tokens give the same merger.

    Args: tokens: [B, N, D]. n: 1 to N.
    Returns: the averages [B, n, D]; how many tokens went into each [B, n]; and into which each went [B, N].
    """
    count = tokens.shape[1]
    if not 1 <= n <= count:
        raise ValueError(f"{count} tokens cannot be merged into {n}")
    wide = tokens.to(torch.promote_types(tokens.dtype, torch.float32))
    member = torch.arange(count, device=tokens.device).expand(len(tokens), -1)
    with torch.autocast(tokens.device.type, enabled=False):
        while count > n:
            joined = min(count - n, max(1, count // PACE))
            member = _join(_average(wide.detach(), member, count)[0], joined).gather(1, member)
            count -= joined
        merged, sizes = _average(wide, member, n)
    return merged.to(tokens.dtype), sizes.long(), member


def _average(tokens: Tensor, member: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """[B, N, D], [B, N] -> means [B, n, D] and sizes [B, n]."""
    # A product, as sums by index have no fixed order on CUDA.
    chosen = F.one_hot(member, n).to(tokens.dtype)
    sizes = chosen.sum(1)
    return chosen.transpose(1, 2) @ tokens / sizes[..., None], sizes


def _join(tokens: Tensor, pairs: int) -> Tensor:
    """One round: [B, N, D] -> where each token goes, [B, N], among the N - pairs that are left."""
    unit = F.normalize(tokens, dim=-1)
    best, partner = (unit[:, ::2] @ unit[:, 1::2].transpose(1, 2)).max(-1)
    order = best.argsort(dim=-1, descending=True, stable=True)[:, :pairs]
    places = torch.arange(tokens.shape[1], device=tokens.device).expand(len(tokens), -1)
    into = places.scatter(1, 2 * order, 2 * partner.gather(1, order) + 1)
    first = places.scatter_reduce(1, into, places, "amin")
    goes = first.gather(1, into)  # the first place of the group that a place belongs to
    return ((goes == places).cumsum(1) - 1).gather(1, goes)

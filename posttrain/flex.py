"""Attention over packed groups as one block-sparse kernel, on CUDA: flex_attention (arXiv 2412.05496).

Nothing is gathered and no scores are kept; blocks where no token may look at another are never computed.

What compiles, and when: each kind of attention (type, heads, width of a head) has one version with gradients
and one without. The first of all is made for its length alone, and once more, for any length, when another
comes. How many groups there are and what they hold changes the contents of tensors only. For that to hold

- T is padded to a multiple of BLOCK, so that the kernel's blocks are whole, and to two of them at least:
  torch compiles a size of 1 apart, and the mask of one block would have it;
- queries, keys and values come in contiguous, whichever way the model made them, and autocast is off.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, create_mask, flex_attention

log = logging.getLogger(__name__)

BLOCK = 128  # tokens, of queries and of keys
AGREE = 0.02  # relative error allowed in the check at start: bfloat16 makes 0.005, one wrong block far more
PROBE = [[150, 70, 0, 1, 40], [1, 20]]  # lengths in that check: with whole, partial and empty blocks


def block_mask(lengths: Sequence[Sequence[int]], device: torch.device) -> BlockMask:
    """What may look at what in a packed row: a token at those before it and itself that are its prompt's or
    its own completion's.

    Args:
        lengths: for each group its prompt's, then those of its completions.
    """
    T = sum(map(sum, lengths))
    padding = max(2 * BLOCK, -(-T // BLOCK) * BLOCK) - T
    # Padding is a group of its own, after all others: it is seen by nobody, and sees itself.
    sizes = torch.tensor([n for parts in [*lengths, [padding]] for n in parts])
    groups = torch.tensor([g for g, parts in enumerate([*lengths, [padding]]) for _ in parts])
    numbers = torch.tensor([k for parts in [*lengths, [padding]] for k in range(len(parts))])
    group = groups.repeat_interleave(sizes).to(device, torch.int32)
    part = numbers.repeat_interleave(sizes).to(device, torch.int32)  # 0: the prompt; k: the k-th completion

    def visible(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return (group[i] == group[j]) & (j <= i) & ((part[j] == 0) | (part[j] == part[i]))

    return create_block_mask(visible, None, None, len(group), len(group), device, BLOCK)


def flex_attend(mask: BlockMask, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
    """query [1, Hq, T, D], key, value [1, Hkv, T, D] -> [1, T, Hq, D]; mask: the row's `block_mask`."""
    T = query.shape[2]
    padding = mask.seq_lengths[0] - T
    q, k, v = (F.pad(x, (0, 0, 0, padding)).contiguous() for x in (query, key, value))
    with torch.autocast(query.device.type, enabled=False):
        out = _kernel()(q, k, v, block_mask=mask, scale=scaling, enable_gqa=True)
    return out[:, :, :T].transpose(1, 2)


@cache
def _kernel() -> Callable[..., Any]:
    return torch.compile(flex_attention)


def serves(query: Tensor, key: Tensor) -> bool:
    """Whether `flex_attend` is to be used for these: on CUDA (on a CPU the kernel has no backward pass), and
    the kernel was seen to be right for their kind."""
    return query.is_cuda and _right(query.device, query.dtype, query.shape[1], key.shape[1], query.shape[-1])


@cache
def _right(device: torch.device, dtype: torch.dtype, query_heads: int, key_heads: int, head: int) -> bool:
    """Whether the kernel compiles for this kind of attention and, on two small groups, gives the outputs and
    gradients of plain attention; else a warning says why not. Asked once a kind, at the first attention."""
    try:
        worst = _error(device, dtype, query_heads, key_heads, head)
        trouble = "" if worst < AGREE else f"it is off by {worst:.2g} of what it should give"
    except Exception as error:  # a compiler that is missing, a width it has no kernel for, …
        trouble = f"{type(error).__name__}: {error}"
    if trouble:
        log.warning("packed attention gathers its keys, slower: flex_attention cannot serve it (%s)", trouble)
    return not trouble


def _error(device: torch.device, dtype: torch.dtype, query_heads: int, key_heads: int, head: int) -> float:
    """The largest relative error of outputs and gradients against attention in float32 under a dense mask."""
    mask = block_mask(PROBE, device)
    T = sum(map(sum, PROBE))
    seen = create_mask(mask.mask_mod, None, None, T, T, device)
    g = torch.Generator(device).manual_seed(0)
    heads = (query_heads, key_heads, key_heads, query_heads)
    *inputs, grad = (torch.randn(1, n, T, head, generator=g, device=device).to(dtype) for n in heads)

    def ours(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return flex_attend(mask, q, k, v, head**-0.5)

    def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, seen, enable_gqa=True).transpose(1, 2)

    def results(attend: Callable[..., Tensor], dtype: torch.dtype) -> list[Tensor]:
        leaves = [x.to(dtype, copy=True).requires_grad_() for x in inputs]
        out = attend(*leaves)
        grads = torch.autograd.grad(out, leaves, grad.to(dtype).transpose(1, 2))
        return [x.float() for x in (out.detach(), *grads)]

    with torch.enable_grad(), torch.autocast(device.type, enabled=False):
        pairs = zip(results(ours, dtype), results(plain, torch.float32), strict=True)
        return float(torch.stack([(a - b).norm() / b.norm() for a, b in pairs]).max())

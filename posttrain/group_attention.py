"""Attention over packed groups by hand, forward and backward, group by group: a group's scores stay in cache.

Completions are padded to the longest beside them, in blocks of like length; that costs only here, and no
mask is needed for it: a padded key comes after every real query, and causal attention never looks there.
Weights are computed again for the backward pass, so none are kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from posttrain.attention import Span

PROMPT_BLOCK = 256  # prompt tokens whose attention scores exist at once
WORTH = 32  # tokens of padding that another block of completions must save


@dataclass(frozen=True)
class Shape:
    """Heads of queries and of keys, width of a head, and the norms' epsilon."""

    query_heads: int
    key_heads: int
    head: int
    eps: float

    @property
    def rotated(self) -> int:
        """Heads that are rotated: queries and keys."""
        return self.query_heads + self.key_heads


@dataclass
class _Own:
    """Completions that follow each other as a padded block [C, R]: which of their tokens stand where."""

    shape: tuple[int, int]
    gather: Tensor | None  # [C * R] which of the block's m tokens; None: nothing is padded
    real: Tensor | None  # [m] places of the block that hold a token


def own_block(lengths: list[int], device: torch.device) -> _Own:
    C, R = len(lengths), max(lengths)
    if min(lengths) == R:
        return _Own((C, R), None, None)
    size = torch.tensor(lengths, device=device)
    first = size.cumsum(0) - size
    at = torch.arange(R, device=device)
    gather = first[:, None] + torch.minimum(at, (size - 1).clamp(min=0)[:, None])
    gather.clamp_(max=sum(lengths) - 1)  # an empty completion has no last token to repeat
    real = (at < size[:, None]).flatten().nonzero()[:, 0]
    return _Own((C, R), gather.flatten(), real)


def alike(lengths: list[int]) -> list[list[int]]:
    """Cut a list of lengths, in its order, into parts of like length, where that saves WORTH of padding.

    Example: [3, 4, 90, 100] -> [[3, 4], [90, 100]]. A micro-batch's groups hold completions by length.
    """
    whole = len(lengths) * max(lengths)
    cost = {k: k * max(lengths[:k]) + (len(lengths) - k) * max(lengths[k:]) for k in range(1, len(lengths))}
    at = min(cost, key=lambda k: cost[k], default=0)
    if not at or whole - cost[at] < WORTH:
        return [lengths]
    return alike(lengths[:at]) + alike(lengths[at:])


def to_block(x: Tensor, own: _Own, zero: bool = False) -> Tensor:
    """x [m, heads, D] -> [C, R, heads, D]; padding repeats a row's last token, or is zero."""
    if own.gather is None:
        return x.unflatten(0, own.shape)
    if zero:
        assert own.real is not None
        block = x.new_zeros(own.shape[0] * own.shape[1], *x.shape[1:])
        block[own.real] = x
        return block.unflatten(0, own.shape)
    return x.index_select(0, own.gather).unflatten(0, own.shape)


def from_block(x: Tensor, own: _Own) -> Tensor:
    flat = x.flatten(0, 1)
    return flat if own.real is None else flat.index_select(0, own.real)


def _heads(x: Tensor, keys: int) -> Tensor:
    """[C, Q, Hq, D] -> [C * Hkv, rep * Q, D]: query heads that share a key head stand one below the other."""
    C, Q, H, D = x.shape
    return x.view(C, Q, keys, H // keys, D).permute(0, 2, 3, 1, 4).reshape(C * keys, H // keys * Q, D)


def _unheads(x: Tensor, C: int, keys: int, rep: int) -> Tensor:
    """[C * Hkv, rep * Q, D] -> [C, Q, Hq, D]."""
    D = x.shape[-1]
    return x.view(C, keys, rep, -1, D).permute(0, 3, 1, 2, 4).reshape(C, -1, keys * rep, D)


def _blocks(span: Span) -> Iterator[tuple[int, int]]:
    """(first query, last query) of the prompt, block by block; a block sees the keys before its end."""
    for first in range(0, span.prompt, PROMPT_BLOCK):
        yield first, min(first + PROMPT_BLOCK, span.prompt)


def causal(queries: int, keys: int, rep: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """[rep * queries, keys] bias: the last query sees every key, the one before all but one, and so on."""
    hide = torch.full((queries, keys), torch.finfo(dtype).min, dtype=dtype, device=device)
    return hide.triu_(keys - queries + 1).repeat(rep, 1)


def _weights(q: Tensor, k: Tensor, bias: Tensor, scale: float) -> Tensor:
    """Attention weights [B, Q, K] of q [B, Q, D] and k [B, K, D]."""
    return torch.baddbmm(bias.expand(len(q), -1, -1), q, k.transpose(1, 2), alpha=scale).softmax(-1)


class Attention:
    """Attention within one packed group, forward and backward; weights are computed again for the latter."""

    def __init__(self, span: Span, shape: Shape, dtype: torch.dtype, device: torch.device):
        self.span, self.shape = span, shape
        self.rep = shape.query_heads // shape.key_heads
        self.scale = shape.head**-0.5
        self.biases = [causal(b - a, b, self.rep, dtype, device) for a, b in _blocks(span)]
        self.owns: list[tuple[slice, _Own, Tensor]] = []  # which of the group's tokens; as a block; its bias
        at = span.prompt
        for lengths in alike(span.completions) if span.completions else []:
            own = own_block(lengths, device)
            R = own.shape[1]
            bias = causal(R, span.prompt + R, self.rep, dtype, device)
            self.owns.append((slice(at, at := at + sum(lengths)), own, bias))

    def _keys(self, x: Tensor, tokens: slice, own: _Own) -> Tensor:
        """x [t, Hkv, D] -> [C * Hkv, P + R, D]: each completion's prompt and itself."""
        C, R = own.shape
        p = self.span.prompt
        out = x.new_empty(C, x.shape[1], p + R, x.shape[2])
        out[:, :, :p] = x[:p].transpose(0, 1)
        out[:, :, p:] = to_block(x[tokens], own).transpose(1, 2)
        return out.flatten(0, 1)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, out: Tensor) -> None:
        """q, out [t, Hq, D], k, v [t, Hkv, D], t the group's tokens."""
        p, Hkv = self.span.prompt, self.shape.key_heads
        kp, vp = (x[:p].transpose(0, 1) for x in (k, v))
        for (a, b), bias in zip(_blocks(self.span), self.biases, strict=True):
            w = _weights(_heads(q[None, a:b], Hkv), kp[:, :b], bias, self.scale)
            out[a:b] = _unheads(torch.bmm(w, vp[:, :b]), 1, Hkv, self.rep)[0]
        for tokens, own, bias in self.owns:
            mine = _heads(to_block(q[tokens], own), Hkv)
            w = _weights(mine, self._keys(k, tokens, own), bias, self.scale)
            o = _unheads(torch.bmm(w, self._keys(v, tokens, own)), own.shape[0], Hkv, self.rep)
            out[tokens] = from_block(o, own)

    def backward(
        self, q: Tensor, k: Tensor, v: Tensor, do: Tensor, dq: Tensor, dk: Tensor, dv: Tensor
    ) -> None:
        """Fill dq, dk and dv from the gradient of the output; all shaped like what they belong to."""
        p, Hkv = self.span.prompt, self.shape.key_heads
        kp, vp = (x[:p].transpose(0, 1) for x in (k, v))
        dkp, dvp = (torch.zeros_like(x, dtype=torch.float32) for x in (kp, vp))
        for (a, b), bias in zip(_blocks(self.span), self.biases, strict=True):
            dqh, dkh, dvh = self._block(
                _heads(q[None, a:b], Hkv), kp[:, :b], vp[:, :b], _heads(do[None, a:b], Hkv), bias
            )
            dq[a:b] = _unheads(dqh, 1, Hkv, self.rep)[0]
            dkp[:, :b] += dkh
            dvp[:, :b] += dvh
        for tokens, own, bias in self.owns:
            C = own.shape[0]
            dqh, dkh, dvh = self._block(
                _heads(to_block(q[tokens], own), Hkv),
                self._keys(k, tokens, own),
                self._keys(v, tokens, own),
                _heads(to_block(do[tokens], own, zero=True), Hkv),
                bias,
            )
            dq[tokens] = from_block(_unheads(dqh, C, Hkv, self.rep), own)
            for whole, prompt, into in ((dkh, dkp, dk), (dvh, dvp, dv)):
                whole = whole.unflatten(0, (C, Hkv))
                prompt += whole[:, :, :p].sum(0, dtype=torch.float32)
                into[tokens] = from_block(whole[:, :, p:].transpose(1, 2), own)
        dk[:p] = dkp.transpose(0, 1)
        dv[:p] = dvp.transpose(0, 1)

    def _block(
        self, q: Tensor, k: Tensor, v: Tensor, do: Tensor, bias: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        w = _weights(q, k, bias, self.scale)
        dv = torch.bmm(w.transpose(1, 2), do)
        dw = torch.bmm(do, v.transpose(1, 2))
        ds = torch.ops.aten._softmax_backward_data(dw, w, -1, w.dtype).mul_(self.scale)
        return torch.bmm(ds, k), torch.bmm(ds.transpose(1, 2), q), dv


def split(heads: Tensor, shape: Shape) -> tuple[Tensor, ...]:
    return heads.split([shape.query_heads, shape.key_heads, shape.key_heads], 1)


def attend(attention: list[Attention], heads: Tensor, shape: Shape) -> Tensor:
    out = heads.new_empty(len(heads), shape.query_heads, shape.head)
    q, k, v = split(heads, shape)
    for a in attention:
        t = a.span.tokens
        a.forward(q[t], k[t], v[t], out[t])
    return out.flatten(1)


def attend_backward(
    attention: list[Attention], heads: Tensor, do: Tensor, dheads: Tensor, shape: Shape
) -> None:
    q, k, v = split(heads, shape)
    dq, dk, dv = split(dheads, shape)
    for a in attention:
        t = a.span.tokens
        a.backward(q[t], k[t], v[t], do[t], dq[t], dk[t], dv[t])

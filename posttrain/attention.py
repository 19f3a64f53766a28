"""One attention function for every model that transformers dispatches through its AttentionInterface.

A model switched to it (`use(model)`) is called with no mask and no cache. What attends to what comes from the
layout in force instead:

- `PackedLayout`: one row of T tokens; each group's prompt once, then its completions. A completion attends to
  its prompt and to itself, never to its siblings. Used for training and for the engine's prefill.
- `DecodeLayout`: one new token for each of B rows against preallocated keys and values.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask
from transformers import AttentionInterface, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from posttrain import flex
from posttrain.multimodal import body

NAME = "posttrain_groups"


class NotPackable(Exception):
    """The model's attention needs something that a packed group cannot give (a window, soft-caps, sinks)."""


class Layout(Protocol):
    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """query [B, Hq, T, D], key and value [B, Hkv, T, D] -> [B, T, Hq, D]."""
        ...


# Each thread's own: an engine may generate in one while another learns.
_layout: ContextVar[Layout | None] = ContextVar("layout", default=None)


@contextmanager
def attending(layout: Layout) -> Iterator[None]:
    """Put a layout in force for the forward calls inside (and for recomputation in their backward)."""
    before = _layout.set(layout)
    try:
        yield
    finally:
        _layout.reset(before)


def use(model: PreTrainedModel) -> None:
    """Switch a model to this attention function, its language model alone if it sees. No mask function
    is registered under the name, so transformers builds no mask (masking_utils: an implementation without one
    gets None).

    Raises:
        NotPackable: the architecture does not dispatch its attention.
    """
    within = body(model)
    if not getattr(within, "_supports_attention_backend", False):
        raise NotPackable(f"{type(model).__name__} does not dispatch its attention")
    within.set_attn_implementation(NAME)


def recompute(model: PreTrainedModel) -> bool:
    """Make a model's own layers ready for activation checkpointing, which `recomputing` switches on; False
    where it has none that can.

    The backward pass runs a layer again after `attending` has ended: it puts the layout back in force.
    """

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        layout = _layout.get()
        return nullcontext(), nullcontext() if layout is None else attending(layout)

    if not model.supports_gradient_checkpointing:
        return False
    model.gradient_checkpointing_enable(
        {"use_reentrant": False, "preserve_rng_state": False, "context_fn": contexts}
    )
    return any(isinstance(module, GradientCheckpointingLayer) for module in model.modules())


@contextmanager
def recomputing(model: PreTrainedModel) -> Iterator[None]:
    """Have layers made ready keep their input alone. They do so only in training mode, which a policy is not
    in (no dropout): the flag is set on the layers and not on their parts, and only inside."""
    layers = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
    before = [layer.training for layer in layers]
    for layer in layers:
        layer.training = True
    try:
        yield
    finally:
        for layer, training in zip(layers, before, strict=True):
            layer.training = training


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    for option in ("sliding_window", "softcap", "s_aux"):
        if kwargs.get(option) is not None:
            raise NotPackable(f"its attention uses {option}")
    if kwargs.get("dropout"):
        raise NotPackable("its attention uses dropout; set it to 0 for reinforcement learning")
    layout = _layout.get()
    if layout is None:
        raise RuntimeError("a model on packed attention was called outside attending(layout)")
    scale: float = query.shape[-1] ** -0.5 if scaling is None else scaling
    # Under autocast the rotary embedding leaves queries and keys in float32: gather and multiply them in the
    # type of the values, which come straight from a linear layer.
    query, key = query.to(value.dtype), key.to(value.dtype)
    return layout.attend(module.layer_idx, query, key, value, scale), None


AttentionInterface.register(NAME, _attention)


@dataclass
class KVCache:
    """Keys and values of every layer, [B, Hkv, L, D]. All L columns take part in a product: columns not
    written yet are zero, and hidden by the layout's bias."""

    keys: list[Tensor]
    values: list[Tensor]

    @property
    def length(self) -> int:
        return self.keys[0].shape[2]

    def rows(self, index: Tensor | None, columns: int) -> KVCache:
        """Some rows, all for None, with so many columns of zeros more; what is here is given back layer by
        layer. A batched product over part of the columns would copy that part every time (oneDNN wants them
        dense); this copies once for many."""

        def taken(tensors: list[Tensor]) -> list[Tensor]:
            for i, old in enumerate(tensors):
                some = old if index is None else old.index_select(0, index)
                tensors[i] = F.pad(some, (0, 0, 0, columns)) if columns else some
            return tensors

        return KVCache(taken(self.keys), taken(self.values))


@dataclass(frozen=True)
class Span:
    """One group in a packed row: its tokens, of which the first `prompt` are the prompt's, and the lengths of
    the completions that follow."""

    start: int
    prompt: int
    completions: list[int]

    @property
    def tokens(self) -> slice:
        return slice(self.start, self.start + self.prompt + sum(self.completions))


@dataclass
class PackedLayout:
    """Where the tokens of a packed row of T tokens stand. Built by `PackedLayout.of`.

    On CUDA attention is one block-sparse kernel where that serves (posttrain.flex). Else keys are gathered:
    S prompts and N completions are padded rows, and a completion's keys are its prompt's, then its own. What
    either way needs is made when it first asks for it: posttrain.decoder reads nothing but the spans.
    """

    spans: list[Span]
    device: torch.device
    capture: KVCache | None = None
    _biases: dict[torch.dtype, Tensor] = field(default_factory=dict)

    @staticmethod
    def of(
        prompts: Sequence[int], completions: Sequence[Sequence[int]], device: torch.device | str = "cpu"
    ) -> PackedLayout:
        """Lay out groups given their prompts' lengths and, for each, its completions' lengths.

        Tokens are packed group by group: prompt, completion 0, completion 1, … All prompt lengths are > 0.
        """
        spans: list[Span] = []
        at = 0
        for p, group in zip(prompts, completions, strict=True):
            spans.append(Span(at, p, list(group)))
            at = spans[-1].tokens.stop
        return PackedLayout(spans, torch.device(device))

    @cached_property
    def prompts(self) -> tuple[Tensor, Tensor]:
        """[S, P] packed index of each prompt token, padded with 0; [S, P] bool, False where padded."""
        return _padded([s.start for s in self.spans], [s.prompt for s in self.spans], self.device)

    @cached_property
    def own(self) -> tuple[Tensor, Tensor]:
        """[N, R] packed index of each completion's token, padded with 0; [N, R] bool, False where padded."""
        starts: list[int] = []
        lengths: list[int] = []
        for span in self.spans:
            at = span.start + span.prompt
            for r in span.completions:
                starts.append(at)
                lengths.append(r)
                at += r
        return _padded(starts, lengths, self.device)

    @cached_property
    def seen(self) -> tuple[Tensor, Tensor]:
        """[N, P + R] packed index of each key a completion sees: its prompt's, then its own; padded with 0.
        [N, 1, R, P + R] bool, True where a completion's token may look."""
        (prompt, there), (own, real) = self.prompts, self.own
        of = [g for g, span in enumerate(self.spans) for _ in span.completions]
        (N, R), P = own.shape, prompt.shape[1]
        mask = torch.cat([there[of], real], 1)[:, None, None].expand(N, 1, R, P + R).clone()
        mask[..., P:].tril_()
        # A padded query would see nothing at all and come out NaN: let it see the first key, nobody reads it.
        mask[..., 0] = True
        return torch.cat([prompt[of], own], 1), mask

    @cached_property
    def inverse(self) -> Tensor:
        """[T] where each packed token's output stands among the flattened padded outputs (prompts, then
        completions)."""
        index, real = (
            torch.cat([x.flatten() for x in pair]) for pair in zip(self.prompts, self.own, strict=True)
        )
        places = real.nonzero()[:, 0]
        return places[index[places].argsort()]

    @cached_property
    def blocks(self) -> BlockMask:
        """What may look at what, as the block-sparse kernel takes it."""
        return flex.block_mask([[s.prompt, *s.completions] for s in self.spans], self.device)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        if flex.serves(query, key):
            if self.capture is not None:
                self._fill(layer, *(_rows(x[0].transpose(0, 1), self.prompts[0]) for x in (key, value)))
            return flex.flex_attend(self.blocks, query, key, value, scaling)
        return self._gathered(layer, query, key, value, scaling)

    def _gathered(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))  # [T, H, D]
        prompts, own = self.prompts[0], self.own[0]
        qp, kp, vp = (_rows(x, prompts) for x in (q, k, v))
        if self.capture is not None:
            self._fill(layer, kp, vp)
        grouped = q.shape[1] != k.shape[1]
        out = F.scaled_dot_product_attention(qp, kp, vp, is_causal=True, scale=scaling, enable_gqa=grouped)
        outs = [out.transpose(1, 2).reshape(-1, *q.shape[1:])]
        if own.numel():
            keys = self.seen[0]
            qc, kc, vc = _rows(q, own), _rows(k, keys), _rows(v, keys)
            out = grouped_attention(qc, kc, vc, self._bias(q.dtype), scaling)
            outs.append(out.transpose(1, 2).reshape(-1, *q.shape[1:]))
        return torch.cat(outs).index_select(0, self.inverse)[None]

    def _bias(self, dtype: torch.dtype) -> Tensor:
        if dtype not in self._biases:
            mask = self.seen[1]
            bias = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
            self._biases[dtype] = bias.masked_fill_(~mask, torch.finfo(dtype).min)
        return self._biases[dtype]

    def _fill(self, layer: int, key: Tensor, value: Tensor) -> None:
        """key, value: [S, Hkv, P, D]."""
        assert self.capture is not None
        self.capture.keys[layer][:, :, : key.shape[2]] = key
        self.capture.values[layer][:, :, : value.shape[2]] = value


def _padded(starts: list[int], lengths: list[int], device: torch.device) -> tuple[Tensor, Tensor]:
    """[n, longest] numbers that count up from each start, 0 from its length on; bool, False from there on."""
    start, length = torch.tensor([starts, lengths], dtype=torch.long, device=device)[:, :, None]
    at = torch.arange(max(lengths, default=0), device=device)
    real = at < length
    return (start + at) * real, real


def _rows(x: Tensor, index: Tensor) -> Tensor:
    """[T, H, D] gathered by [N, L] -> [N, H, L, D]."""
    return x.index_select(0, index.reshape(-1)).view(*index.shape, *x.shape[1:]).transpose(1, 2)


def grouped_attention(query: Tensor, key: Tensor, value: Tensor, bias: Tensor, scaling: float) -> Tensor:
    """Grouped-query attention as two batched products: [N, Hq, Q, D] x [N, Hkv, L, D] -> [N, Hq, Q, D].

    bias: [N, 1, Q, L], added to the scores. The query heads that share a key head are stacked along Q, so
    keys and values are never repeated.
    """
    N, Hq, Q, D = query.shape
    Hkv, L = key.shape[1], key.shape[2]
    stacked = query.reshape(N, Hkv, (Hq // Hkv) * Q, D)
    scores = torch.matmul(stacked * scaling, key.transpose(2, 3)).view(N, Hkv, Hq // Hkv, Q, L)
    scores += bias[:, :, None]
    return torch.matmul(scores.softmax(-1).view(N, Hkv, -1, L), value).view(N, Hq, Q, D)


@dataclass
class DecodeLayout:
    """B rows that each add one token at column `at` of the cache. bias: [B, L], 0 where a row may look, else
    the lowest number (the padding after a short prompt, and the columns after `at`)."""

    cache: KVCache
    bias: Tensor
    at: int

    def __post_init__(self) -> None:
        self._bias = self.bias[:, None].repeat_interleave(self.cache.keys[0].shape[1], 0)  # [B * Hkv, 1, L]

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        keys, values = self.cache.keys[layer], self.cache.values[layer]
        keys[:, :, self.at] = key[:, :, 0]
        values[:, :, self.at] = value[:, :, 0]
        B, Hq, _, D = query.shape
        keys, values = keys.flatten(0, 1), values.flatten(0, 1)
        stacked = query.reshape(len(keys), -1, D)  # query heads that share a key head stand together
        scores = torch.baddbmm(self._bias, stacked, keys.transpose(1, 2), alpha=scaling)
        return torch.bmm(scores.softmax(-1), values).view(B, 1, Hq, D)

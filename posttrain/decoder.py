"""Decoder layers of the Llama family (Llama, Mistral, Qwen2, Qwen3 ...) by hand, forward and backward.

A layer is x + attention(rms(x)), then x + down(silu(gate(rms(x))) * up(rms(x))). Run module by module under
autocast, a CPU spends about 40% of its time on what lies between the products: casts of the same activation
for each of q, k and v, norms and rotary embeddings in many passes, and memory mapped anew. Here a layer is
one node of the graph: q, k, v are one product and so are gate and up, the low-precision weights are cast once
an update, and only what the backward pass cannot cheaply compute again is kept (14 KB a token and layer for
SmolLM2-135M).

The model stays transformers' own: its parameters are read and receive their gradients; its config, names and
checkpoints are untouched. `layers_of` accepts layers that are known by name and built as expected, and
`train.logprobs.Policy` compares their log-probabilities with the model's own before it uses them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.activations import SiLUActivation

from posttrain.attention import Span
from posttrain.group_attention import Attention, Shape, attend, attend_backward
from posttrain.multimodal import body
from posttrain.weights import embed, give, give_product, state

# By name: others are built of modules of the same names (SmolLM3, Ministral3) and compute something else,
# which a comparison on a few tokens might not show.
_FAMILY = {"LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer", "Qwen3DecoderLayer"}
_LAYER = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
_QKV = ("q_proj", "k_proj", "v_proj")
_HEAD_NORMS = ("q_norm", "k_norm")
_GATE_UP = ("gate_proj", "up_proj")


class Layer:
    """One decoder layer's parameters, and their merged copies in the type that products run in."""

    def __init__(self, module: Any):
        attn, mlp = module.self_attn, module.mlp
        D = attn.head_dim
        self.shape = Shape(
            attn.q_proj.out_features // D,
            attn.k_proj.out_features // D,
            D,
            module.input_layernorm.variance_epsilon,
        )
        norms = [module.input_layernorm, module.post_attention_layernorm]
        if hasattr(attn, "q_norm"):
            norms += [getattr(attn, name) for name in _HEAD_NORMS]
        qkv = [getattr(attn, name) for name in _QKV]
        linears = [*qkv, attn.o_proj, *(getattr(mlp, name) for name in _GATE_UP), mlp.down_proj]
        self.biased, self.norms = qkv[0].bias is not None, len(norms)
        self.parameters: list[nn.Parameter] = [m.weight for m in (*norms, *linears)]
        if self.biased:
            self.parameters += [m.bias for m in qkv]
        self._merged: Merged | None = None
        self._of: Any = None

    def merged(self, dtype: torch.dtype) -> Merged:
        """The weights of the products in `dtype`; made again when a parameter has changed (weights.state)."""
        now = (dtype, [state(p) for p in self.parameters])
        if self._merged is None or self._of != now:
            self._merged = None  # never two copies at once
            q, k, v, o, gate, up, down, *biases = (p.detach() for p in self.parameters[self.norms :])
            self._merged = Merged(
                torch.cat([w.to(dtype) for w in (q, k, v)]),
                o.to(dtype),
                torch.cat([w.to(dtype) for w in (gate, up)]),
                down.to(dtype),
                torch.cat(biases).to(dtype) if biases else None,
            )
            self._of = now
        return self._merged

    def forget(self) -> None:
        """Give the merged copies' memory back."""
        self._merged = None


@dataclass(frozen=True)
class Merged:
    """qkv [(Hq + 2 Hkv) D, H], o [H, Hq D], gate_up [2 I, H], down [H, I], qkv_bias [(Hq + 2 Hkv) D]."""

    qkv: Tensor
    o: Tensor
    gate_up: Tensor
    down: Tensor
    qkv_bias: Tensor | None


def layers_of(model: PreTrainedModel) -> list[Layer] | None:
    """The decoder layers of a model that is built of the family's modules and nothing else; else None."""
    base: Any = body(model)
    if not all(hasattr(base, name) for name in ("embed_tokens", "layers", "norm", "rotary_emb")):
        return None
    return [Layer(module) for module in base.layers] if all(map(_fits, base.layers)) else None


def _fits(layer: Any) -> bool:
    def names(module: nn.Module) -> set[str]:
        return {name for name, _ in module.named_children()}

    if type(layer).__name__ not in _FAMILY:
        return False
    if names(layer) != _LAYER or names(layer.mlp) != {*_GATE_UP, "down_proj", "act_fn"}:
        return False
    attn, mlp = layer.self_attn, layer.mlp
    if names(attn) not in ({*_QKV, "o_proj"}, {*_QKV, "o_proj", *_HEAD_NORMS}):
        return False
    plain = [mlp.down_proj, attn.o_proj, *(getattr(mlp, name) for name in _GATE_UP)]
    qkv = [getattr(attn, name) for name in _QKV]
    return (
        isinstance(mlp.act_fn, (nn.SiLU, SiLUActivation))
        and all(type(linear) is nn.Linear for linear in (*plain, *qkv))  # no adapter, no quantization
        and all(linear.bias is None for linear in plain)
        and len({linear.bias is None for linear in qkv}) == 1
        and hasattr(layer.input_layernorm, "variance_epsilon")
        and attn.scaling == attn.head_dim**-0.5
        and getattr(attn, "sliding_window", getattr(attn.config, "sliding_window", None)) is None
    )


def rotary(model: Any, positions: Tensor) -> tuple[Tensor, Tensor]:
    """cos [T, 1, D] and sin of the positions [T], float32, from the model's own rotary embedding; the first
    half of sin is negative, so that turning is x cos + (x's halves swapped) sin."""
    base: Any = body(model)
    cos, sin = base.rotary_emb(positions.new_zeros(1, dtype=torch.float32), positions[None])
    sin = torch.cat([-sin[..., : sin.shape[-1] // 2], sin[..., sin.shape[-1] // 2 :]], -1)
    return cos[0][:, None], sin[0][:, None]


def run(
    model: PreTrainedModel,
    layers: list[Layer],
    tokens: Tensor,
    positions: Tensor,
    spans: list[Span],
    dtype: torch.dtype,
    keep: bool = True,
    seen: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Hidden states [T, H] float32 after the last layer, before the final norm, of packed groups.

    tokens, positions: [T]. dtype: of the products; sums and norms are float32. keep: what a layer's gradient
    takes; else only its input is, and the rest computed again (activation checkpointing, arXiv 1604.06174).
    seen: places [K] of image tokens, and the embeddings [K, H] that stand there.
    """
    base: Any = body(model)
    table = base.embed_tokens
    x = embed(tokens, table.weight, table.padding_idx).float()
    if seen is not None:
        x = x.index_copy(0, seen[0], seen[1].float())
    cos, sin = rotary(model, positions)
    attention: dict[Shape, list[Attention]] = {}
    for layer in layers:
        if layer.shape not in attention:
            attention[layer.shape] = [Attention(span, layer.shape, dtype, x.device) for span in spans]
        within = attention[layer.shape]
        x = _Decoder.apply(x, cos, sin, within, layer, layer.merged(dtype), keep, *layer.parameters)
    return x


# --- pieces; each with its gradient beside it -------------------------------------------------------------


def rms(x: Tensor, eps: float) -> Tensor:
    """1 / root mean square over the last dimension, kept: x [..., H] -> [..., 1] float32."""
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return torch.addcmul(_number(eps, x.device), length, length, value=1 / x.shape[-1]).rsqrt_()


@cache
def _number(value: float, device: torch.device) -> Tensor:
    return torch.tensor(value, dtype=torch.float32, device=device)


def norm(x: Tensor, r: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
    return (x * r).mul_(weight).to(dtype)


def norm_backward(g: Tensor, n: Tensor, r: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients for x and the weight from that of the output n w, n = x r; g is float32 and overwritten.

    dx = r (g w - n mean(g w n)). n [T, ..., H], weight [..., H].
    """
    dweight = (g * n).sum(0)
    g.mul_(weight)
    share = torch.linalg.vecdot(g, n).div_(n.shape[-1])[..., None]
    return g.addcmul_(n, share, value=-1).mul_(r), dweight


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> None:
    """Turn x [T, heads, D] in place by the angles of each token; cos, sin as from `rotary`, sin negated to
    turn back."""
    wide = x.float()
    x.copy_((wide * cos).addcmul_(wide.roll(x.shape[-1] // 2, -1), sin))


def _forward(x, cos, sin, attention, layer: Layer, w: Merged, norms) -> tuple[Tensor, tuple[Tensor, ...]]:
    """One layer: x [T, H] float32 -> the same after attention and MLP, and what its gradient takes."""
    shape, dtype = layer.shape, w.qkv.dtype
    w1, w2, *head_norms = norms
    # attention
    r1 = rms(x, shape.eps)
    qkv = F.linear(norm(x, r1, w1, dtype), w.qkv, w.qkv_bias)
    heads = qkv.unflatten(-1, (-1, shape.head))
    turned = heads[:, : shape.rotated]
    normed = ()
    if head_norms:
        wh = by_head(head_norms, shape)
        normed = turned.clone(), rms(turned.float(), shape.eps), wh
        turned.copy_(norm(*normed, dtype))
    rotate(turned, cos, sin)
    o = attend(attention, heads, shape)
    h = x + F.linear(o, w.o)
    # MLP
    r2 = rms(h, shape.eps)
    gate, up = F.linear(norm(h, r2, w2, dtype), w.gate_up).chunk(2, -1)
    out = F.linear(F.silu(gate).mul_(up), w.down)
    return h + out, (r1, heads, o, h, r2, gate, up, *normed)


class _Decoder(torch.autograd.Function):
    """`_forward` as a node of the graph. keep: what the gradient takes is kept, else computed again."""

    @staticmethod
    def forward(ctx: Any, x, cos, sin, attention, layer, w, keep, *parameters):
        norms = parameters[: layer.norms]
        out, kept = _forward(x, cos, sin, attention, layer, w, norms)
        ctx.save_for_backward(x, cos, sin, *norms, *(kept if keep else ()))
        ctx.attention, ctx.layer, ctx.w = attention, layer, w
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor):
        layer, w = ctx.layer, ctx.w
        x, cos, sin, *saved = ctx.saved_tensors
        norms, kept = saved[: layer.norms], saved[layer.norms :]
        if not kept:
            kept = _forward(x, cos, sin, ctx.attention, layer, w, norms)[1]
        w1, w2 = norms[:2]
        r1, heads, o, h, r2, gate, up, *normed = kept
        shape, dtype = layer.shape, heads.dtype
        p1, p2, *rest = layer.parameters
        p_heads, (pq, pk, pv, po, p_gate, p_up, p_down, *p_biases) = (
            rest[: layer.norms - 2],
            rest[layer.norms - 2 :],
        )
        # MLP, from its output back to h
        g = grads[0]
        low = g.to(dtype)
        s = F.silu(gate)
        d_down = give_product(p_down, low, s * up)
        da = low @ w.down
        dgu = torch.empty(len(x), 2 * gate.shape[1], dtype=dtype, device=x.device)
        dgate, dup = dgu.chunk(2, -1)
        torch.mul(da, s, out=dup)
        torch.ops.aten.silu_backward.grad_input(da.mul_(up), gate, grad_input=dgate)
        n = h * r2
        into = (n * w2).to(dtype)
        d_gate, d_up = give_product(p_gate, dgate, into), give_product(p_up, dup, into)
        dh, dw2 = norm_backward((dgu @ w.gate_up).float(), n, r2, w2)
        dh += g
        # attention, from its output back to x
        low = dh.to(dtype)
        d_o = give_product(po, low, o)
        do = (low @ w.o).unflatten(-1, (-1, shape.head))
        dheads = torch.empty_like(heads)
        attend_backward(ctx.attention, heads, do, dheads, shape)
        turned = dheads[:, : shape.rotated]
        rotate(turned, cos, -sin)
        d_heads = ()
        if normed:
            raw, r, wh = normed
            draw, dwh = norm_backward(turned.float(), raw * r, r, wh)
            turned.copy_(draw)
            parts = dwh.split([shape.query_heads, shape.key_heads])
            d_heads = tuple(give(p, part.sum(0)) for p, part in zip(p_heads, parts, strict=True))
        dqkv = dheads.flatten(1)
        n = x * r1
        into = (n * w1).to(dtype)
        parts = dqkv.split([len(p) for p in (pq, pk, pv)], 1)
        d_qkv = (give_product(p, part, into) for p, part in zip((pq, pk, pv), parts, strict=True))
        dx, dw1 = norm_backward((dqkv @ w.qkv).float(), n, r1, w1)
        dx += dh
        biases = (give(p, part.sum(0, dtype=torch.float32)) for p, part in zip(p_biases, parts, strict=False))
        return (
            dx, None, None, None, None, None, None,
            give(p1, dw1), give(p2, dw2), *d_heads,
            *d_qkv, d_o, d_gate, d_up, d_down, *biases,
        )  # fmt: skip


def by_head(norms: Any, shape: Shape) -> Tensor:
    """The norms' weights of queries and keys, a row a head: [Hq + Hkv, D]."""
    q, k = norms
    return torch.cat([q.expand(shape.query_heads, -1), k.expand(shape.key_heads, -1)])

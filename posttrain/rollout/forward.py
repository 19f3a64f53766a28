"""How the native engine runs a model: through its own modules, or through posttrain.decoder's layers.

Both keep a low-precision copy of the policy's weights, laid out for decoding. In the policy's own type the
weights are shared, in whole or in part, and are right after the next `sync`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from posttrain import attention, decoder
from posttrain.attention import Layout, attending
from posttrain.group_attention import split
from posttrain.memory import give_back
from posttrain.models import frozen_copy
from posttrain.multimodal import BANNED, banned, body, put, seen
from posttrain.rollout.prepack import PrepackedLinear, prepack, usable

Pictures = tuple[Tensor, Tensor] | None  # places in a row, and the embeddings that go there


class Forward(Protocol):
    def hidden(self, tokens: Tensor, positions: Tensor, layout: Layout, pictures: Pictures = None) -> Tensor:
        """tokens, positions [B, T] -> normed states [B, T, H] of the last layer. pictures: where B is 1."""
        ...

    def seen(self, prompts: Sequence[list[int]], starts: Sequence[int]) -> Pictures:
        """The pictures of packed prompts (multimodal.seen)."""
        ...

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., H] -> [..., V] float32."""
        ...

    def rest(self) -> None:
        """Drop what the next `sync` makes anew."""
        ...

    def sync(self, policy: PreTrainedModel) -> None:
        """Take over the policy's weights."""
        ...


class Modules:
    """Any model that packed groups serve. Where the type is the policy's own it runs the policy itself."""

    def __init__(self, policy: PreTrainedModel, dtype: torch.dtype):
        self.model = frozen_copy(policy, dtype)
        attention.use(self.model)
        fast = self.model is not policy and usable(self.model.device, dtype)
        self.prepacked = prepack(self.model) if fast else {}
        self.never = banned(policy)

    def hidden(self, tokens: Tensor, positions: Tensor, layout: Layout, pictures: Pictures = None) -> Tensor:
        training = self.model.training
        if training:  # dropout is not part of the policy
            self.model.eval()
        base = body(self.model)
        try:
            with attending(layout):
                out = base(**put(base, tokens, pictures), position_ids=positions, use_cache=False)
        finally:
            if training:
                self.model.train()
        return out.last_hidden_state

    def seen(self, prompts: Sequence[list[int]], starts: Sequence[int]) -> Pictures:
        return seen(self.model, prompts, starts)

    def logits(self, hidden: Tensor) -> Tensor:
        head: Any = self.model.get_output_embeddings()
        return without(head(hidden).float(), self.never)

    def rest(self) -> None:
        pass  # its weights are written in place

    def sync(self, policy: PreTrainedModel) -> None:
        if policy is self.model:
            return
        for name, layer in self.prepacked.items():
            linear: Any = policy.get_submodule(name)
            layer.load(linear.weight, linear.bias)
        theirs = dict(policy.named_parameters())
        for name, mine in self.model.named_parameters():
            mine.copy_(theirs[name])


class Layers:
    """A model of the Llama family: q, k, v are one product and so are gate and up; sums stay float32."""

    def __init__(self, policy: PreTrainedModel, layers: list[decoder.Layer], dtype: torch.dtype):
        self.policy, self.layers, self.dtype, self.never = policy, layers, dtype, banned(policy)
        self.linears: Any
        self.head: Any
        self.table: Any
        self.sync(policy)

    def rest(self) -> None:
        self._drop()
        give_back()  # with the holes between caches of many lengths, which nothing of the update's would fit

    def _drop(self) -> None:
        self.linears = self.head = self.table = None

    def sync(self, policy: PreTrainedModel) -> None:
        assert policy is self.policy, "the layers are of another model"
        self._drop()  # never two copies at once
        self.linears = [self._products(layer.merged(self.dtype)) for layer in self.layers]
        self.norms = [self._norms(layer) for layer in self.layers]
        base, head = (cast(Any, m) for m in (body(policy), policy.get_output_embeddings()))
        self.table = base.embed_tokens.weight.detach().to(self.dtype)
        self.final = base.norm.weight.detach().clone()
        self.head = self._linear(head.weight, head.bias)

    def _products(self, m: decoder.Merged) -> tuple[Callable[[Tensor], Tensor], ...]:
        return (self._linear(m.qkv, m.qkv_bias), *(self._linear(w) for w in (m.o, m.gate_up, m.down)))

    def _norms(self, layer: decoder.Layer) -> tuple[Tensor, Tensor, Tensor | None]:
        """Of attention, MLP, and of queries and keys where the model has those, a row a head."""
        w1, w2, *heads = (p.detach().clone() for p in layer.parameters[: layer.norms])
        return w1, w2, decoder.by_head(heads, layer.shape) if heads else None

    def _linear(self, weight: Tensor, bias: Tensor | None = None) -> Callable[[Tensor], Tensor]:
        if usable(weight.device, self.dtype):
            return PrepackedLinear(weight, bias)
        weight, bias = weight.detach().to(self.dtype), None if bias is None else bias.detach().to(self.dtype)
        return lambda x: F.linear(x, weight, bias)

    def seen(self, prompts: Sequence[list[int]], starts: Sequence[int]) -> Pictures:
        with torch.autocast(self.policy.device.type, self.dtype, enabled=self.dtype != torch.float32):
            return seen(self.policy, prompts, starts)  # a tower's weights need no second copy

    def hidden(self, tokens: Tensor, positions: Tensor, layout: Layout, pictures: Pictures = None) -> Tensor:
        x = F.embedding(tokens.flatten(), self.table).float()
        if pictures is not None:
            x = x.index_copy(0, pictures[0], pictures[1].float())
        cos, sin = decoder.rotary(self.policy, positions.flatten())
        for i, (layer, norms, linears) in enumerate(zip(self.layers, self.norms, self.linears, strict=True)):
            shape, (w1, w2, w_heads), (qkv, o, gate_up, down) = layer.shape, norms, linears
            heads = qkv(self._norm(x, w1, shape.eps)).unflatten(-1, (-1, shape.head))
            turned = heads[:, : shape.rotated]
            if w_heads is not None:
                turned.copy_(self._norm(turned.float(), w_heads, shape.eps))
            decoder.rotate(turned, cos, sin)
            q, k, v = (part.unflatten(0, tokens.shape).transpose(1, 2) for part in split(heads, shape))
            out = layout.attend(i, q, k, v, shape.head**-0.5)
            x += o(out.reshape(len(x), -1))
            gate, up = gate_up(self._norm(x, w2, shape.eps)).chunk(2, -1)
            x += down(F.silu(gate).mul_(up))
        return self._norm(x, self.final, self.layers[0].shape.eps).unflatten(0, tokens.shape)

    def _norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return decoder.norm(x, decoder.rms(x, eps), weight, self.dtype)

    def logits(self, hidden: Tensor) -> Tensor:
        return without(self.head(hidden).float(), self.never)


def without(logits: Tensor, never: list[int]) -> Tensor:
    """logits [..., V], overwritten so that some ids are never drawn."""
    if never:
        logits[..., never] = BANNED
    return logits

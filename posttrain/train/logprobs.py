"""Log-probabilities and entropies of completion tokens, without B×T×V logits.

`Policy` wraps a language model so that one call takes a packed batch to [M] log-probabilities; it is the
module that accelerate wraps. Where a model cannot serve packed groups it runs padded rows instead (`packed`
is False).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from posttrain import attention, decoder
from posttrain.attention import NotPackable, attending
from posttrain.multimodal import (
    BANNED,
    banned,
    body,
    example,
    inputs,
    put,
    seen,
    sees,
    shown,
    turns_by_axes,
)
from posttrain.profile import count_tokens, span
from posttrain.train.packing import PackedBatch, TrainGroup, TrainRow, pack
from posttrain.types import PosttrainError
from posttrain.weights import give, give_product, low

log = logging.getLogger(__name__)

CHUNK = 128  # completion tokens whose logits, of all the vocabulary, one product makes
BLOCK = 16  # of them, those handled at a time in float32
KEEP = 256 * 2**20  # bytes of gradients of logits that may exist at once
AGREE = 1e-3  # nats by which two ways to run a model may differ in the check at start (float32)


class Policy(nn.Module):
    """A language model as a function from packed batches to log-probabilities.

    Args:
        model: float32 master weights.
        temperature: the rollouts' temperature; log-probabilities are those of the distribution sampled from.
        recompute: activation checkpointing (arXiv 1604.06174): of each layer only the input is kept, the rest
            is computed again in the backward pass.
    """

    def __init__(self, model: PreTrainedModel, temperature: float = 1.0, recompute: bool = False):
        super().__init__()
        self.model = model
        self.temperature, self.recompute = temperature, recompute
        self.packed, self.why_not = _serves_packed(model)
        if self.packed:
            attention.use(model)
        else:
            log.warning(
                "%s runs on padded rows, slower: packed groups cannot serve it (%s)",
                type(model).__name__,
                self.why_not,
            )
        self.layers = _decoder_layers(model) if self.packed else None
        self.eyes = _eyes(model) if sees(model) else []
        if recompute and self.layers is None:
            self._check_recomputing()

    def forward(self, batch: PackedBatch) -> tuple[Tensor, Tensor]:
        """-> natural-log probability [M] of each trained token, and entropy [M] in nats (no gradient)."""
        count_tokens("learnt" if torch.is_grad_enabled() else "frozen", len(batch), len(batch.target))
        own = self.recompute and self.layers is None and torch.is_grad_enabled()
        with attention.recomputing(self.model) if own else nullcontext():
            if not self.packed:
                logp, entropy = padded_logprobs(self.model, batch, self.temperature)
            else:
                keep = not self.recompute
                logp, entropy = packed_logprobs(self.model, batch, self.temperature, self.layers, keep)
        return logp + self._unseen(batch) if torch.is_grad_enabled() and self.eyes else logp, entropy

    def _unseen(self, batch: PackedBatch) -> Tensor | float:
        """0, with a gradient of zero for what learns of tower and connector and may have no other: words hang
        on neither, and pictures not on a tower's last layers where an earlier one is read. Processes wait for
        the gradient of every weight that learns, and the loss of words alone may hang on none."""
        learn = [p for p in self.eyes if p.requires_grad]
        alone = not (torch.distributed.is_available() and torch.distributed.is_initialized())
        if not learn or (alone and shown([g.prompt for g in batch.groups])):
            return 0.0
        return torch.stack([p.flatten()[0].to(torch.float32) * 0 for p in learn]).sum()

    def _check_recomputing(self) -> None:
        """
        Raises:
            PosttrainError: the model's layers cannot, or drop out by themselves when they do.
        """
        wrong = None if attention.recompute(self.model) else "has no layers that can be run again"
        if wrong is None:
            batch = _probe(self.model)
            with torch.autocast(self.model.device.type, enabled=False):
                again = self(batch)[0].detach()
                with torch.no_grad():
                    plain = self(batch)[0]
            if not torch.allclose(again, plain, atol=AGREE):
                wrong = "computes something else with it, perhaps because its layers drop out"
        if wrong is not None:
            name = type(self.model).__name__
            raise PosttrainError(f"train.activation_checkpointing: {name} {wrong}; set it to false")


def _eyes(model: PreTrainedModel) -> list[nn.Parameter]:
    """All that words alone do not go through; LLaVA-NeXT has some that is neither tower nor connector."""
    head: Any = model.get_output_embeddings()
    words = {id(p) for part in (body(model), head) for p in part.parameters()}
    return [p for p in model.parameters() if id(p) not in words]


def packed_logprobs(
    model: PreTrainedModel,
    batch: PackedBatch,
    temperature: float = 1.0,
    layers: list[decoder.Layer] | None = None,
    keep: bool = True,
) -> tuple[Tensor, Tensor]:
    """layers: run these in place of the model's own modules; keep: their activations (decoder.run)."""
    base: Any = body(model)
    with span("forward"):
        pictures = seen(model, [g.prompt for g in batch.groups], [s.start for s in batch.layout.spans])
        if layers is not None:
            dtype = _product_type(batch.tokens.device, model.dtype)
            with torch.autocast(batch.tokens.device.type, enabled=False):
                where = batch.positions, batch.layout.spans
                hidden = decoder.run(model, layers, batch.tokens, *where, dtype, keep, pictures)
            hidden = base.norm(hidden.index_select(0, batch.predict))
        else:
            given = put(base, batch.tokens[None], pictures)
            with attending(batch.layout):
                out = base(**given, position_ids=batch.positions[None], use_cache=False)
            hidden = out.last_hidden_state[0].index_select(0, batch.predict)
    head: Any = model.get_output_embeddings()
    with span("head"):
        return head_logprobs(hidden, head.weight, head.bias, batch.target, temperature, banned(model))


def _product_type(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """What products run in: autocast's type where it is on."""
    on = torch.is_autocast_enabled(device.type)
    return torch.get_autocast_dtype(device.type) if on else dtype


def padded_logprobs(
    model: PreTrainedModel, batch: PackedBatch, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """The plain way: one right-padded row a completion, full logits. The fallback, and the tests' oracle."""
    device = batch.tokens.device
    rows = [(g.prompt, item.tokens) for g in batch.groups for item in g.rows]
    length = max(len(p) + len(r) for p, r in rows)
    ids = torch.zeros(len(rows), length, dtype=torch.long, device=device)
    there = torch.zeros_like(ids)
    for i, (prompt, completion) in enumerate(rows):
        whole = torch.tensor([*prompt, *completion], device=device)
        ids[i, : len(whole)] = whole
        there[i, : len(whole)] = 1
    with span("forward"):  # the head's product with it
        given = inputs(model, ids, [prompt for prompt, _ in rows])
        logits = model(**given, attention_mask=there, use_cache=False).logits
    with span("head"):
        logits[..., banned(model)] = BANNED
        parts = [logits[i, len(p) - 1 : len(p) + len(r) - 1] for i, (p, r) in enumerate(rows)]
        logp = (torch.cat(parts).float() / temperature).log_softmax(-1)
        with torch.no_grad():
            entropy = -(logp.exp() * logp).sum(-1)
        return logp.gather(1, batch.target[:, None])[:, 0], entropy


def head_logprobs(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    temperature: float = 1.0,
    never: Sequence[int] = (),
) -> tuple[Tensor, Tensor]:
    """hidden [M, H], weight [V, H], target [M] -> log-probability and entropy, both [M] float32.

    never: ids that have no probability.

    Never more than KEEP bytes of logits exist. Where those of all M tokens take less, the backward pass finds
    them done; else it computes them again, piece by piece.
    """
    dtype = _product_type(hidden.device, hidden.dtype)
    with torch.autocast(hidden.device.type, enabled=False):  # it would take the entropy's sums in bfloat16
        learning = torch.is_grad_enabled()
        return _Head.apply(hidden, weight, bias, target, temperature, dtype, learning, list(never))


class _Head(torch.autograd.Function):
    """d log p(target) / d logits = onehot(target) - p =: -d, so with the gradient g of each log-probability
    the products of the backward pass are d^T (-g h) and -g (d W): g scales rows of hidden states and never
    the many logits. The temperature is folded into the hidden states likewise.
    """

    @staticmethod
    def forward(ctx: Any, hidden, weight, bias, target, temperature, dtype, learning, never):
        h, w = (hidden / temperature).to(dtype), low(weight, dtype)
        b = None if bias is None else (bias / temperature).to(dtype)
        logp = torch.empty(len(target), device=hidden.device)
        entropy = torch.empty_like(logp)
        pieces = _pieces(h, w)
        d = _buffer(h, w)
        for part in pieces:
            d = d[: len(h[part])]
            _probabilities(h[part], w, b, never, target[part], logp[part], entropy[part], d)
        ctx.kept = d if len(pieces) == 1 and learning and any(ctx.needs_input_grad) else None
        if ctx.kept is None:
            _spare(d)
        ctx.save_for_backward(h, w, b, target)
        ctx.weights, ctx.temperature, ctx.into, ctx.never = (weight, bias), temperature, hidden.dtype, never
        ctx.mark_non_differentiable(entropy)
        return logp, entropy

    @staticmethod
    def backward(ctx: Any, *grads: Tensor):
        with span("head", awaited=True):
            h, w, b, target = ctx.saved_tensors
            weight, bias = ctx.weights
            g = grads[0][:, None].neg()
            dh = torch.empty(h.shape, device=h.device)
            dw = db = None
            whole = _buffer(h, w) if ctx.kept is None else ctx.kept
            for part in _pieces(h, w):
                d = whole[: len(h[part])]
                if ctx.kept is None:
                    logp, entropy = torch.empty(2, len(d), device=h.device)  # known already
                    _probabilities(h[part], w, b, ctx.never, target[part], logp, entropy, d)
                torch.mul(d @ w, g[part], out=dh[part])
                dw = give_product(weight, d, (h[part] * g[part]).to(h.dtype), dw)
                if bias is not None:
                    share = (d.t() @ g[part].to(h.dtype))[:, 0].float()
                    db = give(bias, share.div_(ctx.temperature), db)
            ctx.kept = None  # the next micro-batch writes over it
            _spare(whole)
            return dh.div_(ctx.temperature).to(ctx.into), dw, db, None, None, None, None, None


def _pieces(h: Tensor, w: Tensor) -> list[slice]:
    """Rows of h whose logits take at most KEEP bytes together, a slice each; at least one, perhaps empty."""
    rows = max(1, KEEP // (len(w) * h.element_size()))
    return [slice(s, s + rows) for s in range(0, max(1, len(h)), rows)]


_spared: list[Tensor] = []  # one buffer at most


def _buffer(h: Tensor, w: Tensor) -> Tensor:
    """Room [m, V] for the logits of a piece: that of the micro-batch before, where it is free and large
    enough. Mapping it anew each time took a third of the head's time."""
    rows = min(_pieces(h, w)[0].stop, max(1, len(h)))
    if _spared:
        old = _spared.pop()
        if old.dtype == h.dtype and old.device == h.device and old.numel() >= rows * len(w):
            return old[: rows * len(w)].view(rows, len(w))
    return torch.empty(rows * len(w), dtype=h.dtype, device=h.device).view(rows, len(w))


def _spare(buffer: Tensor) -> None:
    _spared[:] = [buffer._base if buffer._base is not None else buffer.flatten()]


def _probabilities(
    h: Tensor,
    w: Tensor,
    b: Tensor | None,
    never: list[int],
    target: Tensor,
    logp: Tensor,
    entropy: Tensor,
    d: Tensor,
) -> None:
    """Fill d [m, V] with p - onehot(target) of each row, in the products' type, and logp and entropy [m].

    The subtraction is done in float32: for a token that is nearly certain the difference is what counts, and
    a p rounded to bfloat16 would be 1.
    """
    for s in range(0, len(h), CHUNK):
        logits = d[s : s + CHUNK]
        torch.mm(h[s : s + CHUNK], w.t(), out=logits)
        if b is not None:
            logits += b
        if never:
            logits[:, never] = BANNED
        for r in range(s, min(s + CHUNK, len(h)), BLOCK):
            rows = slice(r, r + BLOCK)
            x = d[rows].float()
            p = x.softmax(-1)
            # logsumexp from the likeliest entry, whose probability is never lost to rounding
            norm = x.amax(-1) - p.amax(-1).log()
            at = target[rows, None]
            logp[rows] = x.gather(1, at)[:, 0] - norm
            entropy[rows] = norm - torch.linalg.vecdot(p, x)
            d[rows] = p.scatter_add_(1, at, p.new_full(at.shape, -1.0))


def _probe(model: PreTrainedModel) -> PackedBatch:
    """A small batch of two groups, for comparing one way of running a model with another; one shows a picture
    to a model that sees."""
    vocab = model.config.get_text_config().vocab_size
    ids = [7919 * k % vocab for k in range(1, 40)]
    ids = [(i + 1) % vocab if i in banned(model) else i for i in ids]
    groups = [
        TrainGroup(
            ids[:7], [TrainRow(ids[9:14], [0.0] * 5, 0.0, 0.0), TrainRow(ids[20:29], [0.0] * 9, 0.0, 0.0)]
        ),
        TrainGroup(ids[30:34], [TrainRow(ids[3:5], [0.0] * 2, 0.0, 0.0)]),
    ]
    if sees(model):
        groups[0].prompt = example(model) or groups[0].prompt
    return pack(groups, model.device)


@torch.no_grad()
def _serves_packed(model: PreTrainedModel) -> tuple[bool, str]:
    """Whether packed log-probabilities equal plain ones on a small batch, else why not."""
    training, before = model.training, body(model).config._attn_implementation or "eager"
    if before == attention.NAME:  # switched, and so checked, before
        return True, ""
    if turns_by_axes(model):
        return False, "the tokens of its pictures have positions on several axes, M-RoPE"
    if sees(model) and example(model) is None:
        return False, "the form in which it takes pictures is not known"
    model.eval()
    batch = _probe(model)
    try:
        with torch.autocast(model.device.type, enabled=False):
            plain, _ = padded_logprobs(model, batch)
            attention.use(model)
            packed, _ = packed_logprobs(model, batch)
    except NotPackable as reason:
        body(model).set_attn_implementation(before)
        return False, str(reason)
    except (AttributeError, TypeError, ValueError) as error:  # a forward with another signature or head
        body(model).set_attn_implementation(before)
        return False, f"{type(error).__name__}: {error}"
    finally:
        model.train(training)
    worst = float((packed - plain).abs().max())
    if not worst < AGREE:
        body(model).set_attn_implementation(before)
        return False, f"packed and plain log-probabilities differ by {worst:.2g} nats"
    return True, ""


@torch.no_grad()
def _decoder_layers(model: PreTrainedModel) -> list[decoder.Layer] | None:
    """The model's layers to be run by posttrain.decoder, where that serves it: float32 weights on a CPU, the
    family's modules, and the same log-probabilities on a small batch."""
    layers = decoder.layers_of(model)
    if (
        layers is None
        or model.device.type != "cpu"
        or any(p.dtype != torch.float32 for p in model.parameters())
    ):
        return None
    batch = _probe(model)
    with torch.autocast("cpu", enabled=False):
        own, _ = packed_logprobs(model, batch)
        fast, _ = packed_logprobs(model, batch, layers=layers)
    for layer in layers:
        layer.forget()
    return layers if float((fast - own).abs().max()) < AGREE else None

"""Log-probabilities and entropies of completion tokens, without B×T×V logits.

`Policy` wraps a language model so that one call takes a packed batch to [M] log-probabilities; it is the
module that accelerate wraps. Where a model cannot serve packed groups it runs padded rows instead (`packed`
is False).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from posttrain import attention
from posttrain.attention import NotPackable, attending
from posttrain.train.packing import PackedBatch, TrainGroup, TrainRow, pack

log = logging.getLogger(__name__)

CHUNK = 128  # completion tokens whose logits, of all the vocabulary, exist at once
BLOCK = 16  # of them, those handled at a time in float32
NARROW = 1024  # vocabulary entries that the backward pass handles at a time at least
AGREE = 1e-3  # nats by which packed and plain log-probabilities may differ in the check at start (float32)


class Policy(nn.Module):
    """A language model as a function from packed batches to log-probabilities.

    Args:
        model: float32 master weights.
        temperature: the rollouts' temperature; log-probabilities are those of the distribution sampled from.
    """

    def __init__(self, model: PreTrainedModel, temperature: float = 1.0):
        super().__init__()
        self.model = model
        self.temperature = temperature
        self.packed, self.why_not = _serves_packed(model)
        if self.packed:
            attention.use(model)
        else:
            log.warning(
                "%s runs on padded rows, slower: packed groups cannot serve it (%s)",
                type(model).__name__,
                self.why_not,
            )

    def forward(self, batch: PackedBatch) -> tuple[Tensor, Tensor]:
        """-> natural-log probability [M] of each trained token, and entropy [M] in nats (no gradient)."""
        if not self.packed:
            return padded_logprobs(self.model, batch, self.temperature)
        return packed_logprobs(self.model, batch, self.temperature)


def packed_logprobs(
    model: PreTrainedModel, batch: PackedBatch, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    with attending(batch.layout):
        out = model.base_model(
            input_ids=batch.tokens[None], position_ids=batch.positions[None], use_cache=False
        )
    hidden = out.last_hidden_state[0].index_select(0, batch.predict)
    head: Any = model.get_output_embeddings()
    return head_logprobs(hidden, head.weight, head.bias, batch.target, temperature)


def padded_logprobs(
    model: PreTrainedModel, batch: PackedBatch, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """The plain way: one right-padded row a completion, full logits. The fallback, and the tests' oracle."""
    device = batch.tokens.device
    rows = [(g.prompt, item.tokens) for g in batch.groups for item in g.rows]
    length = max(len(p) + len(r) for p, r in rows)
    ids = torch.zeros(len(rows), length, dtype=torch.long, device=device)
    seen = torch.zeros_like(ids)
    for i, (prompt, completion) in enumerate(rows):
        whole = torch.tensor(prompt + completion, device=device)
        ids[i, : len(whole)] = whole
        seen[i, : len(whole)] = 1
    logits = model(input_ids=ids, attention_mask=seen, use_cache=False).logits
    spans = [logits[i, len(p) - 1 : len(p) + len(r) - 1] for i, (p, r) in enumerate(rows)]
    logp = (torch.cat(spans).float() / temperature).log_softmax(-1)
    with torch.no_grad():
        entropy = -(logp.exp() * logp).sum(-1)
    return logp.gather(1, batch.target[:, None])[:, 0], entropy


def head_logprobs(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """hidden [M, H], weight [V, H], target [M] -> log-probability and entropy, both [M] float32.

    Logits exist for CHUNK tokens at a time and are computed again in the backward pass.
    """
    dtype = (
        torch.get_autocast_dtype(hidden.device.type)
        if torch.is_autocast_enabled(hidden.device.type)
        else None
    )
    return _Head.apply(hidden, weight, bias, target, temperature, dtype or hidden.dtype)


class _Head(torch.autograd.Function):
    """The temperature is folded into the hidden states, so the logits are never divided.

    Products run on CHUNK rows; what is done to their results, element by element, runs on BLOCK rows, which
    stay in the processor's cache.
    """

    @staticmethod
    def forward(ctx: Any, hidden, weight, bias, target, temperature, dtype):
        h, w = (hidden / temperature).to(dtype), weight.to(dtype)
        b = None if bias is None else (bias / temperature).to(dtype)
        logp = torch.empty(len(target), device=hidden.device)
        entropy = torch.empty_like(logp)
        norm = torch.empty_like(logp)  # logsumexp, kept so that the backward pass needs one exp only
        for s, logits in _logits(h, w, b):
            mass = logits.softmax(-1)
            part = slice(s, s + len(logits))
            # logsumexp from the likeliest entry, whose probability is never lost to rounding
            norm[part] = logits.amax(-1) - mass.amax(-1).log()
            logp[part] = logits.gather(1, target[part, None])[:, 0] - norm[part]
            entropy[part] = norm[part] - torch.linalg.vecdot(mass, logits)
        ctx.save_for_backward(h, weight, b, target, norm)
        ctx.temperature, ctx.dtypes = temperature, (hidden.dtype, dtype)
        ctx.mark_non_differentiable(entropy)
        return logp, entropy

    @staticmethod
    def backward(ctx: Any, *grads: Tensor):
        h, weight, b, target, norm = ctx.saved_tensors
        grad = grads[0]
        into, dtype = ctx.dtypes
        dh = torch.zeros(h.shape, device=h.device)
        dw = torch.empty_like(weight) if ctx.needs_input_grad[1] else None
        db = torch.empty(len(weight), device=h.device) if b is not None and ctx.needs_input_grad[2] else None
        # With the norm known, a slice of the vocabulary needs nothing of the others: each row of dw is
        # written once, and what accumulates is the small dh.
        width = max(NARROW, CHUNK * len(weight) // max(len(target), 1))
        for v in range(0, len(weight), width):
            span = slice(v, v + width)
            w = weight[span].to(dtype)
            g = torch.nn.functional.linear(h, w, None if b is None else b[span])
            at = target - v
            hit = torch.where((at >= 0) & (at < len(w)), grad, 0.0)[:, None]
            at = at.clamp_(0, len(w) - 1)[:, None]
            for r in range(0, len(g), BLOCK):
                rows = slice(r, r + BLOCK)
                # d log p(target) / d logits = onehot(target) - p
                probs = g[rows].float().sub_(norm[rows, None]).exp_().mul_(-grad[rows, None])
                g[rows] = probs.scatter_add_(1, at[rows], hit[rows])
            dh += g @ w
            if db is not None:
                db[span] = g.sum(0) / ctx.temperature
            if dw is not None:
                dw[span] = g.t() @ h  # h holds the temperature already
        return dh.div_(ctx.temperature).to(into), dw, db, None, None, None


def _logits(h: Tensor, w: Tensor, b: Tensor | None) -> Iterator[tuple[int, Tensor]]:
    """(first row, float32 logits) of BLOCK rows after BLOCK rows."""
    for s in range(0, len(h), CHUNK):
        chunk = torch.nn.functional.linear(h[s : s + CHUNK], w, b)
        for r in range(0, len(chunk), BLOCK):
            yield s + r, chunk[r : r + BLOCK].to(torch.float32, copy=True)


@torch.no_grad()
def _serves_packed(model: PreTrainedModel) -> tuple[bool, str]:
    """Whether packed log-probabilities equal plain ones on a small batch, else why not."""
    vocab = model.config.get_text_config().vocab_size
    ids = [7919 * k % vocab for k in range(1, 40)]
    groups = [
        TrainGroup(
            ids[:7], [TrainRow(ids[9:14], [0.0] * 5, 0.0, 0.0), TrainRow(ids[20:29], [0.0] * 9, 0.0, 0.0)]
        ),
        TrainGroup(ids[30:34], [TrainRow(ids[3:5], [0.0] * 2, 0.0, 0.0)]),
    ]
    training, before = model.training, model.config._attn_implementation or "eager"
    if before == attention.NAME:  # switched, and so checked, before
        return True, ""
    model.eval()
    batch = pack(groups, model.device)
    try:
        with torch.autocast(model.device.type, enabled=False):
            plain, _ = padded_logprobs(model, batch)
            attention.use(model)
            packed, _ = packed_logprobs(model, batch)
    except NotPackable as reason:
        model.set_attn_implementation(before)
        return False, str(reason)
    except (AttributeError, TypeError, ValueError) as error:  # a forward with another signature or head
        model.set_attn_implementation(before)
        return False, f"{type(error).__name__}: {error}"
    finally:
        model.train(training)
    worst = float((packed - plain).abs().max())
    if not worst < AGREE:
        model.set_attn_implementation(before)
        return False, f"packed and plain log-probabilities differ by {worst:.2g} nats"
    return True, ""

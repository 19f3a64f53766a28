"""The policy losses, as pure functions of flat tensors; they know nothing of models, batches or ranks.

M completion tokens of N completions lie in one flat row: `row[m]` says which completion token m belongs to.
How the tokens are averaged is decided before, by `token_weights`, from the counts of the whole step. So a
loss is a weighted sum: losses and gradients of micro-batches, and of ranks, add up to those of the step.

The variants, with the papers they come from (r: ratio of new to old probability, A: advantage, s: see gspo):

  grpo     mean over completions of the token mean of min(r A, clip(r, 1 - low, 1 + high) A).
           DeepSeekMath, arXiv 2402.03300, eq. 3 (and eq. 4 for the KL term).
  dr_grpo  the same, divided by completions x max_tokens in place of each completion's own length.
           "Understanding R1-Zero-Like Training", arXiv 2503.20783, section 3.2.
  dapo     the same, one mean over all tokens of the step (eq. 12), and a wider upper clip (eq. 10).
           arXiv 2503.14476.
  gspo     grpo with one ratio a completion, s = exp(mean over its tokens of log r): the geometric mean.
           arXiv 2507.18071, eq. 5 and 7. The gradient flows through s, that is, through every token alike.
  cispo    r is clipped from above and detached, and weighs A log p, so no token loses its gradient.
           MiniMax-M1, arXiv 2506.13585, eq. 4 and 5; the bound is on r itself, as in ScaleRL
           (arXiv 2510.13786).
"""

from __future__ import annotations

from typing import Literal, TypedDict

import torch
from torch import Tensor

Variant = Literal["grpo", "dr_grpo", "dapo", "gspo", "cispo"]

# (low, high) as the papers have them: ratios stay within 1 - low .. 1 + high. gspo's are small because a
# geometric mean over a completion moves little (its section 5.1). cispo has no lower bound, and its high
# bounds the ratio itself.
CLIP_DEFAULTS: dict[Variant, tuple[float | None, float]] = {
    "grpo": (0.2, 0.2),
    "dr_grpo": (0.2, 0.2),
    "dapo": (0.2, 0.28),
    "gspo": (3e-4, 4e-4),
    "cispo": (None, 5.0),
}

# exp(20) = 4.9e8. Beyond it the two policies have nothing in common any more; bounding the exponent keeps it
# from turning the loss into inf or, times an advantage of 0, into NaN. (Below, exp underflows to 0.)
_MAX_LOG_RATIO = 20.0


class LossStats(TypedDict):
    """Sums over the trained tokens of one call (0-d tensors, detached), so that they add over micro-batches.

    clipped / tokens is the clip fraction: tokens whose gradient the clip changed. kl / tokens is the mean k3
    estimate of KL(policy || reference) in nats a token; 0 without a reference.
    """

    tokens: Tensor
    clipped: Tensor
    kl: Tensor


def clip_bounds(variant: Variant, low: float | None, high: float | None) -> tuple[float | None, float]:
    """The clip bounds to use: what the recipe gives, and the paper's (CLIP_DEFAULTS) where it gives None.

    Example: clip_bounds("dapo", None, None) == (0.2, 0.28)
    """
    default_low, default_high = CLIP_DEFAULTS[variant]
    return default_low if low is None else low, default_high if high is None else high


def token_weights(variant: Variant, lengths: Tensor, *, rows: int, tokens: int, max_tokens: int) -> Tensor:
    """The weight of every trained token of each completion: [N] float32.

    lengths: [N] trained tokens of each completion here; 0 masks the completion (its weight is 0).
    rows, tokens: completions and trained tokens of the whole step: all micro-batches, all ranks, and the
        groups that were dropped because they carry no signal, so that dropping them does not change the step.
    max_tokens: the completion budget (dr_grpo's constant length).
    """
    if variant in ("grpo", "gspo"):
        weights = 1.0 / (lengths.clamp(min=1) * float(max(rows, 1)))
    elif variant == "dr_grpo":
        weights = torch.full(lengths.shape, 1.0 / max(rows * max_tokens, 1), device=lengths.device)
    else:  # dapo, cispo
        weights = torch.full(lengths.shape, 1.0 / max(tokens, 1), device=lengths.device)
    return weights.float() * (lengths > 0)


def importance_weights(trainer: Tensor, engine: Tensor, cap: float) -> Tensor:
    """[M] truncated importance weights min(p_trainer / p_engine, cap), without gradient: `correction` below.

    They correct for the engine (low precision, another kernel; with `train.ahead`, weights one step older)
    drawing tokens from a slightly different policy than the trainer computes; the cap bounds their variance
    (Ionides 2008; TRL's "token_truncate").
    trainer: [M] the trainer's log-probabilities of the sampled tokens, by the weights the update starts from.
    engine: [M] those that the engine returned; NaN (it could not say) gives weight 1.
    """
    difference = (trainer - engine).detach().nan_to_num(nan=0.0)
    return difference.clamp(max=_MAX_LOG_RATIO).exp().clamp(max=cap)


def policy_loss(
    logp: Tensor,
    old: Tensor | None,
    advantage: Tensor,
    row: Tensor,
    weight: Tensor,
    *,
    variant: Variant,
    clip_low: float | None,
    clip_high: float,
    beta: float = 0.0,
    ref: Tensor | None = None,
    unbiased_kl: bool = True,
    correction: Tensor | None = None,
) -> tuple[Tensor, LossStats]:
    """The loss to minimise (0-d, summed over the tokens given, differentiable in logp) and its statistics.

    logp: [M] log-probabilities under the policy being trained, with gradient.
    old: [M] those under the weights that the update starts from; None: these are the weights (ratio 1).
    advantage, weight: [N], the weight from `token_weights`. Completions of weight 0 are masked: whatever
        their tokens hold, they change neither loss, gradient nor statistics.
    row: [M] long, the completion of each token. gspo needs all tokens of a completion in the same call.
    clip_low, clip_high: from `clip_bounds`.
    beta: the weight of the KL penalty to the reference, k3 = exp(d) - d - 1 with d = ref - logp (Schulman,
        "Approximating KL divergence"; DeepSeekMath eq. 4).
    unbiased_kl: multiply k3 by the ratio, with its gradient, which makes the gradient that of the reverse KL
        (DeepSeek-V3.2, arXiv 2512.02556, section 3.1); TRL's default. False is DeepSeekMath's plain k3.
    correction: [M] multiplies the policy term, not the KL term (`importance_weights`), as in TRL.

    M = 0 gives a loss of 0 with a (zero) gradient, so a rank without work still runs its backward.
    """
    if beta and ref is None:
        raise ValueError("beta > 0 needs the reference's log-probabilities")
    # Masked tokens are left out rather than multiplied by 0, because 0 * NaN is NaN.
    trained = weight[row] > 0
    logp, row = logp[trained], row[trained]
    old = logp.detach() if old is None else old[trained]
    a, w = advantage[row], weight[row]

    log_ratio = logp - old
    if variant == "gspo":
        sums = torch.zeros_like(weight).index_add(0, row, log_ratio)
        counts = torch.bincount(row, minlength=len(weight)).clamp(min=1)
        log_ratio = (sums / counts)[row]
    ratio = log_ratio.clamp(max=_MAX_LOG_RATIO).exp()

    if variant == "cispo":
        objective = ratio.detach().clamp(max=clip_high) * a * logp
        clipped = (ratio > clip_high) & (a != 0)
    else:
        assert clip_low is not None, "clip_bounds gives every variant but cispo a lower bound"
        low, high = 1 - clip_low, 1 + clip_high
        objective = torch.minimum(ratio * a, ratio.clamp(low, high) * a)
        clipped = ((ratio < low) & (a < 0)) | ((ratio > high) & (a > 0))
    if correction is not None:
        objective = objective * correction[trained]
    loss = -objective

    kl_sum = loss.new_zeros(())
    if ref is not None:
        d = (ref[trained] - logp).clamp(max=_MAX_LOG_RATIO)
        k3 = d.exp() - d - 1
        kl_sum = k3.detach().sum()
        if beta:
            loss = loss + beta * (k3 * ratio if unbiased_kl else k3)

    return (loss * w).sum(), {
        "tokens": trained.sum().to(loss.dtype),
        "clipped": clipped.sum().to(loss.dtype),
        "kl": kl_sum,
    }

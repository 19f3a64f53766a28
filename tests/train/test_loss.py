"""The losses against closed forms, finite differences, their own additivity, and what could poison them."""

import math
from typing import Any, get_args

import pytest
import torch

from posttrain.train.loss import (
    CLIP_DEFAULTS,
    Variant,
    clip_bounds,
    importance_weights,
    policy_loss,
    token_weights,
)

VARIANTS = get_args(Variant)
LENGTHS = [5, 1, 3, 7]
MAX_TOKENS = 9


Terms = dict[str, Any]


def batch(variant, *, lengths=LENGTHS, spread=0.3, seed=0, dtype=torch.float64) -> tuple[Terms, Terms, Terms]:
    """Flat tensors of len(lengths) completions, with old, ref and correction a little off."""
    g = torch.Generator().manual_seed(seed)
    row = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    draw = lambda: torch.randn(len(row), generator=g, dtype=dtype)  # noqa: E731
    logp = -draw().abs() - 0.1
    weight = token_weights(
        variant, torch.tensor(lengths), rows=len(lengths), tokens=sum(lengths), max_tokens=MAX_TOKENS
    )
    low, high = clip_bounds(variant, None, None)
    tensors = {
        "logp": logp.requires_grad_(),
        "old": logp.detach() + spread * draw(),
        "advantage": torch.randn(len(lengths), generator=g, dtype=dtype),
        "row": row,
        "weight": weight.to(dtype),
    }
    extra = {"ref": logp.detach() + draw(), "correction": draw().exp().clamp(max=2.0)}
    return tensors, extra, {"variant": variant, "clip_low": low, "clip_high": high}


def gradient(loss, logp):
    return torch.autograd.grad(loss, logp)[0]


# --- weights ---------------------------------------------------------------------------------------


def test_weights_of_each_variant():
    lengths = torch.tensor([4, 2, 0])

    def weights(variant):
        return token_weights(variant, lengths, rows=10, tokens=50, max_tokens=8).tolist()

    assert weights("grpo") == weights("gspo") == pytest.approx([1 / 40, 1 / 20, 0])
    assert weights("dr_grpo") == pytest.approx([1 / 80, 1 / 80, 0])
    assert weights("dapo") == weights("cispo") == pytest.approx([1 / 50, 1 / 50, 0])


@pytest.mark.parametrize("variant", ["grpo", "gspo", "dapo", "cispo"])
def test_weights_of_a_whole_step_average(variant):
    lengths = torch.tensor(LENGTHS)
    weights = token_weights(variant, lengths, rows=len(LENGTHS), tokens=sum(LENGTHS), max_tokens=MAX_TOKENS)
    assert (weights * lengths).sum().item() == pytest.approx(1.0)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("lengths", [[], [0], [0, 0]])
def test_weights_of_nothing_are_finite(variant, lengths):
    weights = token_weights(variant, torch.tensor(lengths, dtype=torch.long), rows=0, tokens=0, max_tokens=8)
    assert weights.tolist() == [0.0] * len(lengths)
    assert weights.dtype == torch.float32


# --- clip bounds -----------------------------------------------------------------------------------


def test_clip_bounds_default_to_the_papers():
    assert clip_bounds("dapo", None, None) == (0.2, 0.28)
    assert clip_bounds("gspo", None, None) == (3e-4, 4e-4)
    assert clip_bounds("cispo", None, None) == (None, 5.0)
    assert clip_bounds("grpo", 0.1, None) == (0.1, 0.2)
    assert clip_bounds("grpo", 0.0, 0.0) == (0.0, 0.0)  # 0 is a bound, not a missing one
    assert set(CLIP_DEFAULTS) == set(VARIANTS)


# --- closed forms ----------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["grpo", "dr_grpo", "dapo", "gspo"])
@pytest.mark.parametrize("old", ["none", "same"])
def test_at_ratio_one_the_loss_is_minus_the_weighted_advantage(variant, old):
    t, _, settings = batch(variant)
    t["old"] = None if old == "none" else t["logp"].detach().clone()
    loss, stats = policy_loss(**t, **settings)
    expected = -(t["weight"] * t["advantage"])[t["row"]]
    assert loss.item() == pytest.approx(expected.sum().item())
    torch.testing.assert_close(gradient(loss, t["logp"]), expected)  # the policy gradient
    assert stats == {"clipped": 0, "kl": 0, "tokens": sum(LENGTHS)}


def test_cispo_at_ratio_one_is_reinforce():
    t, _, settings = batch("cispo")
    t["old"] = None
    loss, _ = policy_loss(**t, **settings)
    expected = -(t["weight"] * t["advantage"])[t["row"]]
    assert loss.item() == pytest.approx((expected * t["logp"]).sum().item())
    torch.testing.assert_close(gradient(loss, t["logp"]), expected)


def one_token(variant, ratio, advantage, **keywords):
    """Loss, gradient and clip count of a single token with the given ratio, at log-probability -1."""
    logp = torch.tensor([-1.0], dtype=torch.float64, requires_grad=True)
    low, high = clip_bounds(variant, keywords.pop("low", None), keywords.pop("high", None))
    loss, stats = policy_loss(
        logp,
        logp.detach() - math.log(ratio),
        torch.tensor([advantage], dtype=torch.float64),
        torch.tensor([0]),
        torch.tensor([1.0], dtype=torch.float64),
        variant=variant,
        clip_low=low,
        clip_high=high,
        **keywords,
    )
    return loss.item(), gradient(loss, logp).item(), stats["clipped"].item()


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "grad", "clipped"),
    [
        (1.1, 2.0, -2.2, -2.2, 0),
        (1.5, 2.0, -2.56, 0.0, 1),  # clipped at 1.28
        (1.5, -2.0, 3.0, 3.0, 0),  # the pessimistic side is never clipped
        (0.5, -2.0, 1.6, 0.0, 1),  # clipped at 0.8
        (0.5, 2.0, -1.0, -1.0, 0),
        (1.5, 0.0, 0.0, 0.0, 0),
    ],
)
def test_clip_higher(ratio, advantage, loss, grad, clipped):
    assert one_token("dapo", ratio, advantage) == pytest.approx((loss, grad, clipped))


@pytest.mark.parametrize(
    ("ratio", "advantage", "weight", "clipped"), [(3.0, 2.0, 3.0, 0), (8.0, 2.0, 5.0, 1), (0.1, -2.0, 0.1, 0)]
)
def test_cispo_bounds_the_weight_and_keeps_the_gradient(ratio, advantage, weight, clipped):
    expected = (weight * advantage, -weight * advantage, clipped)  # loss = -w A logp, logp = -1
    assert one_token("cispo", ratio, advantage) == pytest.approx(expected)


def test_gspo_uses_the_geometric_mean_and_spreads_its_gradient():
    logp = torch.tensor([-1.0, -2.0, -0.5], dtype=torch.float64, requires_grad=True)
    old = torch.tensor([-1.3, -1.8, -0.5], dtype=torch.float64)
    a = 1.7
    loss, _ = policy_loss(
        logp,
        old,
        torch.tensor([a, 0.4], dtype=torch.float64),
        torch.tensor([0, 0, 1]),
        torch.tensor([0.25, 0.5], dtype=torch.float64),  # 1 / (length x 2 completions)
        variant="gspo",
        clip_low=0.2,
        clip_high=0.2,
    )
    s = math.exp((0.3 - 0.2) / 2)
    assert loss.item() == pytest.approx(-(s * a + 0.4) / 2)
    torch.testing.assert_close(gradient(loss, logp), torch.tensor([-s * a / 4, -s * a / 4, -0.2]).double())


def test_gspo_clips_whole_completions():
    t, _, settings = batch("gspo", spread=1.0)
    loss, stats = policy_loss(**t, **settings)
    flat = gradient(loss, t["logp"]) == 0
    by_row = [flat[t["row"] == i] for i in range(len(LENGTHS))]
    assert all(bool(r.all()) or not bool(r.any()) for r in by_row)
    assert stats["clipped"].item() == flat.sum().item() > 0


@pytest.mark.parametrize("unbiased", [True, False])
def test_k3(unbiased):
    d, beta = 0.4, 0.1
    k3 = math.exp(d) - d - 1
    logp = torch.tensor([-1.0], dtype=torch.float64, requires_grad=True)
    one = torch.ones(1, dtype=torch.float64)
    loss, stats = policy_loss(
        logp,
        None,
        0 * one,
        torch.tensor([0]),
        one,
        variant="grpo",
        clip_low=0.2,
        clip_high=0.2,
        beta=beta,
        ref=logp.detach() + d,
        unbiased_kl=unbiased,
    )
    assert loss.item() == pytest.approx(beta * k3)
    assert stats["kl"].item() == pytest.approx(k3)
    expected = beta * (1 - math.exp(d)) + (beta * k3 if unbiased else 0)
    assert gradient(loss, logp).item() == pytest.approx(expected)


def test_unbiased_kl_has_the_gradient_of_the_reverse_kl():
    """Over a whole vocabulary, the expected gradient of the ratio-weighted k3 is KL(policy || ref)'s."""
    g = torch.Generator().manual_seed(3)
    logits = torch.randn(6, generator=g, dtype=torch.float64, requires_grad=True)
    ref = torch.randn(6, generator=g, dtype=torch.float64).log_softmax(-1)
    logp = logits.log_softmax(-1)
    exact = torch.autograd.grad((logp.exp() * (logp - ref)).sum(), logits, retain_graph=True)[0]

    def expected(unbiased):
        # One "completion" a token of the vocabulary, weighted by its probability: the exact expectation.
        zero = torch.zeros(6, dtype=torch.float64)
        settings = {
            "variant": "grpo",
            "clip_low": 0.2,
            "clip_high": 0.2,
            "beta": 1.0,
            "unbiased_kl": unbiased,
        }
        loss, _ = policy_loss(logp, None, zero, torch.arange(6), logp.exp().detach(), ref=ref, **settings)
        return torch.autograd.grad(loss, logits, retain_graph=True)[0]

    torch.testing.assert_close(expected(True), exact)
    assert not torch.allclose(expected(False), exact)


def test_kl_is_reported_without_beta_but_changes_nothing():
    t, extra, settings = batch("grpo")
    plain, _ = policy_loss(**t, **settings)
    loss, stats = policy_loss(**t, **settings, ref=extra["ref"])
    assert loss == plain
    assert stats["kl"] > 0


@pytest.mark.parametrize("variant", VARIANTS)
def test_correction_scales_the_policy_term_alone(variant):
    t, extra, settings = batch(variant)
    half = torch.full_like(extra["correction"], 0.5)
    plain, _ = policy_loss(**t, **settings)
    kl = policy_loss(**t, **settings, beta=0.3, ref=extra["ref"])[0] - plain
    both, _ = policy_loss(**t, **settings, beta=0.3, ref=extra["ref"], correction=half)
    assert both.item() == pytest.approx((0.5 * plain + kl).item())


def test_importance_weights_are_truncated_and_survive_what_an_engine_may_say():
    trainer = torch.tensor([-1.0, -1.0, -1.0, -1.0, -1.0], requires_grad=True)
    engine = torch.tensor([-1.0, -1.0 + math.log(2), -1.0 - math.log(3), math.nan, -math.inf])
    weights = importance_weights(trainer, engine, 2.0)
    assert weights.tolist() == pytest.approx([1.0, 0.5, 2.0, 1.0, 2.0])
    assert not weights.requires_grad


# --- gradients -------------------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [0.0, 0.2])
@pytest.mark.parametrize("variant", ["grpo", "dr_grpo", "dapo", "gspo"])
def test_gradient_against_finite_differences(variant, beta):
    t, extra, settings = batch(variant, spread=0.5)

    def loss(logp):
        return policy_loss(**{**t, "logp": logp}, **settings, beta=beta, **extra)[0]

    assert torch.autograd.gradcheck(loss, (t["logp"],), eps=1e-7, atol=1e-6)


def test_cispo_gradient_against_finite_differences_with_the_weight_held():
    t, extra, settings = batch("cispo", spread=2.0)
    held = (t["logp"] - t["old"]).exp().clamp(max=5.0).detach()

    def by_hand(logp):
        return -(t["weight"][t["row"]] * t["advantage"][t["row"]] * held * extra["correction"] * logp).sum()

    loss, stats = policy_loss(**t, **settings, correction=extra["correction"])
    assert stats["clipped"] > 0
    assert loss.item() == pytest.approx(by_hand(t["logp"]).item())
    torch.testing.assert_close(gradient(loss, t["logp"]), gradient(by_hand(t["logp"]), t["logp"]))


# --- sums over micro-batches -----------------------------------------------------------------------


@pytest.mark.parametrize("beta", [0.0, 0.1])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("parts", [[[0, 1, 2, 3]], [[2], [0, 3], [1]], [[3, 1], [], [0, 2]]])
def test_losses_gradients_and_statistics_add_over_micro_batches(variant, beta, parts):
    t, extra, settings = batch(variant, spread=0.6)
    whole, whole_stats = policy_loss(**t, **settings, beta=beta, **extra)

    losses, stats = [], []
    for part in parts:
        rows = torch.tensor(part, dtype=torch.long)
        order = torch.cat([torch.where(t["row"] == r)[0] for r in part] or [torch.zeros(0, dtype=torch.long)])
        renumbered = torch.repeat_interleave(
            torch.arange(len(part)), torch.tensor([LENGTHS[r] for r in part]).long()
        )
        loss, stat = policy_loss(
            t["logp"][order],
            t["old"][order],
            t["advantage"][rows],
            renumbered,
            t["weight"][rows],
            **settings,
            beta=beta,
            ref=extra["ref"][order],
            correction=extra["correction"][order],
        )
        losses.append(loss)
        stats.append(stat)

    total = torch.stack(losses).sum()
    assert total.item() == pytest.approx(whole.item(), rel=1e-12)
    torch.testing.assert_close(gradient(total, t["logp"]), gradient(whole, t["logp"]))
    for key in whole_stats:
        assert sum(s[key].item() for s in stats) == pytest.approx(whole_stats[key].item())


@pytest.mark.parametrize("variant", ["grpo", "gspo"])
def test_tokens_of_a_completion_may_lie_in_any_order(variant):
    t, extra, settings = batch(variant)
    whole, _ = policy_loss(**t, **settings, beta=0.1, **extra)
    order = torch.randperm(len(t["row"]), generator=torch.Generator().manual_seed(1))
    shuffled = {k: v[order] if len(v) == len(order) else v for k, v in {**t, **extra}.items()}
    assert policy_loss(**shuffled, **settings, beta=0.1)[0].item() == pytest.approx(whole.item())


# --- edges -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_nothing_to_train_on_still_has_a_backward(variant):
    empty, none = torch.zeros(0), torch.zeros(0, dtype=torch.long)
    parameter = torch.ones(3, requires_grad=True)
    logp = parameter[none]  # as a model's forward over no completion tokens
    low, high = clip_bounds(variant, None, None)
    loss, stats = policy_loss(logp, empty, empty, none, empty, variant=variant, clip_low=low, clip_high=high)
    loss.backward()
    assert loss.item() == 0
    assert stats["tokens"] == 0
    assert parameter.grad is not None
    assert parameter.grad.tolist() == [0, 0, 0]


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_masked_completion_changes_nothing_whatever_it_holds(variant, poison):
    t, extra, settings = batch(variant)
    without, stats_without = policy_loss(**t, **settings, beta=0.1, **extra)
    expected = gradient(without, t["logp"])

    bad = torch.full((2,), poison, dtype=torch.float64)
    logp = torch.cat([t["logp"].detach(), bad]).requires_grad_()
    loss, stats = policy_loss(
        logp,
        torch.cat([t["old"], bad]),
        torch.cat([t["advantage"], torch.zeros(1).double()]),
        torch.cat([t["row"], torch.tensor([4, 4])]),
        torch.cat([t["weight"], torch.zeros(1).double()]),
        **settings,
        beta=0.1,
        ref=torch.cat([extra["ref"], bad]),
        correction=torch.cat([extra["correction"], bad]),
    )
    torch.testing.assert_close(loss, without)
    torch.testing.assert_close(gradient(loss, logp), torch.cat([expected, torch.zeros(2).double()]))
    assert stats == stats_without


@pytest.mark.parametrize("variant", VARIANTS)
def test_nan_in_a_trained_completion_is_not_hidden(variant):
    t, _, settings = batch(variant)
    t["old"][0] = math.nan
    assert policy_loss(**t, **settings)[0].isnan()


@pytest.mark.parametrize("beta", [0.0, 0.1])
@pytest.mark.parametrize("variant", VARIANTS)
def test_an_absurd_ratio_stays_finite(variant, beta):
    """A token that the old policy (or the reference) held impossible: no inf, and no inf x 0 = NaN."""
    logp = torch.tensor([-0.1, -0.1, -300.0, -300.0], requires_grad=True)
    old = torch.tensor([-300.0, -300.0, -0.1, -0.1])
    low, high = clip_bounds(variant, None, None)
    loss, _ = policy_loss(
        logp,
        old,
        torch.tensor([-1.0, 0.0, 1.0, -1.0]),
        torch.arange(4),
        torch.full((4,), 0.25),
        variant=variant,
        clip_low=low,
        clip_high=high,
        beta=beta,
        ref=old,
    )
    assert loss.isfinite()
    assert gradient(loss, logp).isfinite().all()


def test_beta_without_a_reference_is_refused():
    t, _, settings = batch("grpo")
    with pytest.raises(ValueError, match="reference"):
        policy_loss(**t, **settings, beta=0.1)


def test_float32_tokens_of_a_long_step_sum_accurately():
    n = 4096
    t, _, settings = batch("dapo", lengths=[256] * (n // 256), dtype=torch.float32)
    exact, _, _ = batch("dapo", lengths=[256] * (n // 256), dtype=torch.float32)
    exact = {k: v.double() if v.is_floating_point() else v for k, v in exact.items()}
    assert policy_loss(**t, **settings)[0].item() == pytest.approx(
        policy_loss(**exact, **settings)[0].item(), rel=1e-4, abs=1e-6
    )

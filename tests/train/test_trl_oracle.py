"""TRL 1.16's real GRPOTrainer as the oracle: same tokens, rewards and weights, same loss and gradient.

Our side is what the loop runs: packed micro-batches, their log-probabilities, the policy loss. Nothing of TRL
is replaced. The trainer is built on a tiny Llama and handed fixed completions through its own `rollout_func`
hook; its `_generate_and_score_completions` then computes the advantages and the old, reference and engine
terms, and its `_compute_loss` the loss.
"""

from collections import Counter
from typing import cast, get_args

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from posttrain.train.advantages import advantages, default_kind
from posttrain.train.logprobs import Policy
from posttrain.train.loss import Variant, importance_weights, policy_loss, token_weights
from posttrain.train.packing import TrainGroup, TrainRow, micro_batches, pack

trl = pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")

pytestmark = pytest.mark.filterwarnings("ignore:You are using .rollout_func")
VARIANTS = get_args(Variant)
# Narrow enough that in every off-policy case some tokens are clipped and some are not (asserted below).
CLIP = {
    "grpo": (0.2, 0.2),
    "dr_grpo": (0.2, 0.2),
    "dapo": (0.2, 0.28),
    "gspo": (0.03, 0.04),
    "cispo": (None, 1.2),
}
TOLERANCE = 1e-4  # of the gradient's norm, and of the loss
ROUNDING = 5e-6  # of a loss of thousandths that is what is left of terms of about 1, in float32

VOCABULARY, PAD, END = 31, 0, 1
TEMPERATURE = 0.8
BUDGET = 24  # packed tokens a micro-batch on our side
MAX_TOKENS = 12  # TRL's max_completion_length; dr_grpo's constant
QUESTIONS = [{"prompt": "w5 w9 w3"}] * 4 + [{"prompt": "w7 w7 w2 w11 w4"}] * 4
PROMPTS = [[5, 9, 3], [7, 7, 2, 11, 4]]
# Two groups of four: unequal lengths, one of a single token, one (number 3) at the limit without an end.
COMPLETIONS = [
    [[4, 8, 15, END], [16, 23, END], [END], [4, 2, 9, 9, 30, 6, 12, 5, 3, 3, 8, 20]],
    [[10, 11, 12, 13, END], [10, 14, END], [3, 5, 8, 13, 21, END], [2, END]],
]
TRUNCATED = 3
REWARDS = [[1.0, 0.1, 0.0, 0.0], [0.0, 1.0, 1.0, 0.1]]
FLAT = [tokens for group in COMPLETIONS for tokens in group]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, little_llama):
    """A tiny float32 Llama on disk: the reference of both sides, and what the policy starts from."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("tiny")
    LlamaForCausalLM(little_llama).save_pretrained(path)
    return path


def load(folder):
    return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)


def nudge(model, scale=0.02, seed=1):
    """Move every weight a little: what an optimizer step does between sampling and loss."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += scale * torch.randn(parameter.shape, generator=g)


def gradient_of(model):
    """All gradients of a model as one vector."""
    return torch.cat([p.grad.flatten() for p in model.parameters()])


# --- TRL's side ------------------------------------------------------------------------------------


def oracle(folder, tmp_path, variant="grpo", rewards=REWARDS, engine=None, accumulation=1, **settings):
    """A GRPOTrainer that is handed COMPLETIONS, the engine's log-probabilities of them, and `rewards`."""
    words = {"<pad>": PAD, "<end>": END} | {f"w{i}": i for i in range(2, VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w2"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    low, high = CLIP[variant]
    args = trl.GRPOConfig(
        output_dir=str(tmp_path),
        per_device_train_batch_size=8 // accumulation,
        gradient_accumulation_steps=accumulation,
        num_generations=4,
        max_completion_length=MAX_TOKENS,
        temperature=TEMPERATURE,
        loss_type="grpo" if variant == "gspo" else variant,
        importance_sampling_level="sequence" if variant == "gspo" else "token",
        epsilon=low or 0.2,
        epsilon_high=high,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to=[],
        **settings,
    )
    trainer = trl.GRPOTrainer(
        model=load(folder),
        reward_funcs=lambda completions, **_: [r for group in rewards for r in group],
        args=args,
        train_dataset=datasets.Dataset.from_list(QUESTIONS),
        processing_class=PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>"
        ),
        rollout_func=lambda prompts, trainer: {
            "prompt_ids": [prompt for prompt in PROMPTS for _ in range(4)],
            "completion_ids": FLAT,
            "logprobs": engine,
        },
    )
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = accumulation  # its training loop sets it
    return trainer


# --- our side --------------------------------------------------------------------------------------


def micro_batches_of(variant, masked=()):
    """The same work as packed micro-batches; small ones, so that it takes several. masked: rows left out."""
    lengths = torch.tensor([0 if i in masked else len(tokens) for i, tokens in enumerate(FLAT)])
    weights = token_weights(
        variant, lengths, rows=len(FLAT), tokens=int(lengths.sum()), max_tokens=MAX_TOKENS
    )
    weight = iter(weights.tolist())
    groups = []
    for prompt, completions, rewards in zip(PROMPTS, COMPLETIONS, REWARDS, strict=True):
        scores = advantages(rewards, default_kind(variant))
        rows = [
            TrainRow(tokens, [0.0] * len(tokens), score or 0.0, next(weight))
            for tokens, score in zip(completions, scores, strict=True)
        ]
        groups.append(TrainGroup(prompt, rows))
    return [pack(part) for part in micro_batches(groups, BUDGET)]


def our_policy(folder):
    policy = Policy(load(folder), TEMPERATURE)
    assert policy.packed
    return policy


def detached(policy, batches):
    """Log-probabilities of each micro-batch's completion tokens."""
    return [policy(batch)[0].detach() for batch in batches]


def ours(policy, variant, batches, **terms):
    """Our loss and statistics, summed over batches. terms: policy_loss's, tensors as a list, one a batch."""
    low, high = CLIP[variant]
    losses: list[torch.Tensor] = []
    totals = Counter[str]()
    for i, batch in enumerate(batches):
        mine = {"old": None, **{k: v[i] if isinstance(v, list) else v for k, v in terms.items()}}
        loss, stats = policy_loss(
            policy(batch)[0],
            advantage=batch.advantage,
            row=batch.row,
            weight=batch.weight,
            variant=variant,
            clip_low=low,
            clip_high=high,
            **mine,
        )
        losses.append(loss)
        totals.update({k: float(cast(torch.Tensor, v)) for k, v in stats.items()})
    return torch.stack(losses).sum(), totals


def assert_same(their_loss, their_gradient, our_loss, model):
    """Same loss, and gradients whose difference is small beside their norm (and not both zero)."""
    model.zero_grad()
    our_loss.backward()
    norm = their_gradient.norm().item()
    assert norm > 1e-3
    assert (gradient_of(model) - their_gradient).norm().item() < TOLERANCE * norm
    assert our_loss.item() == pytest.approx(their_loss.item(), rel=TOLERANCE, abs=ROUNDING)


def scaling(variant):
    """TRL's setting for the kind of advantage that our variant uses."""
    return "none" if default_kind(variant) == "mean" else "group"


# --- loss and gradient -----------------------------------------------------------------------------


@pytest.mark.parametrize("kl", ["no_kl", "kl", "plain_kl"])
@pytest.mark.parametrize("step", ["on_policy", "off_policy"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_loss_and_gradient(folder, tmp_path, variant, step, kl):
    beta = 0.0 if kl == "no_kl" else 0.3
    trainer = oracle(
        folder,
        tmp_path,
        variant,
        beta=beta,
        use_bias_correction_kl=kl == "kl",
        num_iterations=2 if step == "off_policy" else 1,
        scale_rewards=scaling(variant),
    )
    policy, batches, terms = our_policy(folder), micro_batches_of(variant), {}
    assert len(batches) > 1
    if beta:
        terms = {"beta": beta, "ref": detached(our_policy(folder), batches), "unbiased_kl": kl == "kl"}
    for model in (trainer.model, policy):
        nudge(model)  # away from the reference
    inputs = trainer._generate_and_score_completions(QUESTIONS)
    assert ("old_per_token_logps" in inputs) == (step == "off_policy")
    if step == "off_policy":
        terms["old"] = detached(policy, batches)
        for model in (trainer.model, policy):
            nudge(model, seed=2)  # the first of the two iterations

    their_loss = trainer._compute_loss(trainer.model, inputs)
    their_loss.backward()
    loss, stats = ours(policy, variant, batches, **terms)
    assert_same(their_loss, gradient_of(trainer.model), loss, policy)
    if step == "off_policy":
        assert 0 < stats["clipped"] < stats["tokens"]
    if kl == "plain_kl":
        assert stats["kl"] / stats["tokens"] == pytest.approx(trainer._metrics["train"]["kl"][0], rel=1e-3)
    with torch.no_grad():
        entropies = torch.cat([policy(batch)[1] for batch in batches])
    assert entropies.mean().item() == pytest.approx(trainer._metrics["train"]["entropy"][0], rel=1e-4)


@pytest.mark.parametrize("variant", VARIANTS)
def test_their_micro_batches(folder, tmp_path, variant):
    """Two accumulation steps of TRL's real training_step (which shuffles the rows) give our gradient."""
    trainer = oracle(folder, tmp_path, variant, accumulation=2, scale_rewards=scaling(variant))
    total = sum(trainer.training_step(trainer.model, QUESTIONS, None) for _ in range(2))
    policy = our_policy(folder)
    loss, _ = ours(policy, variant, micro_batches_of(variant))
    assert_same(total, gradient_of(trainer.model), loss, policy)


@pytest.mark.parametrize("variant", VARIANTS)
def test_truncated_completions_masked(folder, tmp_path, variant):
    trainer = oracle(
        folder, tmp_path, variant, mask_truncated_completions=True, scale_rewards=scaling(variant)
    )
    inputs = trainer._generate_and_score_completions(QUESTIONS)
    assert inputs["completion_mask"][TRUNCATED].sum() == 0
    their_loss = trainer._compute_loss(trainer.model, inputs)
    their_loss.backward()
    policy = our_policy(folder)
    loss, stats = ours(policy, variant, micro_batches_of(variant, masked=[TRUNCATED]))
    assert_same(their_loss, gradient_of(trainer.model), loss, policy)
    assert stats["tokens"] == sum(map(len, FLAT)) - len(FLAT[TRUNCATED])


@pytest.mark.parametrize("variant", VARIANTS)
def test_truncated_importance_weights(folder, tmp_path, variant):
    """The engine's log-probabilities are off (one is NaN); both sides correct by min(p / p_engine, 2)."""
    noise = 0.5 * torch.randn(sum(map(len, FLAT)), generator=torch.Generator().manual_seed(4))
    noise[5] = torch.nan
    policy, whole = (
        our_policy(folder),
        [
            pack([TrainGroup(p, [TrainRow(t, [0.0] * len(t), 0.0, 0.0) for t in c])])
            for p, c in zip(PROMPTS, COMPLETIONS, strict=True)
        ],
    )
    engine = torch.cat(detached(policy, whole)) + noise
    trainer = oracle(
        folder,
        tmp_path,
        variant,
        engine=[part.tolist() for part in engine.split([len(tokens) for tokens in FLAT])],
        vllm_importance_sampling_mode="token_truncate",
        vllm_importance_sampling_clip_max=2.0,
        scale_rewards=scaling(variant),
    )
    trainer.use_vllm = True  # the switch of its correction; the rollouts still come from rollout_func
    trainer._last_loaded_step = trainer.state.global_step  # so that it looks for no engine to send weights to
    inputs = trainer._generate_and_score_completions(QUESTIONS)
    theirs = inputs["importance_sampling_ratio"][inputs["completion_mask"].bool()]
    mine = importance_weights(torch.cat(detached(policy, whole)), engine, 2.0)
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
    assert mine.max() == 2
    assert mine.min() < 1
    assert mine[5] == 1

    their_loss = trainer._compute_loss(trainer.model, inputs)
    their_loss.backward()
    by_tokens = {tuple(t): w for t, w in zip(FLAT, mine.split([len(t) for t in FLAT]), strict=True)}
    batches = micro_batches_of(variant)
    correction = [torch.cat([by_tokens[tuple(r.tokens)] for g in b.groups for r in g.rows]) for b in batches]
    loss, _ = ours(policy, variant, batches, correction=correction)
    assert_same(their_loss, gradient_of(trainer.model), loss, policy)


# --- rewards to advantages -------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "scale"), [("std", "group"), ("mean", "none")])
@pytest.mark.parametrize(
    "rewards",
    [
        REWARDS,
        [[1.0, None, 0.0, 0.0], [0.3, 0.3, None, 0.1]],  # rows no rule applies to
        [[0.1, 0.1, 0.1, 0.1], [-5.0, 2.5, 1e4, 0.0]],  # a silent group, and a wide one
        [[None, None, None, None], [1.0, 0.0, 0.0, 0.0]],
    ],
)
def test_advantages(folder, tmp_path, kind, scale, rewards):
    trainer = oracle(folder, tmp_path, rewards=rewards, scale_rewards=scale)
    theirs = trainer._generate_and_score_completions(QUESTIONS)["advantages"]
    # TRL has no None: it gives rows that no rule scored an advantage of 0.
    mine = torch.tensor([a or 0.0 for group in rewards for a in advantages(group, kind)])
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)

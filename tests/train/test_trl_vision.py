"""TRL 1.16's real GRPOTrainer as the oracle of a model that sees: same pictures, tokens, rewards and weights,
same loss and gradient of each part.

As in test_trl_oracle.py, the trainer is handed fixed completions through `rollout_func` and computes
everything else by itself. What its own processor would make of the dataset's images, the pixels of each row
and how many pictures it has, is put beside the inputs that it prepared.
"""

import copy
from typing import Any, get_args

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from posttrain.multimodal import BANNED, image_token, parts
from posttrain.train.advantages import advantages, default_kind
from posttrain.train.logprobs import Policy
from posttrain.train.loss import Variant, clip_bounds, policy_loss, token_weights
from posttrain.train.optimizer import adamw
from posttrain.train.packing import TrainGroup, TrainRow, micro_batches, pack
from posttrain.types import Encoded
from posttrain.vision.model import assemble

trl = pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")

pytestmark = pytest.mark.filterwarnings("ignore:You are using .rollout_func")
VARIANTS = get_args(Variant)
TOLERANCE = 1e-4  # of the gradient's norm, part by part, and of the loss
ROUNDING = 5e-6  # of a loss of thousandths that is what is left of terms of about 1, in float32

VOCABULARY, PAD, END = 31, 0, 1
SIDE, PATCHES = 16, 4  # pixels of a picture, and the tokens that they come to
TEMPERATURE, MAX_TOKENS = 0.8, 12
# Two groups of four: one picture before the words, two with a word between them.
COMPLETIONS = [
    [[4, 8, 15, END], [16, 23, END], [END], [4, 2, 9, 9, 30, 6, 12, 5, 3, 3, 8, 20]],
    [[10, 11, 12, 13, END], [10, 14, END], [3, 5, 8, 13, 21, END], [2, END]],
]
REWARDS = [[1.0, 0.1, 0.0, 0.0], [0.0, 1.0, 1.0, 0.1]]
FLAT = [tokens for group in COMPLETIONS for tokens in group]


@pytest.fixture(scope="module")
def made(little_llama):
    """A tiny Llama behind a tiny ViT, and its tokenizer."""
    torch.manual_seed(0)
    words = {"<pad>": PAD, "<end>": END} | {f"w{i}": i for i in range(2, VOCABULARY)}
    raw = Tokenizer(models.WordLevel(words, unk_token="w2"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", eos_token="<end>")
    settings = {"image_size": SIDE, "patch": SIDE // 2, "width": 16, "depth": 2, "heads": 2}
    model = assemble(LlamaForCausalLM(little_llama), tokenizer, "vit", settings)
    with torch.no_grad():  # far enough from nothing that what a picture shows weighs in
        for p in parts(model)["connector"]:
            p.normal_(std=0.3)
    return model, tokenizer


def prompts(model: Any, seed: int = 1) -> list[Encoded]:
    """seed: of the pictures."""
    draw = torch.Generator().manual_seed(seed)
    seen = [{"pixel_values": torch.randn(1, 3, SIDE, SIDE, generator=draw)} for _ in range(3)]
    shown: Any = [image_token(model)] * PATCHES
    return [Encoded([*shown, 5, 9, 3], seen[:1]), Encoded([7, *shown, 7, *shown, 11, 4], seen[1:])]


def theirs(made, tmp_path, variant, frozen=False) -> tuple[torch.Tensor, Any]:
    """TRL's loss, and its model with the gradient. frozen: all but the tower learns."""
    model, tokenizer = copy.deepcopy(made)
    model.model.vision_tower.requires_grad_(not frozen)
    # What posttrain never draws: the token in a picture's place. TRL's head knows of it by a bias.
    model.lm_head.bias = torch.nn.Parameter(torch.zeros(VOCABULARY + 1), requires_grad=False)
    model.lm_head.bias[image_token(model)] = BANNED
    low, high = clip_bounds(variant, None, None)
    trainer = trl.GRPOTrainer(
        model=model,
        reward_funcs=lambda completions, **_: [r for group in REWARDS for r in group],
        args=trl.GRPOConfig(
            output_dir=str(tmp_path),
            per_device_train_batch_size=8,
            num_generations=4,
            max_completion_length=MAX_TOKENS,
            temperature=TEMPERATURE,
            loss_type="grpo" if variant == "gspo" else variant,
            importance_sampling_level="sequence" if variant == "gspo" else "token",
            epsilon=low or 0.2,
            epsilon_high=high,
            scale_rewards="none" if default_kind(variant) == "mean" else "group",
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            report_to=[],
        ),
        train_dataset=datasets.Dataset.from_list([{"prompt": "w5"}] * 4 + [{"prompt": "w7"}] * 4),
        processing_class=tokenizer,
        rollout_func=lambda _, trainer: {
            "prompt_ids": [list(prompt) for prompt in prompts(model) for _ in range(4)],
            "completion_ids": FLAT,
            "logprobs": None,
        },
    )
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    inputs = trainer._generate_and_score_completions([{"prompt": "w5"}] * 8)
    rows = [prompt.pictures for prompt in prompts(model) for _ in range(4)]
    inputs["pixel_values"] = torch.cat([one["pixel_values"] for row in rows for one in row])
    inputs["num_images"] = [len(row) for row in rows]
    loss = trainer._compute_loss(trainer.model, inputs)
    loss.backward()
    return loss, trainer.model


def ours(made, variant, budget, seed=1, rates=None) -> tuple[torch.Tensor, Any]:
    """The loop's loss of packed micro-batches, and the model with the gradient. rates: of the optimizer."""
    policy = Policy(copy.deepcopy(made[0]), TEMPERATURE)
    assert policy.packed and policy.layers
    adamw(policy.model, 1e-6, rates=rates)
    lengths = torch.tensor([len(tokens) for tokens in FLAT])
    weights = token_weights(
        variant, lengths, rows=len(FLAT), tokens=int(lengths.sum()), max_tokens=MAX_TOKENS
    )
    weight = iter(weights.tolist())
    groups = []
    for prompt, completions, rewards in zip(prompts(policy.model, seed), COMPLETIONS, REWARDS, strict=True):
        scores = advantages(rewards, default_kind(variant))
        rows = [
            TrainRow(tokens, [0.0] * len(tokens), score or 0.0, next(weight))
            for tokens, score in zip(completions, scores, strict=True)
        ]
        groups.append(TrainGroup(prompt, rows))
    low, high = clip_bounds(variant, None, None)
    losses = []
    for part in micro_batches(groups, budget):
        batch = pack(part)
        loss, _ = policy_loss(
            policy(batch)[0],
            None,
            advantage=batch.advantage,
            row=batch.row,
            weight=batch.weight,
            variant=variant,
            clip_low=low,
            clip_high=high,
        )
        loss.backward()
        losses.append(loss.detach())
    return torch.stack(losses).sum(), policy.model


def gradient(model, part) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in parts(model)[part] if p.grad is not None])


def assert_same(their_model, model, *which):
    """Gradients whose difference is small beside their norm, and that is not zero."""
    for part in which:
        expected = gradient(their_model, part)
        assert expected.norm() > 1e-3, part
        assert (gradient(model, part) - expected).norm() < TOLERANCE * expected.norm(), part


# 1000: all in one; 24: a picture is encoded again for each micro-batch that its group is cut into.
@pytest.mark.parametrize("budget", [1000, 24])
@pytest.mark.parametrize("variant", VARIANTS)
def test_loss_and_gradient_of_each_part(made, tmp_path, variant, budget):
    their_loss, their_model = theirs(made, tmp_path, variant)
    loss, model = ours(made, variant, budget)
    assert loss.item() == pytest.approx(their_loss.item(), rel=TOLERANCE, abs=ROUNDING)
    assert_same(their_model, model, "tower", "connector", "language")


def test_a_tower_that_stays_as_it_is(made, tmp_path):
    _, their_model = theirs(made, tmp_path, "dapo", frozen=True)
    _, model = ours(made, "dapo", 1000, rates={"tower": 0.0})
    assert_same(their_model, model, "connector", "language")
    assert all(p.grad is None for p in parts(model)["tower"])


def test_other_pictures_give_another_gradient(made, tmp_path):
    """So the tests above would tell."""
    _, their_model = theirs(made, tmp_path, "grpo")
    _, model = ours(made, "grpo", 1000, seed=2)
    expected = gradient(their_model, "tower")
    assert (gradient(model, "tower") - expected).norm() > 0.1 * expected.norm()

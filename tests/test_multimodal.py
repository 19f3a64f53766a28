"""Pictures in packed groups: log-probabilities, gradients and completions against transformers' own."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from posttrain import models
from posttrain.multimodal import banned, example, features, sees
from posttrain.rollout.native import NativeEngine
from posttrain.rollout.plain import PlainEngine
from posttrain.rollout.steady import SteadyEngine
from posttrain.train.logprobs import Policy, padded_logprobs
from posttrain.train.packing import PackedBatch, TrainGroup, TrainRow, pack
from posttrain.types import Encoded, PosttrainError, Sampling

IMAGE, PATCHES = 98, 16


def llava() -> Any:
    """A small model that sees: 32 x 32 pixels are 16 tokens of 8 x 8 each, beside ids up to 98."""
    vision = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
    )
    text = LlamaConfig(
        vocab_size=99,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        eos_token_id=1,
        pad_token_id=1,
    )
    config = LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=IMAGE, vision_feature_layer=-1
    )
    torch.manual_seed(0)
    return LlavaForConditionalGeneration(config).eval()


def picture(seed: int) -> dict[str, torch.Tensor]:
    return {"pixel_values": torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(seed))}


def row(tokens: list[int], advantage: float) -> TrainRow:
    return TrainRow(tokens, [0.0] * len(tokens), advantage, 0.3)


def prompts() -> list[list[int]]:
    """One picture in the middle, none, two."""
    return [
        Encoded([5, 6, *[IMAGE] * PATCHES, 7, 8], [picture(1)]),
        [5, 6, 7],
        Encoded([5, *[IMAGE] * 2 * PATCHES, 7], [picture(2), picture(3)]),
    ]


def batch() -> PackedBatch:
    rows = [
        [row([9, 10, 11], 1.0), row([12, 13, 14, 15], -1.0)],
        [row([9, 10, 11], 1.0)],
        [row([9], 1.0), row([12, 13], -0.5)],
    ]
    return pack([TrainGroup(prompt, some) for prompt, some in zip(prompts(), rows, strict=True)])


def learnt(model: Any, of: PackedBatch, logprobs: Any) -> tuple[torch.Tensor, torch.Tensor, dict[str, Any]]:
    model.zero_grad()
    logp, entropy = logprobs(of)
    (logp * (of.weight * of.advantage)[of.row]).sum().backward()
    return (
        logp.detach(),
        entropy,
        {name: p.grad for name, p in model.named_parameters() if p.grad is not None},
    )


@pytest.mark.parametrize("by_hand", [True, False])
def test_packed_groups_with_pictures_equal_rows_by_themselves(by_hand: bool) -> None:
    plain, packed = llava(), llava()
    policy = Policy(packed)
    assert policy.packed and policy.layers is not None
    if not by_hand:
        policy.layers = None
    of = batch()
    expected = learnt(plain, of, lambda b: padded_logprobs(plain, b))
    found = learnt(packed, of, policy)
    torch.testing.assert_close(found[0], expected[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(found[1], expected[1], atol=1e-5, rtol=0)
    assert found[2].keys() == expected[2].keys()
    assert any("vision_tower" in name for name in found[2])
    for name, grad in found[2].items():
        torch.testing.assert_close(grad, expected[2][name], atol=1e-5, rtol=1e-4, msg=name)


def test_a_picture_is_encoded_once_for_its_group() -> None:
    model = llava()
    policy, seen = Policy(model), []
    model.model.vision_tower.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    policy(batch())
    assert sum(seen) == 3, "three pictures, whatever the completions"


def test_engines_agree_on_what_follows_a_picture() -> None:
    plain, seeing = llava(), llava()
    _, tokenizer = models.load("tiny")
    policy = Policy(seeing)
    greedy = Sampling(12, temperature=0.0)
    engines = [
        PlainEngine(plain, tokenizer, torch.float32),
        NativeEngine(seeing, tokenizer, torch.float32, layers=policy.layers),
        NativeEngine(seeing, tokenizer, torch.float32),
        SteadyEngine(seeing, tokenizer, torch.float32, 64, policy.layers),
    ]
    made = [engine.generate(prompts(), 2, greedy, [1, 2, 3]) for engine in engines]
    texts = [[completion.tokens for group in of for completion in group] for of in made]
    assert all(text == texts[0] for text in texts)
    one = made[1][0][0]
    again = pack([TrainGroup(prompts()[0], [row(one.tokens, 1.0)])])
    torch.testing.assert_close(policy(again)[0].detach(), torch.tensor(one.logprobs), atol=1e-4, rtol=0)


def test_same_words_beside_another_picture_are_another_prompt() -> None:
    ids = [5, *[IMAGE] * PATCHES, 7]
    first, second = picture(1), picture(2)
    assert Encoded(ids, [first]) == Encoded(ids, [first]) != Encoded(ids, [second])
    assert Encoded(ids, [first]) != ids and Encoded(ids) == ids
    model = llava()
    _, tokenizer = models.load("tiny")
    engine = SteadyEngine(model, tokenizer, torch.float32, 64, Policy(model).layers)
    drawn = engine.generate([Encoded(ids, [p]) for p in (first, second)], 1, Sampling(3), [7, 7])
    assert drawn[0][0].logprobs != drawn[1][0].logprobs


@pytest.mark.parametrize("temperature", [0.0, 0.5, 1.0])
def test_the_image_token_is_never_drawn_and_has_no_probability(temperature: float) -> None:
    model = llava()
    with torch.no_grad():  # its output embedding points where every hidden state does: by far the likeliest
        model.lm_head.weight[IMAGE] = 0
        model.lm_head.weight[7] = 0
        model.model.language_model.norm.weight[0] = 50
        model.lm_head.weight[IMAGE, 0] = model.lm_head.weight[7, 0] = 1
    _, tokenizer = models.load("tiny")
    policy = Policy(model, temperature or 1.0)
    assert banned(model) == [IMAGE]
    kinds = [policy.layers, None]
    sampling = Sampling(8, temperature=temperature)
    for layers in kinds:
        engine = NativeEngine(model, tokenizer, torch.float32, layers=layers)
        for group in engine.generate(prompts(), 4, sampling, [1, 2, 3]):
            assert all(IMAGE not in completion.tokens for completion in group)
    logp, entropy = policy(pack([TrainGroup(prompts()[0], [row([IMAGE, 7], 1.0)])]))
    assert logp[0] < -1000 and torch.isfinite(logp).all() and torch.isfinite(entropy).all()


def test_more_image_tokens_than_features_are_refused() -> None:
    model = llava()
    assert sees(model)
    with pytest.raises(PosttrainError, match="1 pictures come to 16 embeddings, but the prompts have 15"):
        features(model, [picture(1)], PATCHES - 1)


def test_the_example_has_as_many_image_tokens_as_the_model_makes_embeddings() -> None:
    prompt = example(llava())
    assert prompt is not None and prompt.count(IMAGE) == PATCHES and len(prompt.pictures) == 1


def test_a_text_model_sees_nothing() -> None:
    model, _ = models.load("tiny")
    assert not sees(model) and banned(model) == []


def test_copies_keep_what_they_show() -> None:
    prompt = prompts()[0]
    assert copy.copy(prompt) == prompt

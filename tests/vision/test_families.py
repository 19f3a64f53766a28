"""Models of the Hub's families that see, from small configs: log-probabilities, gradients and completions.

The oracle is transformers: the family's own processor, one row at a time through the model's own forward.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from posttrain import models
from posttrain.multimodal import banned, body, example, features, image_token, inputs, parts, sees
from posttrain.picture import Picture
from posttrain.rollout.native import NativeEngine
from posttrain.rollout.plain import PlainEngine
from posttrain.train.logprobs import Policy, padded_logprobs
from posttrain.train.packing import PackedBatch, TrainGroup, TrainRow, pack
from posttrain.types import Prompt, Sampling

PACKED = ("llava", "idefics3", "smolvlm", "internvl")
AXES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
ALL = (*PACKED, *AXES)
SIZES = ((48, 32), (20, 64), (33, 33))


def mark_of(model: Any) -> int:
    mark = image_token(model)
    assert mark is not None
    return mark


def image(number: int) -> Image.Image:
    width, height = SIZES[number % len(SIZES)]
    return Image.fromarray(np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8))


def picture(number: int) -> Picture:
    file = io.BytesIO()
    image(number).save(file, "PNG")
    return Picture(file.getvalue())


def messages(*content: str | int) -> list[Any]:
    """A question of words, and of pictures by their numbers."""
    parts_ = [
        {"type": "text", "text": c} if isinstance(c, str) else {"type": "image", "image": picture(c)}
        for c in content
    ]
    return [{"role": "system", "content": "Look."}, {"role": "user", "content": parts_}]


ASKED: list[tuple[str | int, ...]] = [("What is in ", 0, "?"), ("no picture: é",), (1, "and ", 2, " differ?")]
REPLIES = [["a cat", "two"], ["yes"], ["no"]]


@pytest.fixture
def opened(family: Any, tmp_path: Path) -> Any:
    """opened("llava"): model, tokenizer and encoder from a saved folder, and the family's own processor."""

    def make(name: str) -> tuple[Any, Any, Any, Any]:
        made = family(name)
        model, tokenizer = models.load(made.save(tmp_path / name))
        return model.eval(), tokenizer, models.encoder(model, tokenizer), made.processor

    return make


def own(processor: Any, asked: tuple[str | int, ...]) -> Any:
    """What the family's own processor makes of a prompt."""
    told = [
        {**m, "content": [p if p["type"] == "text" else {"type": "image"} for p in m["content"]]}
        if not isinstance(m["content"], str)
        else {**m, "content": [{"type": "text", "text": m["content"]}]}
        for m in messages(*asked)
    ]
    text = processor.tokenizer.apply_chat_template(told, add_generation_prompt=True, tokenize=False)
    shown = [image(c) for c in asked if isinstance(c, int)]
    return processor(images=shown or None, text=[text], return_tensors="pt")


def replies(tokenizer: Any) -> list[list[list[int]]]:
    return [[[*tokenizer.encode(text), 1] for text in some] for some in REPLIES]


def batch(encode: Any, tokenizer: Any) -> PackedBatch:
    groups = [
        TrainGroup(
            encode(Prompt("row", messages(*asked), None)),
            [TrainRow(r, [0.0] * len(r), 1.0 - k, 0.3) for k, r in enumerate(some)],
        )
        for asked, some in zip(ASKED, replies(tokenizer), strict=True)
    ]
    return pack(groups)


def alone(model: Any, given: Any, completion: list[int]) -> torch.Tensor:
    """Log-probabilities of a completion, in a row by itself."""
    more = {name: x for name, x in given.items() if name not in ("input_ids", "attention_mask")}
    if "mm_token_type_ids" in more:
        more["mm_token_type_ids"] = torch.nn.functional.pad(more["mm_token_type_ids"], (0, len(completion)))
    prompt = given["input_ids"]
    ids = torch.cat([prompt, torch.tensor([completion])], 1)
    logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False, **more).logits[0]
    logits[:, banned(model)] = -torch.inf
    at = logits[prompt.shape[1] - 1 : -1].float().log_softmax(-1)
    return at.gather(1, ids[0, prompt.shape[1] :, None])[:, 0]


@pytest.mark.parametrize("name", ALL)
def test_a_model_is_known_by_its_parts(family: Any, name: str) -> None:
    made = family(name)
    model, mark = made.model, made.tokenizer.convert_tokens_to_ids(made.processor.image_token)
    assert sees(model) and image_token(model) == mark and mark in banned(model)
    assert (
        type(body(model)).__name__ in ("LlamaModel", "Qwen2Model")
        or "TextModel" in type(body(model)).__name__
    )
    found = parts(model)
    numbers = [id(p) for some in found.values() for p in some]
    assert sorted(numbers) == sorted(id(p) for p in model.parameters()), "each parameter in one part"
    names = {id(p): n for n, p in model.named_parameters()}
    assert found["tower"] and found["connector"]
    assert all("visual" in names[id(p)] or "vision" in names[id(p)] for p in found["tower"])
    assert not any("language_model" in names[id(p)] for part in ("tower", "connector") for p in found[part])
    assert all(
        "merger" in n or "connector" in n or "projector" in n
        for n in (names[id(p)] for p in found["connector"])
    )


@pytest.mark.parametrize("name", ALL)
def test_prompts_are_encoded_as_by_the_familys_own_processor(opened: Any, name: str) -> None:
    model, _, encode, processor = opened(name)
    for asked in ASKED:
        expected = own(processor, asked)
        found = encode(Prompt("row", messages(*asked), None))
        assert list(found) == expected["input_ids"][0].tolist()
        given = inputs(model, torch.tensor([list(found)]), [found])
        assert given.keys() - {"mm_token_type_ids"} == set(expected) - {"attention_mask", "mm_token_type_ids"}
        for key in given.keys() & {"pixel_values", "image_grid_thw", "pixel_attention_mask"}:
            wanted = expected[key]
            torch.testing.assert_close(given[key].flatten(), wanted.flatten(), msg=key)
        if "mm_token_type_ids" in given:
            assert given["mm_token_type_ids"].tolist() == expected["mm_token_type_ids"].tolist()


@pytest.mark.parametrize("name", ALL)
def test_each_picture_is_apart_and_comes_to_its_tokens(opened: Any, name: str) -> None:
    model, _, encode, _ = opened(name)
    found = encode(Prompt("row", messages(*ASKED[2]), None))
    assert len(found.pictures) == 2
    with torch.no_grad():
        both = features(model, found.pictures, found.count(mark_of(model)))
        each = [
            features(model, [p], encode(Prompt("row", messages(k), None)).count(mark_of(model)))
            for k, p in zip((1, 2), found.pictures, strict=True)
        ]
    torch.testing.assert_close(both, torch.cat(each), atol=1e-4, rtol=1e-4)
    prompt = example(model)
    assert prompt is not None
    with torch.no_grad():
        features(model, prompt.pictures, prompt.count(mark_of(model)))


@pytest.mark.parametrize("name", ALL)
def test_log_probabilities_are_those_of_rows_by_themselves(opened: Any, name: str) -> None:
    model, tokenizer, encode, processor = opened(name)
    of = batch(encode, tokenizer)
    with torch.no_grad():
        expected = torch.cat(
            [
                alone(model, own(processor, asked), reply)
                for asked, some in zip(ASKED, replies(tokenizer), strict=True)
                for reply in some
            ]
        )
        policy = Policy(model)
        assert policy.packed is (name in PACKED), policy.why_not
        assert policy.packed or "M-RoPE" in policy.why_not
        torch.testing.assert_close(policy(of)[0], expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("by_hand", [True, False])
@pytest.mark.parametrize("name", PACKED)
def test_packed_gradients_equal_those_of_padded_rows(opened: Any, name: str, by_hand: bool) -> None:
    model, tokenizer, encode, _ = opened(name)
    of = batch(encode, tokenizer)

    def learnt(logprobs: Any) -> dict[str, torch.Tensor]:
        model.zero_grad()
        (logprobs(of)[0] * (of.weight * of.advantage)[of.row]).sum().backward()
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    expected = learnt(lambda b: padded_logprobs(model, b))
    policy = Policy(model)
    assert policy.layers is not None
    if not by_hand:
        policy.layers = None
    found = learnt(policy)
    assert found.keys() == expected.keys()
    assert {id(p) for p in parts(model)["connector"]} <= {id(model.get_parameter(n)) for n in found}
    for n, grad in found.items():
        torch.testing.assert_close(grad, expected[n], atol=1e-4, rtol=1e-4, msg=n)


@pytest.mark.parametrize("name", ALL)
def test_engines_continue_as_the_models_own_generation(opened: Any, name: str) -> None:
    model, tokenizer, encode, processor = opened(name)
    prompts = [encode(Prompt("row", messages(*asked), None)) for asked in ASKED]
    expected = []
    for asked in ASKED:
        given = own(processor, asked)
        out = model.generate(**given, max_new_tokens=9, do_sample=False, suppress_tokens=banned(model))
        expected.append(out[0, given["input_ids"].shape[1] :].tolist())
    greedy = Sampling(9, temperature=0.0)
    plain = PlainEngine(model, tokenizer, torch.float32).generate(prompts, 2, greedy, [1, 2, 3])
    assert [c.tokens for group in plain for c in group] == [e for e in expected for _ in range(2)]
    policy = Policy(model)
    if policy.packed:
        native = NativeEngine(model, tokenizer, torch.float32, layers=policy.layers)
        made = native.generate(prompts, 2, greedy, [1, 2, 3])
        assert [c.tokens for group in made for c in group] == [e for e in expected for _ in range(2)]


@pytest.mark.parametrize("name", AXES)
def test_what_padded_rows_draw_from_is_what_the_policy_learns_from(opened: Any, name: str) -> None:
    model, tokenizer, encode, _ = opened(name)
    prompts = [encode(Prompt("row", messages(*asked), None)) for asked in ASKED]
    sampling = Sampling(7, temperature=0.8)
    drawn = PlainEngine(model, tokenizer, torch.float32).generate(prompts, 3, sampling, [5, 6, 7])
    assert len({tuple(c.tokens) for c in drawn[0]}) > 1
    groups = [
        TrainGroup(p, [TrainRow(c.tokens, c.logprobs, 1.0, 0.3) for c in some])
        for p, some in zip(prompts, drawn, strict=True)
    ]
    with torch.no_grad():
        logp = Policy(model, 0.8)(pack(groups))[0]
    said = torch.tensor([x for group in drawn for c in group for x in c.logprobs])
    torch.testing.assert_close(logp, said, atol=1e-4, rtol=0)

"""TowerModel: saved, opened, and in the place of LLaVA's vision tower."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    AutoModel,
    AutoModelForImageTextToText,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

import posttrain.vision  # noqa: F401  what it registers is used here
from posttrain import models
from posttrain.recipe import Vision
from posttrain.types import PosttrainError
from posttrain.vision import towers
from posttrain.vision.towers.model import TowerConfig, TowerModel, open_tower

SMALL: dict[str, dict[str, Any]] = {
    "vit": {"image_size": 32, "patch": 8, "width": 32, "depth": 2, "heads": 4},
    "swin": {"image_size": 32, "depths": [2, 2], "heads": [2, 4], "width": 16, "window": 4},
    "efficientnet": {"stride": 8, "width": 0.25, "image_size": 32},
}


@pytest.mark.parametrize("kind", SMALL)
@pytest.mark.parametrize("loader", ["auto", "open"])
def test_a_saved_tower_gives_the_same_tokens(kind: str, loader: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = open_tower(kind, SMALL[kind])
    pixels = torch.randn(2, 3, 32, 32)
    model.save_pretrained(tmp_path)
    again: Any = open_tower(str(tmp_path)) if loader == "open" else AutoModel.from_pretrained(tmp_path).eval()
    assert type(again) is TowerModel
    with torch.no_grad():
        found = model(pixels)
        torch.testing.assert_close(again(pixels)[0], found.last_hidden_state, rtol=0, atol=0)
    assert found.hidden_states[-1] is found.last_hidden_state
    assert again.config.hidden_size == again.tower.width == found.last_hidden_state.shape[2]


def test_a_folder_holds_every_setting(tmp_path: Path) -> None:
    """So that another default of a later version does not change what was saved."""
    open_tower("vit", {"image_size": 32, "patch": 8, "depth": 1}).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["settings"]["width"] == 384 and saved["hidden_size"] == 384
    assert (saved["kind"], saved["model_type"]) == ("vit", "posttrain_tower")


def test_the_eyes_of_a_model_that_sees_are_a_tower(tmp_path: Path) -> None:
    vision = Vision(tower="vit", settings=SMALL["vit"] | {"mean": [0.9, 0.9, 0.9]})
    whole, tokenizer = models.load("tiny", vision=vision)
    models.save(whole, tokenizer, tmp_path)
    taken = open_tower(str(tmp_path), {"std": [0.1, 0.1, 0.1]})
    assert (taken.tower.mean, taken.tower.std) == ((0.9,) * 3, (0.1,) * 3)
    theirs = dict(cast(Any, whole).model.vision_tower.named_parameters())
    mine = dict(taken.named_parameters())
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    with pytest.raises(PosttrainError, match="is .* in the checkpoint, by its settings"):
        open_tower(str(tmp_path), {"width": 64})


def test_two_seeds_make_two_towers_and_one_makes_one() -> None:
    def first(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return next(open_tower("vit", SMALL["vit"]).parameters())

    assert torch.equal(first(0), first(0)) and not torch.equal(first(0), first(1))


class Handmade(towers.Tower):
    """Values that no general initialization would give, in everything a module can hold."""

    width, stride, image_size = 4, 8, 32
    mean = std = (0.5, 0.5, 0.5)

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 4, 8, 8)
        for tensor in self.patches.parameters():
            nn.init.constant_(tensor, 0.25)
        self.scale = nn.Parameter(torch.full((4,), 0.5))
        self.register_buffer("kept", torch.arange(4.0))
        self.register_buffer("made", torch.arange(4.0) * 2, persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.patches(pixels).flatten(2).transpose(1, 2) * self.scale + self.kept + self.made


def test_a_tower_keeps_the_values_that_it_gives_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(*, size: int = 32) -> towers.Tower:
        return Handmade()

    monkeypatch.setattr(towers, "_builder", lambda kind: build)
    model = TowerModel(TowerConfig(kind="handmade"))
    for name, tensor in Handmade().state_dict().items():
        assert torch.equal(model.tower.state_dict()[name], tensor), name
    with torch.no_grad():
        model.tower.get_parameter("scale").fill_(7)
    model.save_pretrained(tmp_path)
    again: Any = AutoModel.from_pretrained(tmp_path)
    pixels = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(again(pixels)[0], model(pixels)[0], rtol=0, atol=0)

    weights = load_file(tmp_path / "model.safetensors")
    del weights["tower.scale"], weights["tower.kept"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    again = AutoModel.from_pretrained(tmp_path)
    assert torch.equal(again.tower.scale, torch.full((4,), 0.5))
    assert torch.equal(again.tower.kept, torch.arange(4.0))
    with pytest.raises(PosttrainError, match="2 weights .* tower.kept among them"):
        open_tower(str(tmp_path))


def test_settings_over_a_folders_have_to_fit_its_weights(tmp_path: Path) -> None:
    open_tower("vit", SMALL["vit"]).save_pretrained(tmp_path)
    with pytest.raises(PosttrainError, match=r"cls_token is \[1, 1, 32\] in the checkpoint, by its settings"):
        open_tower(str(tmp_path), {"width": 64})
    with pytest.raises(PosttrainError, match="takes no 'widht'; did you mean 'width'"):
        open_tower(str(tmp_path), {"widht": 64})


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("vitt", r"no kind of tower \(.*efficientnet, .*\); did you mean 'vit'\?; unknown model 'vitt'"),
        ("", "no kind of tower"),
        ("no/such/folder", "no kind of tower"),
        ("x" * 5000, "no kind of tower"),
    ],
)
def test_a_name_of_nothing_is_told(name: str, said: str) -> None:
    with pytest.raises(PosttrainError, match=said):
        open_tower(name)


def llava(kind: str) -> Any:
    text = LlamaConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    vision = TowerConfig(kind=kind, settings=SMALL[kind])
    torch.manual_seed(0)
    return LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=vision,
            text_config=text,
            image_token_index=3,
            vision_feature_layer=-1,
            vision_feature_select_strategy="full",
            image_seq_length=16,
        )
    ).eval()


@pytest.mark.parametrize("kind", SMALL)
def test_a_tower_sees_for_llava(kind: str, tmp_path: Path) -> None:
    model: Any = llava(kind)
    ids, pixels = torch.tensor([[5] + [3] * 16 + [6, 7]]), torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        logits = model(input_ids=ids, pixel_values=pixels).logits
        assert not torch.allclose(logits, model(input_ids=ids, pixel_values=pixels + 1).logits)
        tokens = model.model.vision_tower(pixels).last_hidden_state
        embedded = model.get_input_embeddings()(ids)
        embedded[:, 1:17] = model.model.multi_modal_projector(tokens)
        by_hand = model.lm_head(model.model.language_model(inputs_embeds=embedded).last_hidden_state)
        torch.testing.assert_close(logits, by_hand)

        model.save_pretrained(tmp_path)
        again: Any = AutoModelForImageTextToText.from_pretrained(tmp_path).eval()
        assert type(again).__name__ == "LlavaForConditionalGeneration"
        assert type(again.model.vision_tower) is TowerModel
        torch.testing.assert_close(again(input_ids=ids, pixel_values=pixels).logits, logits, rtol=0, atol=0)
        written = again.generate(input_ids=ids, pixel_values=pixels, max_new_tokens=2, do_sample=False)
        assert written[0, 19] == logits[0, -1].argmax()
        half: Any = AutoModelForImageTextToText.from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
        rough = half(input_ids=ids, pixel_values=pixels).logits
        assert rough.dtype == torch.bfloat16
        torch.testing.assert_close(rough.float(), logits, rtol=0.1, atol=0.1)


def test_llava_trains_its_tower() -> None:
    model: Any = llava("vit").train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    ids, pixels = torch.tensor([[5] + [3] * 16 + [6, 7]]), torch.randn(1, 3, 32, 32)
    model(input_ids=ids, pixel_values=pixels, labels=ids).loss.backward()
    assert not [
        n for n, p in model.model.vision_tower.named_parameters() if p.grad is None or not p.grad.any()
    ]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_the_outer_models_attention_is_no_matter_of_the_tower(attention: str, tmp_path: Path) -> None:
    llava("vit").save_pretrained(tmp_path)
    model: Any = AutoModelForImageTextToText.from_pretrained(tmp_path, attn_implementation=attention)
    assert model.model.vision_tower(torch.zeros(1, 3, 32, 32))[0].shape == (1, 16, 32)

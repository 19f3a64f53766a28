"""Folders that transformers saved, opened as towers: the tokens are transformers' own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    ConvNextConfig,
    ConvNextModel,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ConvNextConfig,
    DINOv3ConvNextModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    EfficientNetConfig,
    EfficientNetForImageClassification,
    LevitConfig,
    LevitModel,
    LlamaConfig,
    LlamaForCausalLM,
    MobileViTConfig,
    MobileViTModel,
    PreTrainedModel,
    Siglip2VisionConfig,
    Siglip2VisionModel,
    SiglipConfig,
    SiglipModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    SwinConfig,
    SwinModel,
    ViTConfig,
    ViTForImageClassification,
    ViTMAEConfig,
    ViTMAEForPreTraining,
    ViTModel,
)

from posttrain.types import PosttrainError
from posttrain.vision.towers import pretrained
from posttrain.vision.towers.model import TowerConfig, open_tower

VIT: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
}
TEXT = {**{k: v for k, v in VIT.items() if not k.endswith("_size")}, "hidden_size": 32, "vocab_size": 50}
STAGES: dict[str, Any] = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1], "image_size": 64}

# name -> what is saved, where its vision model is in it, and (tokens before the patches', stride)
FAMILIES: dict[str, tuple[Callable[[], PreTrainedModel], str, int, int]] = {
    "vit": (lambda: ViTModel(ViTConfig(**VIT)), "", 1, 8),
    "vit classifier": (lambda: ViTForImageClassification(ViTConfig(**VIT)), "vit", 1, 8),
    "dinov2": (lambda: Dinov2Model(Dinov2Config(**VIT)), "", 1, 8),
    "dinov2 with registers": (
        lambda: Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**VIT, num_register_tokens=4)),
        "",
        5,
        8,
    ),
    "dinov3": (lambda: DINOv3ViTModel(DINOv3ViTConfig(**VIT, num_register_tokens=3)), "", 4, 8),
    "dinov3 convnext": (lambda: DINOv3ConvNextModel(DINOv3ConvNextConfig(**STAGES)), "", 1, 32),
    "convnext": (lambda: ConvNextModel(ConvNextConfig(**STAGES)), "", 0, 32),
    "mobilevit": (lambda: MobileViTModel(MobileViTConfig(image_size=64)), "", 0, 32),
    "siglip vision": (lambda: SiglipVisionModel(SiglipVisionConfig(**VIT)), "", 0, 8),
    "siglip": (
        lambda: SiglipModel(SiglipConfig(vision_config=VIT, text_config=TEXT)),
        "vision_model",
        0,
        8,
    ),
    "clip vision": (lambda: CLIPVisionModel(CLIPVisionConfig(**VIT)), "", 1, 8),
    "clip": (lambda: CLIPModel(CLIPConfig(vision_config=VIT, text_config=TEXT)), "vision_model", 1, 8),
    "swin": (
        lambda: SwinModel(
            SwinConfig(image_size=64, embed_dim=16, depths=[2, 2], num_heads=[2, 4], window_size=4)
        ),
        "",
        0,
        8,
    ),
    "efficientnet": (
        lambda: EfficientNetForImageClassification(
            EfficientNetConfig(image_size=64, width_coefficient=0.25, depth_coefficient=0.3, hidden_dim=320)
        ),
        "efficientnet",
        0,
        32,
    ),
}


def loud(model: PreTrainedModel) -> PreTrainedModel:
    """Freshly made weights give tokens that are nearly alike: make them differ."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter * 3 + 0.1 * torch.randn_like(parameter))
    return model.eval()


@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_are_the_models_own(family: str, tmp_path: Path) -> None:
    make, where, prefix, stride = FAMILIES[family]
    torch.manual_seed(0)
    model = loud(make())
    model.save_pretrained(tmp_path / "theirs")
    opened: Any = open_tower(str(tmp_path / "theirs"))
    tower = opened.tower
    assert (tower.prefix, tower.stride) == (prefix, stride)
    assert opened.config.hidden_size == tower.width
    pixels = torch.randn(2, 3, tower.image_size, tower.image_size)
    with torch.no_grad():
        own = model.get_submodule(where)(pixels).last_hidden_state
        if own.dim() == 4:  # channels first: a token is what stands at a row and a column, over the channels
            own = torch.stack([own[:, :, r, c] for r in range(own.shape[2]) for c in range(own.shape[3])], 1)
        found = opened(pixels).last_hidden_state
        torch.testing.assert_close(found, own[:, prefix:], rtol=1e-6, atol=1e-6)
        assert found.std() > 0.01

        opened.save_pretrained(tmp_path / "ours")  # and nothing of the first folder is needed any more
        (tmp_path / "theirs" / "config.json").unlink()
        again: Any = open_tower(str(tmp_path / "ours"))
        torch.testing.assert_close(again(pixels).last_hidden_state, found, rtol=0, atol=0)
        assert (again.tower.mean, again.tower.std) == (tower.mean, tower.std)

        height, width = 2 * tower.image_size, tower.image_size + stride
        wide = opened(torch.randn(1, 3, height, width)).last_hidden_state
        assert wide.shape == (1, height * width // stride**2, tower.width)


def test_a_mae_keeps_its_patches_in_order(tmp_path: Path) -> None:
    torch.manual_seed(0)
    small: dict[str, Any] = {
        "decoder_hidden_size": 16,
        "decoder_num_hidden_layers": 1,
        "decoder_num_attention_heads": 2,
    }
    model: Any = loud(ViTMAEForPreTraining(ViTMAEConfig(**VIT, **small, decoder_intermediate_size=16)))
    model.save_pretrained(tmp_path)
    opened: Any = open_tower(str(tmp_path))
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        found = opened(pixels).last_hidden_state
        torch.testing.assert_close(opened(pixels).last_hidden_state, found, rtol=0, atol=0)
        model.vit.config.mask_ratio = 0.0
        in_order = torch.arange(16.0).expand(2, 16)  # noise whose sorting changes nothing
        own = model.vit(pixels, noise=in_order).last_hidden_state
    torch.testing.assert_close(found, own[:, 1:], rtol=1e-6, atol=1e-6)
    assert (opened.tower.mean, opened.tower.std) == pretrained.IMAGENET


@pytest.mark.parametrize(
    ("told", "size", "mean"),
    [
        ({"size": {"height": 48, "width": 48}, "image_mean": [0.1, 0.2, 0.3]}, 48, (0.1, 0.2, 0.3)),
        (
            {
                "size": {"shortest_edge": 256},
                "do_center_crop": True,
                "crop_size": {"height": 24, "width": 24},
            },
            24,
            pretrained.CLIP[0],
        ),
        ({"size": {"shortest_edge": 40}, "image_mean": None}, 40, pretrained.CLIP[0]),
        ({"size": 16, "image_mean": [0.5]}, 16, pretrained.CLIP[0]),
        ({}, 32, pretrained.CLIP[0]),
        (None, 32, pretrained.CLIP[0]),
    ],
)
def test_the_images_are_as_the_checkpoint_says(
    told: dict[str, Any] | None, size: int, mean: tuple[float, ...], tmp_path: Path
) -> None:
    CLIPVisionModel(CLIPVisionConfig(**VIT)).save_pretrained(tmp_path)
    if told is not None:
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(told))
    tower = open_tower(str(tmp_path)).tower
    assert (tower.image_size, tower.mean) == (size, mean)
    assert open_tower(str(tmp_path), {"image_size": 64}).tower.image_size == 64


def test_a_size_of_no_whole_tokens_is_rounded_up_where_maps_shrink(tmp_path: Path) -> None:
    """B1's checkpoint names 240 pixels, which are seven and a half tokens."""
    make = FAMILIES["efficientnet"][0]
    make().save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"size": {"height": 240, "width": 240}}))
    assert open_tower(str(tmp_path)).tower.image_size == 256


def test_nothing_is_left_out_of_the_gradients_but_what_tokens_do_not_need(tmp_path: Path) -> None:
    """A pooling head behind the tokens would be saved, loaded and never trained."""
    for family in ("vit", "siglip"):
        FAMILIES[family][0]().save_pretrained(tmp_path / family)
        opened: Any = open_tower(str(tmp_path / family))
        opened(torch.randn(1, 3, 32, 32)).last_hidden_state.sum().backward()
        assert not [name for name, p in opened.named_parameters() if p.grad is None]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (
            lambda: LlamaForCausalLM(LlamaConfig(**TEXT, intermediate_size=16)),
            "'llama' is no vision model",
        ),
        (
            lambda: Siglip2VisionModel(Siglip2VisionConfig(**{**VIT, "num_patches": 16})),
            "takes pixel_attention_mask, spatial_shapes beside the pixels; name a checkpoint of a fixed",
        ),
        (lambda: LevitModel(LevitConfig(image_size=64)), "'levit' cannot be a tower"),
    ],
)
def test_models_that_are_no_towers_are_told(
    make: Callable[[], PreTrainedModel], said: str, tmp_path: Path
) -> None:
    make().save_pretrained(tmp_path)
    with pytest.raises(PosttrainError, match=said):
        open_tower(str(tmp_path))


def test_a_checkpoint_without_the_vision_model_is_told(tmp_path: Path) -> None:
    Dinov2Model(Dinov2Config(**VIT)).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "vit"}))
    with pytest.raises(PosttrainError, match="weights of the vision model are not in the checkpoint"):
        open_tower(str(tmp_path))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda folder: (folder / "config.json").unlink(), "holds no config.json"),
        (lambda folder: (folder / "config.json").write_text("{not json"), "tower '.*'"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "vjt"}'), "tower '.*'"),
        (lambda folder: (folder / "model.safetensors").unlink(), "tower '.*'"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"\x00" * 40), "tower '.*'"),
    ],
)
def test_a_spoilt_folder_is_told(spoil: Callable[[Path], Any], said: str, tmp_path: Path) -> None:
    ViTModel(ViTConfig(**VIT)).save_pretrained(tmp_path)
    spoil(tmp_path)
    with pytest.raises(PosttrainError, match=said) as caught:
        open_tower(str(tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({}, "no model_type None"),
        ({"model_type": "vitt"}, "no model_type 'vitt'; did you mean 'vit'"),
        ({"model_type": "vit", "hidden_size": "wide"}, "hidden_size"),
        ({"model_type": "llama"}, "no vision model"),
        ({"model_type": "clip_vision_model", **VIT, "num_attention_heads": 5}, "hidden size .32."),
    ],
)
def test_a_wrong_configuration_is_told(config: dict[str, Any], said: str) -> None:
    with pytest.raises(PosttrainError, match=said):
        TowerConfig(kind="pretrained", settings={"config": config})

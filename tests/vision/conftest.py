"""Small models of the families on the Hub that see, each with a tokenizer and a processor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import transformers as t
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors

from posttrain.vision.hub import of_images

PARTS = (
    "{% for m in messages %}<|{{ m.role }}|>{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for p in m.content %}{% if p.type == 'image' %}IMAGE{% else %}{{ p.text }}{% endif %}{% endfor %}"
    "{% endif %}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIALS = ["<unk>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>", "<s>", "\n"]
LETTERS = [*map(chr, range(32, 127)), "é"]
PIXELS: dict[str, Any] = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}


def tokenizer_with(tokens: dict[str, str], image: str, bos: str | None = None) -> t.PreTrainedTokenizerFast:
    """Characters are tokens; `tokens` are named ones of their own, as the families' tokenizers have them.

    bos: goes before every text, as Llama's does; the template does not write it."""
    rows = [f"<row_{i + 1}_col_{j + 1}>" for i in range(4) for j in range(4)]
    marks = [*SPECIALS[:6], *tokens.values(), *rows]
    vocab = {
        token: i for i, token in enumerate(dict.fromkeys([*SPECIALS, *tokens.values(), *rows, *LETTERS]))
    }
    raw = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    raw.decoder = decoders.Fuse()
    if bos is not None:
        raw.post_processor = processors.TemplateProcessing(f"{bos} $A", special_tokens=[(bos, vocab[bos])])
    made = t.PreTrainedTokenizerFast(
        tokenizer_object=raw,
        unk_token="<unk>",
        eos_token="<|end|>",
        bos_token=bos,
        pad_token="<|end|>",
        extra_special_tokens=tokens,
        chat_template=PARTS.replace("IMAGE", image),
    )
    made.add_tokens([t.AddedToken(mark, normalized=False, special=True) for mark in marks])
    return made


def id_of(tokenizer: t.PreTrainedTokenizerFast, token: str) -> int:
    found = tokenizer.convert_tokens_to_ids(token)
    assert isinstance(found, int)
    return found


@dataclass
class Family:
    model: Any
    tokenizer: t.PreTrainedTokenizerFast
    processor: Any
    """The family's own."""

    def save(self, folder: Any) -> str:
        self.model.save_pretrained(folder)
        self.processor.save_pretrained(folder)
        return str(folder)


def _text(kind: type, tokenizer: Any, **more: Any) -> Any:
    return kind(
        **{
            "vocab_size": len(tokenizer),
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 1024,
            "bos_token_id": None,
            "eos_token_id": 1,
            "pad_token_id": 1,
            "tie_word_embeddings": False,
            **more,
        }
    )


VIT: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}


def llava() -> Family:
    tokenizer = tokenizer_with({"image_token": "<image>"}, "<image>", bos="<s>")
    config = t.LlavaConfig(
        vision_config=t.CLIPVisionConfig(**VIT, image_size=32, patch_size=8),
        text_config=_text(t.LlamaConfig, tokenizer),
        image_token_index=id_of(tokenizer, "<image>"),
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )
    size: dict[str, Any] = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    processor = t.LlavaProcessor(
        t.CLIPImageProcessorPil(**size, **PIXELS),
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    return Family(t.LlavaForConditionalGeneration(config), tokenizer, processor)


def llava_next() -> Family:
    """Pictures are cut into tiles, more of a long one, which stand in a dimension of their own."""
    tokenizer = tokenizer_with({"image_token": "<image>"}, "<image>")
    grid = [[32, 64], [64, 32], [64, 64]]
    config = t.LlavaNextConfig(
        vision_config=t.CLIPVisionConfig(**VIT, image_size=32, patch_size=8),
        text_config=_text(t.LlamaConfig, tokenizer),
        image_token_index=id_of(tokenizer, "<image>"),
        image_grid_pinpoints=grid,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )
    size: dict[str, Any] = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    processor = t.LlavaNextProcessor(
        t.LlavaNextImageProcessorPil(**size, image_grid_pinpoints=grid, **PIXELS),
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    return Family(t.LlavaNextForConditionalGeneration(config), tokenizer, processor)


def _tiles(model: Any, config: Any, vision: Any, processor: Any, images: Any, **more: Any) -> Family:
    marks = {
        "image_token": "<image>",
        "fake_image_token": "<fake_token_around_image>",
        "global_image_token": "<global-img>",
        "end_of_utterance_token": "<end_of_utterance>",
    }
    tokenizer = tokenizer_with(marks, "<image>")
    whole = config(
        vision_config=vision(**VIT, image_size=32, patch_size=8),
        text_config=_text(t.LlamaConfig, tokenizer),
        image_token_id=id_of(tokenizer, "<image>"),
        scale_factor=2,
        pad_token_id=1,
        tie_word_embeddings=False,
    )
    size: dict[str, Any] = {"size": {"longest_edge": 64}, "max_image_size": {"longest_edge": 32}}
    own = of_images(processor)(
        image_processor=images(**size, **PIXELS), tokenizer=tokenizer, image_seq_len=4, **more
    )
    return Family(model(whole), tokenizer, own)


def idefics3() -> Family:
    return _tiles(
        t.Idefics3ForConditionalGeneration,
        t.Idefics3Config,
        t.Idefics3VisionConfig,
        t.Idefics3Processor,
        t.Idefics3ImageProcessorPil,
    )


def smolvlm() -> Family:
    return _tiles(
        t.SmolVLMForConditionalGeneration,
        t.SmolVLMConfig,
        t.SmolVLMVisionConfig,
        t.SmolVLMProcessor,
        t.SmolVLMImageProcessorPil,
        video_processor=None,
    )


def internvl() -> Family:
    marks = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    tokenizer = tokenizer_with(marks, "<IMG_CONTEXT>\n")
    config = t.InternVLConfig(
        vision_config=t.InternVLVisionConfig(**VIT, image_size=[32, 32], patch_size=[8, 8]),
        text_config=_text(t.Qwen2Config, tokenizer),
        image_token_id=id_of(tokenizer, "<IMG_CONTEXT>"),
        downsample_ratio=0.5,
        tie_word_embeddings=False,
    )
    images = t.GotOcr2ImageProcessorPil(
        size={"height": 32, "width": 32}, crop_to_patches=True, max_patches=4, **PIXELS
    )
    processor = of_images(t.InternVLProcessor)(images, tokenizer, image_seq_length=4)
    return Family(t.InternVLForConditionalGeneration(config), tokenizer, processor)


def _qwen(kind: str, vision: dict[str, Any], sections: list[int], **text: Any) -> Family:
    marks = {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"}
    marks |= {"vision_bos_token": "<|vision_start|>", "vision_eos_token": "<|vision_end|>"}
    tokenizer = tokenizer_with(marks, "<|vision_start|><|image_pad|><|vision_end|>")
    ids = {
        f"{name}_token_id": tokenizer.convert_tokens_to_ids(token)
        for name, token in zip(("image", "video", "vision_start", "vision_end"), marks.values(), strict=True)
    }
    make: Any = t
    config = getattr(make, f"{kind}Config")(
        vision_config={
            "depth": 2,
            "num_heads": 2,
            "in_channels": 3,
            "patch_size": 8,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            **vision,
        },
        text_config={
            **_text(t.Qwen2Config, tokenizer).to_dict(),
            "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": sections},
            **text,
        },
        tie_word_embeddings=False,
        **ids,
    )
    images = t.Qwen2VLImageProcessorPil(
        patch_size=8,
        merge_size=2,
        temporal_patch_size=2,
        size={"shortest_edge": 16 * 16, "longest_edge": 64 * 64},
        **PIXELS,
    )
    cls = {"Qwen2VL": "Qwen2VLProcessor", "Qwen2_5_VL": "Qwen2_5_VLProcessor", "Qwen3VL": "Qwen3VLProcessor"}
    processor = of_images(getattr(make, cls[kind]))(images, tokenizer)
    return Family(getattr(make, f"{kind}ForConditionalGeneration")(config), tokenizer, processor)


def qwen2_vl() -> Family:
    return _qwen("Qwen2VL", {"embed_dim": 32, "hidden_size": 32}, [1, 1, 2])


def qwen2_5_vl() -> Family:
    vision = {"hidden_size": 32, "out_hidden_size": 32, "intermediate_size": 64, "window_size": 32}
    return _qwen("Qwen2_5_VL", vision | {"fullatt_block_indexes": [1]}, [1, 1, 2])


def qwen3_vl() -> Family:
    vision = {"hidden_size": 32, "out_hidden_size": 32, "intermediate_size": 64}
    vision |= {"num_position_embeddings": 16, "deepstack_visual_indexes": [0]}
    return _qwen("Qwen3VL", vision, [2, 1, 1], model_type="qwen3_vl_text", head_dim=8)


FAMILIES: dict[str, Callable[[], Family]] = {
    made.__name__: made
    for made in (llava, llava_next, idefics3, smolvlm, internvl, qwen2_vl, qwen2_5_vl, qwen3_vl)
}
AXES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")


@pytest.fixture
def family() -> Callable[[str], Family]:
    """family("llava"): one picture of 32 x 32 is few tokens; weights are large enough to say something."""

    def make(name: str) -> Family:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            made = FAMILIES[name]()
        with torch.no_grad():
            for parameter in made.model.parameters():
                if parameter.dim() > 1:
                    parameter.mul_(4)
        made.model.eval()
        return made

    return make

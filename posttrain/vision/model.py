"""A language model that sees: a tower, a connector and a language model, as one model of transformers.

It is LLaVA's design (arXiv 2304.08485) with any tower and any connector in the place of its own. Saved, it is
a plain folder, which transformers' Auto classes load once `posttrain.vision` is imported.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from transformers import (
    AddedToken,
    AutoConfig,
    AutoModelForImageTextToText,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling

from posttrain.picture import MARK, native_size
from posttrain.types import PosttrainError
from posttrain.vision import connector as connectors
from posttrain.vision.towers import Tower
from posttrain.vision.towers.model import TowerConfig, TowerModel, described, open_tower


class VisionLanguageConfig(LlavaConfig):
    """LLaVA's, with the connector's kind and how images are brought to the tower's size."""

    model_type = "posttrain_vlm"

    connector: str = "mlp"
    tokens_per_image: int | None = None
    """None: as many as the tower gives."""
    resize: str = "square"
    """A function of posttrain.picture: square, fit, crop or native."""
    most_pixels: int | None = None
    """Of an image that is brought to no square; None: as many as the tower's square has."""
    vision_feature_select_strategy: Literal["default", "full"] = "full"
    vision_feature_layer: int | list[int] = -1


class SeeingModel(LlavaModel):
    """LLaVA's without its head, for images of any shape that the tower takes."""

    def __init__(self, config: Any):
        super().__init__(config)
        tower: Any = self.vision_tower
        made = connector_for(
            tower.tower, config.connector, config.text_config.hidden_size, config.tokens_per_image
        )
        self.multi_modal_projector: Any = made

    def get_image_features(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, pixel_values: Tensor, **kwargs: Any
    ) -> BaseModelOutputWithPooling:
        """pixel_values [B, 3, H, W] -> in pooler_output, embeddings [n, H_lm] of each image."""
        tower: Any = self.vision_tower
        tokens = tower(pixel_values.to(self.dtype)).last_hidden_state
        made = self.multi_modal_projector(tokens, tower.tower.grid(*pixel_values.shape[-2:]))
        return BaseModelOutputWithPooling(last_hidden_state=tokens, pooler_output=list(made))  # pyright: ignore[reportArgumentType]


class VisionLanguageModel(LlavaForConditionalGeneration):
    config_class = VisionLanguageConfig  # pyright: ignore[reportAssignmentType]

    def __init__(self, config: Any):
        super(LlavaForConditionalGeneration, self).__init__(config)
        text = config.text_config
        self.model = SeeingModel(config)
        self.lm_head = nn.Linear(text.hidden_size, text.vocab_size, bias=False)
        self.post_init()


def connector_for(tower: Tower, kind: str, into: int, tokens: int | None) -> connectors.Connector:
    grid = tower.grid(tower.image_size, tower.image_size)
    return connectors.build(kind, width=tower.width, into=into, tokens=tokens, grid=grid)


def check(
    tower: str,
    settings: Mapping[str, Any],
    *,
    connector: str,
    tokens: int | None,
    resize: str,
    most_pixels: int | None,
    hidden: int = 1,
) -> dict[str, int]:
    """What can be told of eyes before any weights are there: how many there would be, by part.

    Args:
        hidden: of the language model.

    Raises:
        PosttrainError: as `assemble` does, but for what only weights show.
    """
    told, *_ = described(tower, settings)
    empty = _empty(told)
    with torch.device("meta"):
        between = connector_for(empty, connector, hidden, tokens)
    if resize == "native":
        _check_native(told.kind, empty, between.block, most_pixels)
    of = {"tower": empty, "connector": between}
    return {part: sum(p.numel() for p in module.parameters()) for part, module in of.items()}


def assemble(
    language: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    tower: str,
    settings: Mapping[str, Any],
    *,
    connector: str = "mlp",
    tokens: int | None = None,
    resize: str = "square",
    most_pixels: int | None = None,
) -> VisionLanguageModel:
    """A language model behind a tower and a fresh connector; its weights and the tower's are taken over.

    The tokenizer gets the token of an image, and the language model's table a row for it.

    Args:
        tower, settings: as `towers.model.open_tower` takes them.
        connector, tokens: as `connector.build` takes them.
        resize, most_pixels: as VisionLanguageConfig has them.

    Raises:
        PosttrainError: no such tower or connector, or settings that do not fit each other.
    """
    seeing = open_tower(tower, settings)
    mark = _mark(language, tokenizer)
    text: Any = language.config
    between = connector_for(seeing.tower, connector, text.hidden_size, tokens)
    if resize == "native":
        _check_native(seeing.config.kind, _empty(seeing.config), between.block, most_pixels)
    config = VisionLanguageConfig(
        vision_config=seeing.config,
        text_config=text,
        image_token_index=mark,
        image_seq_length=between.tokens,
        connector=connector,
        tokens_per_image=tokens,
        resize=resize,
        most_pixels=most_pixels,
        tie_word_embeddings=bool(getattr(text, "tie_word_embeddings", False)),
    )
    with torch.device("meta"):
        model = VisionLanguageModel(config)
    inside: Any = model.model
    inside.vision_tower, inside.multi_modal_projector = seeing, between
    inside.language_model, model.lm_head = language.base_model, cast(Any, language.get_output_embeddings())
    model.generation_config = language.generation_config
    return model.eval()


def _empty(config: TowerConfig) -> Tower:
    """A tower without values."""
    with torch.device("meta"):
        return TowerModel(config).tower.eval()


def _check_native(kind: str, empty: Tower, block: int, most_pixels: int | None) -> None:
    """
    Args:
        empty: the tower, as `_empty` gives it.
        block: patches that the connector makes one token of, each way.

    Raises:
        PosttrainError: the tower takes no image of one token, or none that is wider than high; or the bound
            is below one token.
    """
    step = empty.stride * block
    native_size(step, step, step, most_pixels or empty.image_size**2)
    high = max(step, empty.image_size // step * step)
    for size in ((step, step), (high, high + step)):
        try:
            with torch.device("meta"), torch.no_grad():
                empty(torch.empty(1, 3, *size))
        except Exception as error:  # any tower's way to refuse
            raise PosttrainError(
                f"resize: native gives images of any shape, and the tower {kind!r} does not take one of "
                f"{size[0]} x {size[1]} pixels ({' '.join(str(error).split())[:100]}); take square, fit or "
                "crop, or another tower, such as navit"
            ) from None


def _mark(language: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> int:
    known = tokenizer.get_vocab()
    if MARK not in known:
        tokenizer.add_tokens([AddedToken(MARK, normalized=False, special=True)], special_tokens=True)
        table: Any = language.get_input_embeddings()
        if len(tokenizer) > table.num_embeddings:
            language.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    mark = tokenizer.convert_tokens_to_ids(MARK)
    if not isinstance(mark, int):
        raise PosttrainError(f"the tokenizer takes no token {MARK}")
    return mark


AutoConfig.register(VisionLanguageConfig.model_type, VisionLanguageConfig)
AutoModelForImageTextToText.register(VisionLanguageConfig, VisionLanguageModel)

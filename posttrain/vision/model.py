"""A language model that sees: a tower, a connector and a language model, as one model of transformers.

It is LLaVA's design (arXiv 2304.08485) with any tower and any connector in the place of its own. Saved, it is
a plain folder, which transformers' Auto classes load once `posttrain.vision` is imported.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, cast

import torch
from transformers import (
    AddedToken,
    AutoConfig,
    AutoModelForImageTextToText,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from posttrain.picture import MARK
from posttrain.types import PosttrainError
from posttrain.vision import connector as connectors
from posttrain.vision.towers.model import TowerModel, open_tower


class VisionLanguageConfig(LlavaConfig):
    """LLaVA's, with the connector's kind and how images are brought to the tower's size."""

    model_type = "posttrain_vlm"

    connector: str = "mlp"
    tokens_per_image: int | None = None
    """None: as many as the tower gives."""
    resize: str = "square"
    """A function of posttrain.picture: square, fit or crop."""
    vision_feature_select_strategy: Literal["default", "full"] = "full"
    vision_feature_layer: int | list[int] = -1


class VisionLanguageModel(LlavaForConditionalGeneration):
    config_class = VisionLanguageConfig  # pyright: ignore[reportAssignmentType]

    def __init__(self, config: Any):
        super().__init__(config)
        tower: Any = self.model.vision_tower
        text: Any = config.text_config
        made = connector_for(tower, config.connector, text.hidden_size, config.tokens_per_image)
        self.model.multi_modal_projector = made  # pyright: ignore[reportAttributeAccessIssue]


def connector_for(tower: TowerModel, kind: str, into: int, tokens: int | None) -> connectors.Connector:
    side = tower.tower.image_size
    grid = tower.tower.grid(side, side)
    return connectors.build(kind, width=tower.tower.width, into=into, tokens=tokens, grid=grid)


def assemble(
    language: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    tower: str,
    settings: Mapping[str, Any],
    *,
    connector: str = "mlp",
    tokens: int | None = None,
    resize: str = "square",
) -> VisionLanguageModel:
    """A language model behind a tower and a fresh connector; its weights and the tower's are taken over.

    The tokenizer gets the token of an image, and the language model's table a row for it.

    Args:
        tower, settings: as `towers.model.open_tower` takes them.
        connector, tokens: as `connector.build` takes them.

    Raises:
        PosttrainError: no such tower or connector, or settings that do not fit each other.
    """
    seeing = open_tower(tower, settings)
    mark = _mark(language, tokenizer)
    text: Any = language.config
    between = connector_for(seeing, connector, text.hidden_size, tokens)
    config = VisionLanguageConfig(
        vision_config=seeing.config,
        text_config=text,
        image_token_index=mark,
        image_seq_length=between.tokens,
        connector=connector,
        tokens_per_image=tokens,
        resize=resize,
        tie_word_embeddings=bool(getattr(text, "tie_word_embeddings", False)),
    )
    with torch.device("meta"):
        model = VisionLanguageModel(config)
    inside: Any = model.model
    inside.vision_tower, inside.multi_modal_projector = seeing, between
    inside.language_model, model.lm_head = language.base_model, cast(Any, language.get_output_embeddings())
    model.generation_config = language.generation_config
    return model.eval()


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

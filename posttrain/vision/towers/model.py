"""A tower as a model of transformers: saved as a plain folder, opened by name, usable inside LLaVA."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.image_processing_base import ImageProcessingMixin
from transformers.modeling_outputs import BaseModelOutput

from posttrain import places
from posttrain.types import PosttrainError
from posttrain.vision import towers
from posttrain.vision.towers import pretrained
from posttrain.words import did_you_mean


class TowerConfig(PreTrainedConfig):
    """Which tower, and every setting of it. `hidden_size`, its width, and `image_size` follow from them."""

    model_type = "posttrain_tower"

    kind: str = ""
    settings: dict[str, Any] | None = None
    hidden_size: int | None = None
    image_size: int | None = None
    num_hidden_layers: int = 1

    def __post_init__(self, **kwargs: Any) -> None:
        if self.kind and self.hidden_size is None:
            self.settings = towers.complete(self.kind, self.settings or {})
            with torch.device("meta"):
                tower = towers.build(self.kind, self.settings)
            self.hidden_size, self.image_size = tower.width, tower.image_size
        super().__post_init__(**kwargs)


class TowerModel(PreTrainedModel):
    """A tower, in `.tower`."""

    config_class = TowerConfig
    config: TowerConfig
    main_input_name = "pixel_values"
    input_modalities = "image"
    supports_gradient_checkpointing = True
    # What attends inside of a tower is its own affair: the outer model may use any.
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True

    def __init__(self, config: TowerConfig):
        super().__init__(config)
        self.tower = towers.build(config.kind, config.settings)
        self._without_values = any(tensor.is_meta for tensor in self.tower.parameters())
        self.post_init()

    def forward(
        self, pixel_values: Tensor, return_dict: bool = True, **kwargs: Any
    ) -> BaseModelOutput | tuple[Any, ...]:
        """[B, 3, H, W] -> last_hidden_state [B, N, D], and the same as the one item of hidden_states."""
        tokens = self.tower(pixel_values)
        if not return_dict:
            return tokens, (tokens,)
        return BaseModelOutput(last_hidden_state=tokens, hidden_states=(tokens,))

    def _init_weights(self, module: nn.Module) -> None:
        """Towers give themselves their values: what was made without any, and not loaded, gets them here."""
        if module is not self.tower or not self._without_values:
            return
        theirs = [f"{n}." for n, found in module.named_modules() if isinstance(found, PreTrainedModel)]
        blank = {
            name: tensor
            for name, tensor in (*module.named_parameters(), *module.named_buffers())
            if not name.startswith(tuple(theirs)) and not getattr(tensor, "_is_hf_initialized", False)
        }
        if blank:
            fresh = towers.build(self.config.kind, self.config.settings)
            values = {**dict(fresh.named_parameters()), **dict(fresh.named_buffers())}
            for name, tensor in blank.items():
                init.copy_(tensor, values[name])


def open_tower(name: str, settings: Mapping[str, Any] | None = None) -> TowerModel:
    """A tower by the name of its kind, with fresh weights, or from a folder or Hub id: float32, set to eval.

    Args:
        name: of a kind; a folder that TowerModel saved, or a model that sees with its tower; a folder or Hub
            id of a vision model of transformers, or of one that holds a text model too, such as CLIP.
        settings: of the kind. Over what a folder says they go too, as long as its weights still fit.

    Raises:
        PosttrainError: no such tower, no vision model, wrong settings, weights that lack or do not fit.
    """
    told, where, stored = described(name, settings or {})
    if stored is None:
        fresh: Any = TowerModel(told)
        return fresh.eval()
    try:
        own = getattr(stored, "vision_config", stored)
        if isinstance(own, TowerConfig):
            inside = {} if own is stored else {"key_mapping": {r"^model\.vision_tower\.": ""}}
            return _loaded(TowerModel, where, told, **inside)
        inner = pretrained.vision_part(stored)
        model = _loaded(pretrained.image_model(inner), where, inner, **pretrained.without_pooler(inner))
    except PosttrainError as error:
        raise PosttrainError(f"tower {name!r}: {error}") from None
    with torch.device("meta"):
        tower: Any = TowerModel(told)
    tower.tower.hold(model)
    return tower.eval()


def described(name: str, settings: Mapping[str, Any]) -> tuple[TowerConfig, str, Any]:
    """The configuration of what `open_tower` opens; of one that is no kind, also the folder or Hub id and the
    configuration there (else "" and None). Raises as that, but for weights."""
    if name in towers.names():
        return TowerConfig(kind=name, settings=dict(settings)), "", None
    try:
        where = places.resolve(name)
    except PosttrainError as error:
        hint = did_you_mean(name, towers.names(), "; did you mean")
        raise PosttrainError(f"no kind of tower ({', '.join(towers.names())}){hint}; {error}") from None
    try:
        stored: Any = AutoConfig.from_pretrained(where)
    except (OSError, ValueError) as error:
        raise PosttrainError(f"tower {name!r}: {str(error).splitlines()[0]}") from None
    own = getattr(stored, "vision_config", stored)
    try:
        if isinstance(own, TowerConfig):
            return TowerConfig(kind=own.kind, settings={**(own.settings or {}), **settings}), where, stored
        trained = dict(zip(("mean", "std"), pretrained.usual(stored), strict=True))
        inner = pretrained.vision_part(stored).to_diff_dict()
        given = {"config": inner, **trained, **_images(where), **settings}
        return TowerConfig(kind="pretrained", settings=given), where, stored
    except PosttrainError as error:
        raise PosttrainError(f"tower {name!r}: {error}") from None


def _loaded(kind: Any, where: str, config: Any, **more: Any) -> Any:
    """transformers' from_pretrained, but that a weight which lacks or does not fit is an error."""
    reports = logging.getLogger("transformers.modeling_utils")  # it prints a table of a text model's weights
    silent, reports.disabled = reports.disabled, True
    try:
        model, said = kind.from_pretrained(
            where,
            config=config,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **more,
        )
    except (OSError, RuntimeError, SafetensorError) as error:
        raise PosttrainError(str(error).strip().splitlines()[0]) from None
    finally:
        reports.disabled = silent
    if lacking := sorted(said["missing_keys"]):
        raise PosttrainError(
            f"{len(lacking)} weights of the vision model are not in the checkpoint, {lacking[0]} among them; "
            "name the checkpoint of the vision model itself"
        )
    for name, stored, wanted in sorted(said["mismatched_keys"]):
        raise PosttrainError(f"{name} is {list(stored)} in the checkpoint, by its settings {list(wanted)}")
    return model


def _images(where: str) -> dict[str, Any]:
    """Size, mean and std of the images, where the checkpoint tells them."""
    try:
        told, _ = ImageProcessingMixin.get_image_processor_dict(where)
    except OSError:
        return {}
    found: dict[str, Any] = {}
    size = told.get("crop_size") if told.get("do_center_crop") else told.get("size")
    if isinstance(size, dict):
        size = size.get("height") or size.get("shortest_edge")
    if isinstance(size, int):
        found["image_size"] = size
    for key in ("mean", "std"):
        if len(told.get(f"image_{key}") or ()) == 3:
            found[key] = tuple(told[f"image_{key}"])
    return found


AutoConfig.register(TowerConfig.model_type, TowerConfig)
AutoModel.register(TowerConfig, TowerModel)

"""Where low-rank adapters go: on every linear layer of a language model, or of the parts of one that sees."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from posttrain.kinds import Lora, SftTrain
from posttrain.multimodal import parts, sees
from posttrain.recipe import Part
from posttrain.types import PosttrainError


def adapters_for(model: PreTrainedModel, lora: Lora, settings: SftTrain) -> Any:
    """peft's LoraConfig. The connector of a model that sees is trained whole; what has rate 0 gets nothing.

    Raises:
        PosttrainError: peft is missing, or a part that lora.parts names is not there or has no linear layer.
    """
    try:
        from peft import LoraConfig
    except ImportError:
        raise PosttrainError("lora needs peft; run: pip install peft") from None
    how: dict[str, Any] = {"r": lora.rank, "lora_alpha": lora.alpha, "lora_dropout": lora.dropout}
    if not sees(model):
        if lora.parts != ("language",):
            raise PosttrainError("lora.parts: the model reads text alone; leave it out")
        return LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM", **how)
    found = parts(model)
    linear: dict[Part, list[str]] = {part: _linear(model, found[part]) for part in lora.parts}
    for part, names in linear.items():
        if not names:
            raise PosttrainError(f"lora.parts: the model's {part} has no linear layer; leave it out")
    learn = [name for part in linear if settings.rates.get(part, 1) for name in linear[part]]
    if not learn:
        raise PosttrainError("lora.parts: each of them has rate 0, so there is nothing to adapt")
    whole = _outermost(model, found["connector"]) if settings.rates.get("connector", 1) else []
    return LoraConfig(target_modules=learn, modules_to_save=whole or None, task_type="CAUSAL_LM", **how)


def _linear(model: PreTrainedModel, some: list[nn.Parameter]) -> list[str]:
    """The linear layers of a part, but the head, whose weight TRL reads by itself, as does torch's attention
    that of its last layer."""
    ours, head = {id(p) for p in some}, model.get_output_embeddings()
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
        and not isinstance(module, NonDynamicallyQuantizableLinear)
        and module is not head
        and id(module.weight) in ours
    ]


def _outermost(model: PreTrainedModel, some: list[nn.Parameter]) -> list[str]:
    """The modules that hold these parameters and no others, none of them within another."""
    ours, names = {id(p) for p in some}, []
    for name, module in model.named_modules():
        held = {id(p) for p in module.parameters()}
        if held and held <= ours and not any(name.startswith(f"{outer}.") for outer in names):
            names.append(name)
    return names

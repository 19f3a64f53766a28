"""AdamW over a policy's float32 weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers import PreTrainedModel

from posttrain.multimodal import parts
from posttrain.types import PosttrainError


def groups(model: PreTrainedModel, learning_rate: float, rates: Mapping[Any, float]) -> list[dict[str, Any]]:
    """A model's parameters as an optimizer takes them, a group for each rate; parts of rate 0 are frozen.

    A group's `scale` is what its rate is to `learning_rate`, whatever a schedule makes of that.

    Raises:
        PosttrainError: rates for parts that the model has not, or none above 0.
    """
    if not rates:
        return [{"params": list(model.parameters()), "scale": 1.0}]
    found = {part: some for part, some in parts(model).items() if some}
    for part in rates:
        if part not in found:
            raise PosttrainError(f"rates.{part}: the model has no such part; it has {', '.join(found)}")
    made = []
    for part, some in found.items():
        rate = rates.get(part, learning_rate)
        if rate == 0:
            for p in some:
                p.requires_grad_(False)
        elif learning := [p for p in some if p.requires_grad]:
            made.append({"params": learning, "scale": rate / learning_rate})
    if not made:
        raise PosttrainError("rates: every part of the model is kept as it is, so there is nothing to train")
    return made


def adamw(
    policy: PreTrainedModel,
    learning_rate: float,
    weight_decay: float = 0.0,
    rates: Mapping[Any, float] | None = None,
) -> torch.optim.AdamW:
    """The optimizer, with its averages made at once, all zero; raises as `groups`.

    Left to itself it makes them in its first step, in the holes that the step's activations have just left,
    and the second step's activations then need new memory.
    """
    of = groups(policy, learning_rate, rates or {})
    optimizer = torch.optim.AdamW(of, lr=learning_rate, weight_decay=weight_decay, fused=True)
    for group in optimizer.param_groups:
        for p in group["params"]:
            if p.requires_grad:
                optimizer.state[p] = {
                    "step": torch.zeros((), dtype=torch.float32, device=p.device),
                    "exp_avg": torch.zeros_like(p),
                    "exp_avg_sq": torch.zeros_like(p),
                }
    return optimizer

"""AdamW over a policy's float32 weights."""

from __future__ import annotations

import torch
from torch import nn


def adamw(policy: nn.Module, learning_rate: float, weight_decay: float = 0.0) -> torch.optim.AdamW:
    """The optimizer, with its averages made at once, all zero.

    Left to itself it makes them in its first step, in the holes that the step's activations have just left,
    and the second step's activations then need new memory.
    """
    optimizer = torch.optim.AdamW(
        policy.parameters(), lr=learning_rate, weight_decay=weight_decay, fused=True
    )
    for group in optimizer.param_groups:
        for p in group["params"]:
            if p.requires_grad:
                optimizer.state[p] = {
                    "step": torch.zeros((), dtype=torch.float32, device=p.device),
                    "exp_avg": torch.zeros_like(p),
                    "exp_avg_sq": torch.zeros_like(p),
                }
    return optimizer

"""Linear layers with weights laid out once for oneDNN, for decoding on a CPU in bfloat16.

With few rows a product spends much of its time rearranging the weight, every time; decoding calls the same
weights thousands of times between two updates. The operators are those that torch's own inductor uses when it
freezes a model (torch 2.13, `torch.ops.mkldnn`); where they are missing, layers stay as they are.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

ROWS = 64  # the batch that the layout is chosen for; others work too


class PrepackedLinear(nn.Module):
    """A frozen linear layer that keeps only the rearranged weight."""

    def __init__(self, weight: Tensor, bias: Tensor | None):
        super().__init__()
        self.load(weight, bias)

    def load(self, weight: Tensor, bias: Tensor | None) -> None:
        """Take over weights of any type."""
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach().to(torch.bfloat16), ROWS)
        self.bias = None if bias is None else bias.detach().to(torch.bfloat16)

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise.default(x, self.packed, self.bias, "none", [], "")


def usable(device: torch.device, dtype: torch.dtype) -> bool:
    if device.type != "cpu" or dtype != torch.bfloat16:
        return False
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")


def prepack(model: nn.Module) -> dict[str, PrepackedLinear]:
    """Replace every nn.Linear in a model; -> the new layers by their module name."""
    linears = {name: module for name, module in model.named_modules() if type(module) is nn.Linear}
    packed = {name: PrepackedLinear(module.weight, module.bias) for name, module in linears.items()}
    for name, layer in packed.items():
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, layer)
    return packed

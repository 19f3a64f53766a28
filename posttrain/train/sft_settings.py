"""Settings of supervised fine-tuning. No torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from posttrain.settings import Section, Wrong

Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Whole = Annotated[int, Field(ge=0)]


class Lora(Section):
    """Low-rank adapters on every linear layer but the head (arXiv 2106.09685); merged when training ends."""

    rank: Count = 16
    alpha: Positive = 32.0
    """The adapters' product counts alpha / rank times."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0


class SftTrain(Section):
    epochs: Positive = 1.0
    """Passes over the examples; 0.5 ends half-way."""
    batch: Count = 8
    """Examples of an update, over all processes together; packed rows where `packing` is true."""
    rows: Count = 4
    """Examples of a forward pass in one process."""
    learning_rate: Positive = 2e-5
    warmup: Whole = 0
    """In updates."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    max_length: Annotated[int, Field(ge=2)] = 1024
    """In tokens; what is longer is cut at its end."""
    packing: bool = False
    """Put whole examples side by side in rows of `max_length` tokens; none sees another."""
    loss: Literal["completion", "all"] = "completion"
    """completion: answers alone carry loss. all: prompts too."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    max_grad_norm: Positive = 1.0
    lora: Lora | None = None
    """null: all weights learn."""
    activation_checkpointing: bool = False
    """Keep each layer's input alone and compute the rest again for the gradient: less memory, more time."""
    checkpoint_every: Whole = 0
    """In updates; 0: only at the end, or when stopped."""
    keep: Count = 2

    @model_validator(mode="after")
    def _fits(self) -> SftTrain:
        if self.batch % self.rows:
            raise Wrong("batch", f"is {self.batch}, no multiple of rows ({self.rows}), which make it up")
        return self

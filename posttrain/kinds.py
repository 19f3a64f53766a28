"""The kinds of stages and their settings; those of reinforcement learning are in recipe.py. No torch."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from posttrain.recipe import (
    Count,
    Evaluation,
    Judged,
    Model,
    Positive,
    Rates,
    Recipe,
    Sampling,
    Share,
    Stage,
    Text,
    Trackers,
    Trained,
    Whole,
)
from posttrain.settings import Section, Wrong
from posttrain.words import did_you_mean


class Eval(Judged):
    """A model's accuracy on held-out rows; it learns nothing."""

    evaluate: Evaluation = Evaluation()


class Lora(Section):
    """Low-rank adapters on every linear layer but the head (arXiv 2106.09685); merged when training ends."""

    rank: Count = 16
    alpha: Positive = 32.0
    """The adapters' product counts alpha / rank times."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    parts: Annotated[tuple[Literal["tower", "language"], ...], Field(strict=False, min_length=1)] = (
        "language",
    )
    """Of a model that sees, where the adapters are. Its connector has none: it is trained whole."""


class SftTrain(Section):
    epochs: Positive = 1.0
    """Passes over the examples; 0.5 ends half-way."""
    batch: Count = 8
    """Examples of an update, over all processes together; packed rows where `packing` is true."""
    rows: Count = 4
    """Examples of a forward pass in one process."""
    learning_rate: Positive = 2e-5
    rates: Rates = Field(default_factory=dict)
    """Learning rates of parts of a model that sees: tower, connector, language; 0 keeps one as it is."""
    warmup: Whole = 0
    """In updates."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    max_length: Annotated[int, Field(ge=2)] = 1024
    """In tokens; what is longer is cut at its end, and left out where that would cut a picture off."""
    packing: bool = False
    """Put whole examples side by side in rows of `max_length` tokens; none sees another. Words alone."""
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


class Sft(Judged):
    """Supervised fine-tuning on rows that hold what to write."""

    gives: ClassVar[Literal["model", "rows"] | None] = "model"

    completion: Text = "{completion}"
    """What the model shall write; {column} stands for a column of the row."""
    train: SftTrain = SftTrain()
    evaluate: Trained = Trained()
    trackers: Trackers = ()

    @model_validator(mode="after")
    def _fits(self) -> Sft:
        sources = (self.data.train, *self.data.also)
        shown = [self.data.images if source.images is None else source.images for source in sources]
        if self.train.packing and any(shown):
            raise Wrong("train.packing", "is true, but rows with pictures are not packed; set it to false")
        return self


class Keep(Section):
    """Which completions become rows. One that was cut off, or repeats another of its prompt, never does."""

    least: dict[str, float] = Field(default_factory=dict)
    """By reward: what a completion must have at least; where the rule does not apply, it passes."""
    each: Count = 1
    """Rows of one prompt at most."""
    hardest: Share = 0.0
    """A prompt's pass rate must be above this, "pass" being all of `least`."""
    easiest: Share = 1.0
    """A prompt's pass rate may be no more than this; 0.9 leaves out what the model always gets right."""
    rows: Count | None = None
    """So many at most, spread evenly over the fifths of the pass rate; null: all."""


class Sample(Judged):
    """Rejection sampling: completions of the train rows' prompts, of which the good ones become rows."""

    gives: ClassVar[Literal["model", "rows"] | None] = "rows"

    sampling: Sampling = Sampling()
    keep: Keep = Keep()

    @model_validator(mode="after")
    def _fits(self) -> Sample:
        names = [reward.use for reward in self.rewards]
        for name in self.keep.least:
            if name not in names:
                hint = did_you_mean(name, names) or f"the rewards are {', '.join(names)}"
                raise Wrong("keep.least", f"names {name!r}, which is no reward of the stage; {hint}")
        if self.keep.hardest >= self.keep.easiest:
            raise Wrong("keep.easiest", f"is {self.keep.easiest}, not above hardest ({self.keep.hardest})")
        return self


class Export(Stage):
    """A model as a plain Hugging Face folder in the type that it will be served in."""

    gives: ClassVar[Literal["model", "rows"] | None] = "model"

    model: Model
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"


KINDS: dict[str, type[Stage]] = {"sft": Sft, "grpo": Recipe, "sample": Sample, "eval": Eval, "export": Export}

"""A recipe: everything that a run is made of, in one YAML file.

Reading it is strict. An unknown key, a value of the wrong type and a combination that cannot work are refused
with the file, the line and the key, before anything heavy is loaded. No torch here.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from posttrain import content, settings
from posttrain.recipe_data import Count, Data, Positive, Share, Text, Whole
from posttrain.settings import Section, Wrong
from posttrain.verify import Form

Loss = Literal["grpo", "dr_grpo", "dapo", "gspo", "cispo"]


class Vision(Section):
    """The eyes that a language model is given: a picture becomes `tokens` tokens in front of it."""

    tower: Text
    """A kind of posttrain/vision/towers/, with fresh weights; a folder or a Hub id, with its own."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """The tower's."""
    connector: Text = "mlp"
    """linear, mlp, pixel_shuffle, resampler or merge."""
    tokens: Count | None = None
    """Tokens of a picture; null: as many as the tower gives."""
    resize: Literal["square", "fit", "crop", "native"] = "square"
    """How a picture gets the tower's size: stretched, padded with grey, or cut off. native: it keeps its own
    size and shape, and comes to as many tokens as they ask for."""
    most_pixels: Count | None = None
    """With native, of a picture that is larger; null: as many as the tower's square has."""

    @model_validator(mode="after")
    def _fits(self) -> Vision:
        if self.most_pixels is not None and self.resize != "native":
            raise Wrong(
                "most_pixels", f"is for resize: native; {self.resize} gives every picture the same size"
            )
        return self


class Model(Section):
    name: Text
    """`smollm2-135m`, `tiny`, `small`, a local folder or a Hub id; among stages also `stage:NAME`."""
    compute: Literal["auto", "bfloat16", "float32"] = "auto"
    """What matrix products run in; the master weights are float32 whatever is said here."""
    tokens: Annotated[tuple[Text, ...], Field(strict=False)] = ()
    """Texts such as <think> that become one token each where they are not yet; they stay readable text."""
    layers: Count | None = None
    """Only so many of the model's layers, evenly spread, first and last among them: a small student."""
    vision: Vision | None = None
    """For a language model: null for one that sees already, or that reads text alone. What stages share of it
    does not reach a stage that begins with an earlier one's model."""


class Reward(Section):
    use: Text
    """`accuracy` (ships), `./my_reward.py:fn` (your file) or `package.module:fn` (installed)."""
    weight: float = 1.0
    args: dict[str, Any] = Field(default_factory=dict)
    where: dict[str, Any] = Field(default_factory=dict)
    """For rows with these values in these columns, such as {task: count}; to others it does not apply."""


class Sampling(Section):
    completions: Annotated[int, Field(ge=2)] = 8
    """A group: completions of one prompt, compared with each other."""
    max_tokens: Count = 128
    temperature: Annotated[float, Field(ge=0)] = 1.0
    top_k: Whole = 0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    min_p: Share = 0.0


Part = Literal["tower", "connector", "language"]
Rates = dict[Part, Annotated[float, Field(ge=0)]]


class Train(Section):
    steps: Whole = 30
    """0 evaluates only."""
    prompts: Count = 8
    """Groups a step, over all processes together."""
    learning_rate: Positive = 2e-5
    rates: Rates = Field(default_factory=dict)
    """Learning rates of parts of a model that sees: tower, connector, language; 0 keeps one as it is."""
    warmup: Whole = 0
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    loss: Loss = "grpo"
    advantage: Literal["std", "mean", "leave_one_out"] | None = None
    """null: as the loss's paper has it, like the two clips."""
    clip_low: Share | None = None
    clip_high: Positive | None = None
    beta: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the KL penalty to the untrained model."""
    inner: Count = 1
    """Updates from the same completions."""
    mask_truncated: bool = False
    rounds: Count = 3
    """Dynamic sampling: at most so many rounds of prompts a step until enough groups carry signal."""
    max_grad_norm: Positive = 1.0
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    tokens: Count = 4096
    """Tokens of a micro-batch, packed."""
    activation_checkpointing: bool = False
    """Keep each layer's input alone and compute the rest again for the gradient: less memory, more time."""
    importance_cap: Positive | None = 2.0
    """Bound of the weights that correct the engine's probabilities to the trainer's; null: no correction."""
    ahead: bool = False
    """Draw the next step's completions while this step learns, by weights one step older; one process."""
    checkpoint_every: Whole = 0
    """In steps; 0: only at the end, or when stopped."""
    keep: Count = 2

    @model_validator(mode="after")
    def _fits(self) -> Train:
        if self.loss == "cispo" and self.clip_low is not None:
            raise Wrong("clip_low", "the cispo loss has no lower clip; leave it out")
        if self.loss == "cispo" and self.clip_high is not None and self.clip_high < 1:
            raise Wrong(
                "clip_high", f"is {self.clip_high}: for cispo it bounds the ratio itself; choose 1 or more"
            )
        if self.ahead and self.importance_cap is None:
            raise Wrong(
                "importance_cap",
                "is null, but with train.ahead completions are of older weights, and this corrects for it; "
                "set it to 2.0, say, or train.ahead to false",
            )
        if self.ahead and self.activation_checkpointing:
            raise Wrong(
                "activation_checkpointing",
                "switches the model's layers while train.ahead generates; set one of the two to false",
            )
        if self.warmup > self.steps > 0:
            raise Wrong("warmup", f"is {self.warmup} steps, longer than the run ({self.steps} steps)")
        return self


class Evaluation(Section):
    form: Form | None = "the_answer_is"
    """The form that counts as strictly right; null: what the first reward says."""
    max_tokens: Count | None = None
    """null: as in sampling; 128 for a stage that draws nothing."""
    samples: Whole = 4
    """Sampled completions a prompt beside the greedy one."""
    temperature: Positive = 1.0


class Trained(Evaluation):
    before: bool = True
    """Measure the model that the stage begins with too; false where an earlier stage has done so."""


class Evaluate(Trained):
    every: Whole = 10
    """In steps; 0: only before and after."""


def _is_folder_name(name: str) -> str:
    if name.startswith(".") or "/" in name or not name.isprintable():
        raise ValueError(f"names a folder, so it has no slash and does not start with a dot, unlike {name!r}")
    return name


FolderName = Annotated[Text, AfterValidator(_is_folder_name)]


class Stage(Section):
    """What every kind of stage says of itself; a recipe without `stages:` is one stage."""

    gives: ClassVar[Literal["model", "rows"] | None] = None
    """What later stages can take from it as `stage:NAME`."""

    name: FolderName
    seed: Whole = 0
    output: Text
    """The folder of results; runs/NAME where the recipe does not say."""

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, data: Any) -> Any:
        if isinstance(data, dict) and isinstance(data.get("name"), str) and data.get("output") is None:
            data = data | {"output": f"runs/{data['name']}"}
        return data


def _is_list(value: Any) -> Any:
    if not isinstance(value, (list, tuple)):
        raise ValueError("should be a list: each item on its own line, after a dash")
    return value


def _once(items: tuple[Any, ...]) -> tuple[Any, ...]:
    names = [item.use if isinstance(item, Reward) else item for item in items]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"names {', '.join(sorted(twice))} twice")
    return items


_LIST = (Field(strict=False), BeforeValidator(_is_list), AfterValidator(_once))
Rewards = Annotated[tuple[Reward, ...], Field(min_length=1), *_LIST]
Trackers = Annotated[tuple[Literal["tensorboard", "wandb", "trackio"], ...], *_LIST]


class Judged(Stage):
    """A stage in which a model answers prompts, and rewards judge what it wrote."""

    model: Model
    data: Data
    rewards: Rewards
    """The first one says what is right."""
    reward_deadline: Positive = 10.0
    """Seconds that one call of a reward function may take."""
    reward_workers: Count = 1
    """Processes that share each reward's rows, whole groups each; every one of them loads the rewards."""


class Recipe(Judged):
    """Reinforcement learning (GRPO). See recipes/ for examples and the sections' classes for each key."""

    gives: ClassVar[Literal["model", "rows"] | None] = "model"

    sampling: Sampling = Sampling()
    train: Train = Train()
    evaluate: Evaluate = Evaluate()
    trackers: Trackers = ()

    @model_validator(mode="after")
    def _fits(self) -> Recipe:
        if self.train.steps:
            for key, off in (("top_k", 0), ("top_p", 1.0), ("min_p", 0.0)):
                if getattr(self.sampling, key) != off:
                    raise Wrong(
                        f"sampling.{key}",
                        "leaves tokens out while sampling, and the trainer cannot correct for those; "
                        f"set it to {off} (it is for evaluation alone, train.steps: 0)",
                    )
            if self.sampling.temperature == 0:
                raise Wrong(
                    "sampling.temperature", "is 0: all completions of a prompt would be equal; choose above 0"
                )
        if self.train.tokens < self.sampling.max_tokens:
            raise Wrong(
                "train.tokens",
                f"is {self.train.tokens}: one completion may have {self.sampling.max_tokens} tokens",
            )
        return self


def load_recipe(path_or_name: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe from a file, or a shipped one by name, with `key.sub=value` overrides laid over it.

    Raises:
        PosttrainError: naming file, line and key, and the nearest right key or name.
    """
    return settings.load(Recipe, locate(path_or_name), overrides)


def dump_recipe(recipe: Recipe) -> str:
    """The recipe as YAML with every default written out; `load_recipe` reads it back to an equal recipe."""
    return settings.dump(recipe)


def locate(name: str) -> Path:
    """The file of a recipe: a path, or the name of a shipped one."""
    return content.locate("recipes", name)

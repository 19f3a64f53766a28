"""A recipe: everything that a run is made of, in one YAML file.

Reading it is strict. An unknown key, a value of the wrong type and a combination that cannot work are refused
with the file, the line and the key, before anything heavy is loaded. No torch here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from posttrain import content, settings
from posttrain.settings import Section, Wrong
from posttrain.verify import Form

Loss = Literal["grpo", "dr_grpo", "dapo", "gspo", "cispo"]
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Whole = Annotated[int, Field(ge=0)]
Text = Annotated[str, Field(min_length=1)]

GENERATOR, HUB, STAGE, FILES = "reasoning_gym:", "hub:", "stage:", (".jsonl", ".parquet")
SCENES, FOLDER = "scenes:", "folder:"
MADE = (GENERATOR, SCENES)


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
    """`smollm2-135m`, `tiny`, a local folder or a Hub id; in a recipe of stages also `stage:NAME`."""
    compute: Literal["auto", "bfloat16", "float32"] = "auto"
    """What matrix products run in; the master weights are float32 whatever is said here."""
    tokens: Annotated[tuple[Text, ...], Field(strict=False)] = ()
    """Texts such as <think> that become one token each where they are not yet; they stay readable text."""
    layers: Count | None = None
    """Only so many of the model's layers, evenly spread, first and last among them: a small student."""
    vision: Vision | None = None
    """For a language model: null for one that sees already, or that reads text alone. What stages share of it
    does not reach a stage that begins with an earlier one's model."""


class Source(Section):
    """Where rows come from, in their own order.

    `reasoning_gym:NAME` makes `size` rows from `seed` and `args`.
    `scenes:NAME` draws `size` pictures from `seed` and `args`, and asks about each; see posttrain/scenes/.
    `rows.jsonl` and `rows.parquet` are files; a relative path starts where posttrain is started.
    `folder:PATH` is a folder of images, with a row for each in its metadata.jsonl.
    `hub:OWNER/NAME` takes `config`, `split` (train and test if not said) and `revision`.
    `stage:NAME` is the rows that an earlier stage of the recipe wrote.
    For all but the first two, `size` keeps the first rows only.
    """

    source: Text
    prompt: Text | None = None
    """For these rows instead of data.prompt."""
    images: Annotated[tuple[Text, ...], Field(strict=False)] | None = None
    """For these rows instead of data.images; [] for rows of words alone among rows with pictures."""
    args: dict[str, Any] = Field(default_factory=dict)
    size: Count | None = None
    seed: Whole | None = None
    config: str | None = None
    split: str | None = None
    revision: str | None = None

    @model_validator(mode="after")
    def _fits(self) -> Source:
        if self.source.startswith(MADE):
            needed, unread = ("size", "seed"), ("config", "split", "revision")
        elif self.source.startswith(HUB):
            needed, unread = (), ("args", "seed")
        elif self.source.startswith((STAGE, FOLDER)) or self.source.endswith(FILES):
            needed, unread = (), ("args", "seed", "config", "split", "revision")
        else:
            raise Wrong(
                "source",
                f"{self.source!r} is neither {GENERATOR}NAME, {SCENES}NAME, {HUB}OWNER/NAME, {FOLDER}PATH, "
                f"a .jsonl nor a .parquet file, nor (in a recipe of stages) {STAGE}NAME",
            )
        for key in needed:
            if getattr(self, key) is None:
                raise Wrong(
                    key, f"is missing: {self.source} makes its rows, say how many (size) and from what seed"
                )
        for key in unread:
            if getattr(self, key) not in (None, {}):
                raise Wrong(key, f"means nothing to {self.source}; leave it out")
        for key in ("seed", "size"):
            if key in self.args:
                raise Wrong("args", f"{key} belongs beside args, not inside")
        return self


class Data(Section):
    train: Source
    heldout: Source
    """Takes source, config, revision, args and images from `train` where it names no source of its own."""
    also: Annotated[tuple[Source, ...], Field(strict=False)] = ()
    """More rows to train on, such as those of another task."""
    prompt: Text = "{question}"
    """What the model reads; {column} stands for a column of the row, {{column}} for the word in braces."""
    system: Text | None = None
    chat: bool = True
    """True: a user message through the model's chat template. False: raw text that the model continues."""
    question: Text = "question"
    """The column that {question} stands for."""
    answer: Text | None = "answer"
    """The column of the right answer; null where there is none."""
    images: Annotated[tuple[Text, ...], Field(strict=False)] = ()
    """The columns of pictures, a picture or a list of them each. Each stands where the text says <image>;
    where it says that nowhere, all stand before it."""

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        train, heldout = data.get("train"), data.get("heldout")
        if isinstance(train, dict) and isinstance(heldout, dict):
            if "source" not in heldout:
                shared = {
                    k: train[k] for k in ("source", "config", "revision", "args", "images") if k in train
                }
                heldout = shared | heldout
            train, heldout = _with_split(train, "train"), _with_split(heldout, "test")
            data = data | {"train": train, "heldout": heldout}
        return data

    @model_validator(mode="after")
    def _fits(self) -> Data:
        if self.system is not None and not self.chat:
            raise Wrong("system", "needs chat: true; raw text has no system message")
        if self.answer is not None and self.answer in columns_in(self.prompt):
            raise Wrong(
                "prompt", f"{{{self.answer}}} would show the answer; write {{{{{self.answer}}}}} for the word"
            )
        self._shows_pictures()
        a, b = self.train, self.heldout
        if (a.source, a.config, a.revision) != (b.source, b.config, b.revision):
            return self
        if a.source.startswith(MADE):
            if a.seed == b.seed:
                raise Wrong(
                    "heldout.seed", f"is train's seed {a.seed} too, which makes the same rows; choose another"
                )
        elif a.split == b.split:
            raise Wrong("heldout", f"is the same rows as train ({a.source}); name another file or split")
        return self

    def _shows_pictures(self) -> None:
        sources = {"train": self.train, "heldout": self.heldout}
        sources |= {f"also.{i}": source for i, source in enumerate(self.also)}
        for key, source in sources.items():
            images = self.images if source.images is None else source.images
            if not images and source.images is None and source.source.startswith((SCENES, FOLDER)):
                raise Wrong(
                    "images", f"is missing: the pictures of {source.source} are in the column 'image'"
                )
            for named in columns_in(source.prompt or self.prompt):
                column = self.question if named == "question" else named
                if column in images:
                    at = f"{key}.prompt" if source.prompt else "prompt"
                    raise Wrong(
                        at, f"{{{named}}} is a picture; write <image> where it belongs, or leave it out"
                    )


def _with_split(source: dict[str, Any], split: str) -> dict[str, Any]:
    name = source.get("source")
    return {"split": split} | source if isinstance(name, str) and name.startswith(HUB) else source


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


_COLUMN = re.compile(r"\{\{([^\W\d]\w*)\}\}|\{([^\W\d]\w*)\}")  # no {1}: that is LaTeX


def columns_in(template: str) -> list[str]:
    """The columns that a prompt template names: ["x"] for "Solve {x} in \\boxed{}, not {{this}}"."""
    return [column for _, column in _COLUMN.findall(template) if column]


def fill(template: str, row: dict[str, str]) -> str:
    """Put a row's texts in place of the template's {columns}; other braces stay as they are."""
    return _COLUMN.sub(lambda m: f"{{{m[1]}}}" if m[1] else row[m[2]], template)


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

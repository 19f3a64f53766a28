"""What a recipe says of its rows: where they come from, and how they are asked. No torch here."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import Field, model_validator

from posttrain.settings import Section, Wrong

Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Whole = Annotated[int, Field(ge=0)]
Text = Annotated[str, Field(min_length=1)]

GENERATOR, HUB, STAGE, FILES = "reasoning_gym:", "hub:", "stage:", (".jsonl", ".parquet")
SCENES, FOLDER = "scenes:", "folder:"
MADE = (GENERATOR, SCENES)


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


_COLUMN = re.compile(r"\{\{([^\W\d]\w*)\}\}|\{([^\W\d]\w*)\}")  # no {1}: that is LaTeX


def columns_in(template: str) -> list[str]:
    """The columns that a prompt template names: ["x"] for "Solve {x} in \\boxed{}, not {{this}}"."""
    return [column for _, column in _COLUMN.findall(template) if column]


def fill(template: str, row: dict[str, str]) -> str:
    """Put a row's texts in place of the template's {columns}; other braces stay as they are."""
    return _COLUMN.sub(lambda m: f"{{{m[1]}}}" if m[1] else row[m[2]], template)

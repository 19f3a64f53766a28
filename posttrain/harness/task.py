"""An evaluation task: what is asked, how it is asked, and what says whether an answer is right.

One YAML file a task; those in eval/ ship. Reading one is strict, as reading a recipe is.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import Field, model_validator

from posttrain import content, settings
from posttrain.recipe import Count, FolderName, Positive, Share, Source, Text, Whole, columns_in
from posttrain.settings import Section, Wrong

Texts = Annotated[tuple[Text, ...], Field(strict=False)]
_METRIC = re.compile(r"accuracy|(?:avg|pass|cons|best_of)@([1-9]\d*)|g_pass@([1-9]\d*)_(?:0\.\d+|1\.0)")


class Choices(Section):
    """A multiple-choice question: {choices} in the prompt is a line for each option, "A) …".

    The letter of the right option becomes the answer, whatever the task's `answer` says.
    """

    columns: Annotated[Texts, Field(min_length=1)]
    """The options, a column each; or the one column that holds a list of them."""
    right: Text | None = None
    """The column of the right option's number, from 0; null: the first option is the right one."""
    shuffle: bool = True
    """Put the options in an order of the row's own, which hangs on its id and on nothing else."""

    @model_validator(mode="after")
    def _fits(self) -> Choices:
        if self.right is None and not self.shuffle:
            raise Wrong("shuffle", "is false, and the right option comes first: every answer would be A")
        return self


class FewShot(Section):
    """Worked examples before the question: earlier turns of the chat, or text where chat is false."""

    rows: Annotated[tuple[dict[str, Any], ...], Field(strict=False)] = ()
    """The examples' rows, written here, with the columns that the data has."""
    data: Source | None = None
    """Or the first `size` rows of a source. It takes source, config and revision from the task's data where
    it names no source of its own."""
    completion: Text = "{answer}"
    """What the assistant writes: {column} as in the prompt, {answer} the whole column of the answer, or the
    letter of a choice."""

    @model_validator(mode="after")
    def _fits(self) -> FewShot:
        if bool(self.rows) == (self.data is not None):
            raise Wrong("rows", "or few_shot.data, one of the two, has to say what the examples are")
        if self.data is not None and self.data.size is None:
            raise Wrong("data.size", "is missing: how many examples there are")
        return self


class Verifier(Section):
    """What says whether an answer is right: a reward, as a recipe names it. Above 0.5 is right."""

    use: Text
    args: dict[str, Any] = Field(default_factory=dict)
    deadline: Positive = 10.0
    """Seconds that one call may take."""

    @property
    def weight(self) -> float:
        """A task has one verifier: `posttrain.rewards.Rewards` takes this section as it is."""
        return 1.0

    @property
    def where(self) -> dict[str, Any]:
        """It judges every row; a task's own `where` says which those are."""
        return {}


class Sampling(Section):
    samples: Count = 1
    """Answers to each question."""
    temperature: Annotated[float, Field(ge=0)] = 0.0
    """0 is greedy."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Whole = 0
    max_tokens: Count = 2048
    stop: Texts = ()
    """Texts at which an answer ends: they and what follows is not judged (`cut`)."""

    @model_validator(mode="after")
    def _fits(self) -> Sampling:
        if self.samples > 1 and self.temperature == 0:
            raise Wrong("temperature", f"is 0: all {self.samples} answers to a question would be equal")
        return self


class Reported(Section):
    """What others report of a model on this task, and how they asked."""

    model: Text
    value: Share
    """A share, 0 to 1, as our metrics are."""
    source: Text
    setting: Text


class Task(Section):
    """See eval/ for examples; the sections' classes tell of their keys."""

    name: FolderName
    data: Source
    id: Text = "id"
    """The column that questions are known by; where it is not there or not unique, their number is."""
    where: dict[str, Any] = Field(default_factory=dict)
    """Only the rows with this value, or one of a list of values, in that column."""
    prompt: Text = "{question}"
    """What the model reads; {column} stands for a column of the row, {{column}} for the word in braces. A
    list of texts in a column is shown a line each."""
    system: Text | None = None
    chat: bool = True
    """True: a user message through the model's chat template. False: raw text that the model continues."""
    question: Text = "question"
    """The column that {question} stands for."""
    images: Texts = ()
    """The columns of pictures, as data.images of a recipe: where the prompt says <image>, or before it."""
    answer: Text | None = "answer"
    """The column of the right answer; null where there is none. `column.0` is the first item in it."""
    answer_after: Text | None = None
    """Only what follows the last place of this text in that column, as "####" in GSM8K's solutions."""
    choices: Choices | None = None
    few_shot: FewShot | None = None
    verifier: Verifier
    best_of: Verifier | None = None
    """A reward that picks one of a question's answers: best_of@k is how often the picked one is right."""
    sampling: Sampling = Sampling()
    metric: Text | None = None
    """The number that stands for the task; null: accuracy, or avg@k where k answers are drawn."""
    reported: Annotated[tuple[Reported, ...], Field(strict=False)] = ()

    @property
    def primary(self) -> str:
        """The main metric's name."""
        one = "accuracy" if self.sampling.samples == 1 else f"avg@{self.sampling.samples}"
        return self.metric or one

    @property
    def shots(self) -> int:
        """How many worked examples stand before a question."""
        if self.few_shot is None:
            return 0
        return len(self.few_shot.rows) or (self.few_shot.data and self.few_shot.data.size) or 0

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        data, few = given.get("data"), given.get("few_shot")
        examples = few.get("data") if isinstance(few, dict) else None
        if isinstance(examples, dict) and isinstance(data, dict) and "source" not in examples:
            assert isinstance(few, dict)
            shared = {key: data[key] for key in ("source", "config", "revision", "args") if key in data}
            given = given | {"few_shot": few | {"data": shared | examples}}
        return given

    @model_validator(mode="after")
    def _fits(self) -> Task:
        if self.system is not None and not self.chat:
            raise Wrong("system", "needs chat: true; raw text has no system message")
        for key, source in (("data", self.data), ("few_shot.data", self.few_shot and self.few_shot.data)):
            if source and source.prompt is not None:
                raise Wrong(f"{key}.prompt", "belongs beside data, not inside")
            if source and source.images is not None:
                raise Wrong(f"{key}.images", "belongs beside data, not inside")
        named = columns_in(self.prompt)
        if self.images and self.few_shot is not None:
            raise Wrong("few_shot", "shows words alone, and the questions have pictures; leave it out")
        if pictures := {*self.images} & {self.question if name == "question" else name for name in named}:
            raise Wrong("prompt", f"{{{min(pictures)}}} is a picture; write <image> where it belongs")
        if self.choices is not None:
            if "choices" not in named:
                raise Wrong("prompt", "does not show the options: write {choices} where they belong")
            if self.answer_after is not None:
                raise Wrong("answer_after", "means nothing beside choices, where the answer is a letter")
        elif self.answer is None and self.answer_after is not None:
            raise Wrong("answer_after", "means nothing where answer is null")
        if (self.answer is not None and self.answer in named) or (self.choices and "answer" in named):
            raise Wrong("prompt", "shows the answer; write {{answer}}, in two pairs of braces, for the word")
        if self.metric is not None:
            match, samples = _METRIC.fullmatch(self.metric), self.sampling.samples
            if match is None:
                raise Wrong("metric", "is accuracy, avg@4, pass@4, cons@4 or g_pass@4_0.5, with any numbers")
            if self.metric.startswith("best_of") and self.best_of is None:
                raise Wrong("metric", f"{self.metric} needs best_of, the reward that picks")
            if int(match[1] or match[2] or 1) > samples:
                raise Wrong("metric", f"{self.metric} needs more answers than sampling.samples: {samples}")
        return self


def load_task(name_or_path: str, overrides: Sequence[str] = ()) -> Task:
    """Read a task from a file, or a shipped one by name, with `key.sub=value` overrides laid over it.

    Raises:
        PosttrainError: naming file, line and key, and the nearest right key or name.
    """
    return settings.load(Task, content.locate("eval", name_or_path), overrides)


def template_hash(task: Task) -> str:
    """A short name of how the task asks: equal for two tasks whose prompts of one row are equal."""
    keys = {"prompt", "system", "chat", "question", "choices", "few_shot"}
    asked = task.model_dump(include=keys)
    if task.images:
        asked |= {"images": task.images}
    if task.few_shot is not None:  # an example shows its answer
        asked |= task.model_dump(include={"answer"})
    return hashlib.sha256(json.dumps(asked, sort_keys=True, default=str).encode()).hexdigest()[:16]


def cut(completion: str, stop: Sequence[str]) -> str:
    """A completion up to the first of the stop texts: an engine without them writes on.

    Example: cut("5\\n#### 5\\n\\nQuestion: 2", ["\\n\\nQuestion:"]) -> "5\\n#### 5"
    """
    places = [at for text in stop if (at := completion.find(text)) >= 0]
    return completion[: min(places)] if places else completion

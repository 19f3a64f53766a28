"""Load reward functions, weigh them, score completions with them: behind a deadline, in killable processes.

A reward has TRL's signature, `def name(completions, **columns) -> list[float | None]`; None means "this
rule does not apply here". A reward that raises, hangs, dies or returns nonsense costs the row it failed
on, never the run.
"""

from __future__ import annotations

import logging
import queue
import re
import time
import weakref
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain, count, pairwise, product
from pathlib import Path
from typing import Any, Protocol

from posttrain import content
from posttrain.image_parts import with_images
from posttrain.reward_process import Child, Lost, Source
from posttrain.types import Completion, PosttrainError, Prompt, Score
from posttrain.words import did_you_mean

ENTRY_POINTS = "posttrain.rewards"  # where installed plug-ins announce their rewards
LOAD_SECONDS = 60.0  # for starting a process and importing a reward in it, with all that it loads
PATIENCE = 4  # deadlines that a reward's failing rows may cost in one call; what is left is masked

_log = logging.getLogger(__name__)
_FILE = re.compile(r"(?P<file>.+\.py)(?::(?P<function>\w+))?")
_MODULE = re.compile(r"(?P<module>[\w.]+):(?P<function>[\w.]+)")


class Spec(Protocol):
    """What a recipe says of one reward; `RewardSpec` and the recipe's own model both fit."""

    @property
    def use(self) -> str: ...
    @property
    def weight(self) -> float: ...
    @property
    def args(self) -> Mapping[str, Any]: ...
    @property
    def where(self) -> Mapping[str, Any]: ...


@dataclass(frozen=True)
class RewardSpec:
    """One reward: where its function is, its weight in the sum, the arguments that every call gets, and which
    rows it is for: those whose columns are as `where` says.

    Examples of `use`: "accuracy" (ours), "./my_reward.py:fn" (a file), "package.module:fn" (installed).
    """

    use: str
    weight: float = 1.0
    args: Mapping[str, Any] = field(default_factory=dict)
    where: Mapping[str, Any] = field(default_factory=dict)


def locate(use: str, args: Mapping[str, Any], folder: Path | None = None) -> Source:
    """Find a reward without importing anything of it.

    - "accuracy": ours; else an installed plug-in of that name (entry-point group "posttrain.rewards")
    - "./my_reward.py:fn": a file, relative to `folder` (default: the working folder); without ":fn" the
      function named like the file, or its only public one
    - "package.module:fn": an installed module

    Raises PosttrainError, with the nearest names, where there is none.
    """
    if match := _FILE.fullmatch(use):
        path = ((folder or Path.cwd()) / Path(match["file"]).expanduser()).resolve()
        if not path.is_file():
            files = [file.name for file in path.parent.glob("*.py")]
            near = did_you_mean(path.name, files, " Did you mean")
            raise PosttrainError(f"There is no reward file {path}.{near}")
        return Source(use, "file", str(path), match["function"], dict(args))
    if match := _MODULE.fullmatch(use):
        return Source(use, "module", match["module"], match["function"], dict(args))
    if shipped := content.find("reward", use):
        return Source(use, "file", str(shipped), None, dict(args))

    from importlib.metadata import entry_points

    plugins = {entry.name: entry for entry in entry_points(group=ENTRY_POINTS)}
    if entry := plugins.get(use):
        return Source(use, "module", entry.module, entry.attr, dict(args))
    names = [name for name, _, _ in content.listing("reward")] + sorted(plugins)
    near = did_you_mean(use, names, " Did you mean")
    raise PosttrainError(
        f"There is no reward {use!r}.{near} There are: {', '.join(names)}. "
        "A reward of your own is named by its file: ./my_reward.py:function."
    )


class Rewards:
    """The rewards of a recipe, ready to score. A context manager: leaving it ends the processes.

    `workers` processes share each reward's rows: a call of one gets whole groups, and several rewards run
    side by side. Each process loads every reward.
    Raises PosttrainError at once where a reward cannot be found, imported, or called with its arguments.

    Example:
        with Rewards([RewardSpec("accuracy", 1.0, {"form": "boxed"}), RewardSpec("./mine.py")]) as rewards:
            scores = rewards.score(prompts, completions)
    """

    def __init__(
        self, specs: Sequence[Spec], deadline: float = 10.0, workers: int = 1, folder: Path | None = None
    ) -> None:
        if not specs:
            raise PosttrainError("There are no rewards. Name at least one, such as 'accuracy'.")
        self._sources = [locate(spec.use, spec.args, folder) for spec in specs]
        self._weights = [float(spec.weight) for spec in specs]
        self._where = [dict(spec.where) for spec in specs]
        self._deadline = deadline
        self.names = _names(self._sources)
        self._children = [Child(self._sources, LOAD_SECONDS) for _ in range(workers)]
        self._idle: queue.SimpleQueue[Child] = queue.SimpleQueue()
        for child in self._children:
            self._idle.put(child)
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="rewards")
        # Also at exit and when nobody holds this object any more.
        self._finalizer = weakref.finalize(self, _end, self._children, self._threads)
        try:
            list(self._threads.map(self._load, self._children))
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Rewards:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the processes and all that the rewards started. Safe to call twice."""
        self._finalizer()

    def score(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[Score]:
        """Score N completions, each with its prompt (the i-th belongs to the i-th).

        The loop calls this while it generates, with the groups that have ended: a reward that compares rows
        sees whole groups, but seldom the step's whole batch.
        A row on which a weighted reward fails has total None and the reason in `failures`; a row to which no
        weighted reward applies has total None as well. A reward of weight 0 is reported and decides nothing.
        """
        if len(prompts) != len(completions):
            raise ValueError(f"{len(prompts)} prompts for {len(completions)} completions")
        if not prompts:
            return []
        rows = _Rows(prompts, completions)
        parts = _parts(prompts, len(self._children))
        calls = product(range(len(self.names)), parts)
        values = list(chain.from_iterable(self._threads.map(lambda call: self._values(rows, *call), calls)))
        return [self._score(values[row :: len(prompts)]) for row in range(len(prompts))]

    def _score(self, values: Sequence[float | str | None]) -> Score:
        parts: dict[str, float | None] = {}
        failures: dict[str, str] = {}
        for name, value in zip(self.names, values, strict=True):
            parts[name] = None if isinstance(value, str) else value
            if isinstance(value, str):
                failures[name] = value
        total = None
        for name, weight in zip(self.names, self._weights, strict=True):
            if weight == 0:
                continue
            if name in failures:
                return Score(None, parts, failures)
            part = parts[name]
            if part is not None:
                total = (total or 0.0) + weight * part
        return Score(total, parts, failures)

    def _load(self, child: Child) -> None:
        for index, source in enumerate(self._sources):
            try:
                child.load(index)
            except Lost as lost:
                raise PosttrainError(f"The reward {source.use!r} could not be imported: {lost}.") from None

    def _values(self, rows: _Rows, index: int, part: range) -> list[float | str | None]:
        """One reward's value for each row of `part`: None where it is not for the row, or why it has none."""
        wanted = self._where[index]
        if missing := [name for name in wanted if name not in rows.names]:
            near = did_you_mean(missing[0], rows.names) or f"there are {', '.join(sorted(rows.names))}"
            return [f"`where` asks for the column {missing[0]!r}, which no row has; {near}"] * len(part)
        own = [row for row in part if rows.fits(row, wanted)]
        found = dict(zip(own, self._called(rows, index, own), strict=True)) if own else {}
        return [found.get(row) for row in part]

    def _called(self, rows: _Rows, index: int, part: Sequence[int]) -> list[float | str | None]:
        """In one call where that works."""
        child = self._idle.get()
        try:
            values = self._call(child, index, rows, part)
            if not isinstance(values, str):
                return values
            if len(part) == 1:
                return [values]
            # Something in the batch breaks it: row by row, so that only that row is lost.
            patience = time.monotonic() + PATIENCE * self._deadline
            result: list[float | str | None] = []
            for row in part:
                if time.monotonic() > patience:
                    return result + [f"not scored: {values}"] * (len(part) - len(result))
                one = self._call(child, index, rows, [row])
                result.append(one if isinstance(one, str) else one[0])
            return result
        finally:
            self._idle.put(child)

    def _call(
        self, child: Child, index: int, rows: _Rows, part: Sequence[int]
    ) -> list[float | str | None] | str:
        columns = rows.columns(part)
        try:
            reply = child.call(index, columns, len(columns["completions"]), self._deadline)
        except (Lost, PosttrainError) as error:
            return str(error)
        except Exception as error:  # a column that does not pickle
            return f"its columns cannot be sent to its process: {error}"
        if reply["printed"]:
            _log.info("%s printed: %s", self.names[index], reply["printed"].rstrip())
        return reply["values"] if "values" in reply else reply["error"]


def _end(children: list[Child], threads: ThreadPoolExecutor) -> None:
    for child in children:
        child.close()
    threads.shutdown(cancel_futures=True)  # quick: a call whose child is gone is over
    for child in children:
        child.kill()


def _names(sources: Sequence[Source]) -> list[str]:
    """A short name for each reward: its own, or its function's; numbered where two would be the same."""
    names: list[str] = []
    for source in sources:
        base = source.function or (Path(source.place).stem if source.kind == "file" else source.use)
        name = next(n for i in count(1) if (n := base if i == 1 else f"{base}_{i}") not in names)
        names.append(name)
    return names


def _parts(prompts: Sequence[Prompt], most: int) -> list[range]:
    """Cut the rows into at most `most` ranges of about the same length, never inside a group.

    A group is consecutive rows whose prompts read the same: that is all a reward sees of it.
    Example: groups of 3, 3 and 2 rows for two -> [range(0, 3), range(3, 8)]
    """
    ends = [row for row in range(1, len(prompts)) if _asked(prompts[row]) != _asked(prompts[row - 1])]
    shares = [len(prompts) * n / most for n in range(1, most)]
    cuts = sorted({min(ends, key=lambda end: abs(end - share)) for share in shares}) if ends else []
    return [range(start, stop) for start, stop in pairwise([0, *cuts, len(prompts)])]


def _asked(prompt: Prompt) -> tuple[Any, ...]:
    return prompt.content, prompt.beside


class _Rows:
    """A batch as TRL's reward functions take it: one list a column."""

    def __init__(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> None:
        extra = dict.fromkeys(key for prompt in prompts for key in prompt.columns)
        self._columns: dict[str, list[Any]] = {
            **{key: [prompt.columns.get(key) for prompt in prompts] for key in extra},
            "prompts": [with_images(prompt.content, lambda picture: picture.digest) for prompt in prompts],
            "completions": [_as_trl(p, c) for p, c in zip(prompts, completions, strict=True)],
            "completion_ids": [completion.tokens for completion in completions],
            "answer": [prompt.answer for prompt in prompts],
        }

    @property
    def names(self) -> Collection[str]:
        return self._columns.keys()

    def fits(self, row: int, where: Mapping[str, Any]) -> bool:
        return all(self._columns[name][row] == value for name, value in where.items())

    def columns(self, part: Sequence[int]) -> dict[str, list[Any]]:
        return {key: [values[row] for row in part] for key, values in self._columns.items()}


def _as_trl(prompt: Prompt, completion: Completion) -> str | list[dict[str, str]]:
    if isinstance(prompt.content, str):
        return completion.text
    return [{"role": "assistant", "content": completion.text}]

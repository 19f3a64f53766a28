"""Runs a reward on real rows: does it work, is it steady, is it fast, and do gold answers get full marks?"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from posttrain.audit.rows import (
    BATCH,
    EXAMPLES,
    GIVEN_UP,
    Item,
    Reward,
    Row,
    Value,
    as_text,
    form_of,
    keep,
    prompt_of,
    say,
    show,
    some,
    table,
    written,
)
from posttrain.types import PosttrainError
from posttrain.verify import gold_of

REASONS = 5  # why completions failed: so many are shown
ALONE = 64  # completions scored a second time by themselves
SAME = 1e-9  # values closer than this are the same
OWN, RAW, EMPTY = "own", "bare", "empty"  # what an item is; a gold answer in a form is named by that form


@dataclass(frozen=True)
class Example:
    """A completion with what it got; then: what it got when it was asked for in another way."""

    row: int
    completion: str
    value: Value
    then: Value = None


@dataclass(frozen=True)
class Gold:
    """A gold answer below full marks: best is the highest value that it got in any form."""

    row: int
    answer: str
    best: Value


@dataclass(frozen=True)
class Check:
    """What a reward did on a file's rows; `wrong` says what to look at, `str` is the table for a terminal.

    completions: of the rows themselves. golds: gold answers that got a value or failed. low, high: over all
    that was scored, gold answers and the empty completion too. mean: over the rows' own completions. none:
    how often it was None. failures: by reason. rows_a_second: of whole batches, the second time; 0 where each
    had a failure. changed: a second call gave another value. by_batch: a call on the row alone did. in_form:
    how many gold answers get full marks, by form. shape: "text" or "messages", as completions were given;
    other_shape says what happens when they are given as the other.
    """

    reward: str
    completions: int
    golds: int
    shape: str
    low: float | None
    high: float | None
    mean: float | None
    none: int
    failures: dict[str, list[Example]]
    first_seconds: float
    rows_a_second: float
    changed: list[Example]
    by_batch: list[Example]
    other_shape: str
    in_form: dict[str, int]
    below: list[Gold]

    @property
    def wrong(self) -> list[str]:
        found = []
        if failed := sum(map(len, self.failures.values())):
            found.append(some(failed, "failing completion"))
        if self.changed:
            found.append(f"{some(len(self.changed), 'value')} that the same call gave differently")
        if self.below:
            found.append(f"{some(len(self.below), 'gold answer')} below full marks")
        if self.low is None:
            found.append("no completion got a value")
        elif self.low == self.high:
            found.append(f"all that has a value got {self.low:g}, wrong or right")
        return found

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "wrong": self.wrong}

    def __str__(self) -> str:
        what = f"{some(self.completions, 'completion')}, {some(self.golds, 'gold answer')}, as {self.shape}"
        lines = [("reward", self.reward), ("scored", what)]
        if self.low is not None and self.high is not None:
            mean = "" if self.mean is None else f"; mean of the completions {self.mean:.4g}"
            lines.append(("range", f"{self.low:.4g} to {self.high:.4g}{mean}"))
        lines.append(("None", some(self.none, "time")))
        lines.append(("failures", some(sum(map(len, self.failures.values())), "completion")))
        most = sorted(self.failures.items(), key=lambda one: -len(one[1]))
        for reason, examples in most[:REASONS]:
            lines.append(("", f"{len(examples)} x {say(reason)}"))
            lines.append(("", f"  such as row {examples[0].row}: {show(examples[0].completion)}"))
        if len(most) > REASONS:
            lines.append(("", f"and {some(len(most) - REASONS, 'reason')} more; --json has all"))
        speed = f"the first call took {self.first_seconds:.2f} s"
        if self.rows_a_second:
            speed = f"{1 / self.rows_a_second:.2g} s a row, {self.rows_a_second:,.0f} rows a second; {speed}"
        lines.append(("speed", speed))
        lines += _differences("again", "gave another value", self.changed)
        lines += _differences("alone", "gets another value without its batch", self.by_batch)
        lines.append(("shape", self.other_shape))
        if self.golds:
            by_form = ", ".join(f"{form} {count}" for form, count in self.in_form.items())
            full = self.golds - len(self.below)
            lines.append(("gold", f"{full} of {self.golds} get full marks ({by_form})"))
        for gold in self.below[:EXAMPLES]:
            lines.append(("", f"row {gold.row}: {show(gold.answer)} gets {say(gold.best)}"))
        if self.wrong:
            lines.append(("look at", "; ".join(self.wrong)))
        return table(lines)


def _differences(name: str, what: str, found: Sequence[Example]) -> list[tuple[str, str]]:
    shown = [
        ("", f"row {one.row}: {say(one.value)}, then {say(one.then)}: {show(one.completion)}")
        for one in found[:EXAMPLES]
    ]
    return [(name, f"{some(len(found), 'completion')} {what}" if found else "the same"), *shown]


def check(use: str, args: Mapping[str, Any], rows: Sequence[Row], deadline: float = 10.0) -> Check:
    """Score the rows' completions, and their gold answers as completions.

    A row's `completion` (or `prediction`) is scored as it is. Its `answer` is scored bare, and in the form
    that `args` ask for, or else in the one that pays most for the first answers; the better of the two has to
    get full marks, which is the highest value seen. An empty completion is scored too, to have a wrong one.

    Args:
        use, args: the reward and its arguments, as in a recipe.
        deadline: seconds for a call on a batch, as in a recipe.

    Raises:
        PosttrainError: the reward cannot be loaded, or a row has neither a completion nor an answer.
    """
    items = _items(rows)
    with Reward(use, args, deadline) as reward:
        start = time.perf_counter()
        head = reward.values(items[:BATCH])
        first_seconds = time.perf_counter() - start
        shape, other_shape = _shape(items[:BATCH], head, reward)
        chat = shape == "messages"
        form = form_of(reward, _raw(items), args, chat)
        items += [item._replace(text=written(gold_of(item.text), form), what=form) for item in _raw(items)]
        values = reward.values(items, chat=chat)
        reward.speed = 0, 0.0  # of the second time, when everything is loaded
        again = reward.values(items, chat=chat)
        timed, seconds = reward.speed
        fine = [
            i
            for i, (value, then) in enumerate(zip(values, again, strict=True))
            if not isinstance(value, str) and not str(then).startswith(GIVEN_UP)
        ]
        changed = {i: again[i] for i in fine if not _same(values[i], again[i])}
        steady = [i for i in fine if i not in changed][:ALONE]
        alone = reward.values([items[i] for i in steady], 1, chat)

    def example(i: int, then: Value = None) -> Example:
        return Example(int(items[i].prompt.id), keep(items[i].text), values[i], then)

    failures: dict[str, list[Example]] = {}
    for i, value in enumerate(values):
        if isinstance(value, str):
            failures.setdefault(value, []).append(example(i))
    numbers = [value for value in values if isinstance(value, float)]
    own = [v for item, v in zip(items, values, strict=True) if item.what == OWN]
    golds, in_form, below = _golds(items, values, max(numbers, default=0.0))
    return Check(
        reward=reward.name,
        completions=len(own),
        golds=golds,
        shape=shape,
        low=min(numbers, default=None),
        high=max(numbers, default=None),
        mean=fmean(own_numbers) if (own_numbers := [v for v in own if isinstance(v, float)]) else None,
        none=sum(value is None for value in values),
        failures=failures,
        first_seconds=first_seconds,
        rows_a_second=timed / seconds if seconds else 0.0,
        changed=[example(i, then) for i, then in changed.items()],
        by_batch=[example(i, v) for i, v in zip(steady, alone, strict=True) if not _same(values[i], v)],
        other_shape=other_shape,
        in_form=in_form,
        below=below,
    )


def _items(rows: Sequence[Row]) -> list[Item]:
    """An empty completion, the rows' own, and their bare gold answers."""
    own: list[Item] = []
    golds: list[Item] = []
    for number, row in enumerate(rows, 1):
        text = next((row[key] for key in ("completion", "prediction") if row.get(key) is not None), None)
        prompt = prompt_of(row, number)
        if text is not None:
            own.append(Item(prompt, as_text(text), OWN))
        if prompt.answer is not None:
            golds.append(Item(prompt, prompt.answer, RAW))
        elif text is None:
            raise PosttrainError(
                f"Row {number} has no 'completion', no 'prediction' and no 'answer'; it has: "
                f"{', '.join(row) or 'nothing'}."
            )
    return [Item((own or golds)[0].prompt, "", EMPTY), *own, *golds]


def _raw(items: Sequence[Item]) -> list[Item]:
    return [item for item in items if item.what == RAW]


def _shape(head: Sequence[Item], as_texts: Sequence[Value], reward: Reward) -> tuple[str, str]:
    """How to give the completions ("text" or "messages"), and what is to be said of the other way."""
    if all(isinstance(item.prompt.content, list) for item in head):
        return "messages", "the prompts are messages"
    as_messages = reward.values(head, chat=True)
    failed = [value for value in as_texts if isinstance(value, str)]
    fails = [value for value in as_messages if isinstance(value, str)]
    if len(failed) == len(head) > len(fails):
        return "messages", f"as text (data.chat: false) it fails: {say(failed[0])}"
    if fails and not failed:
        return "text", f"as messages (data.chat: true, the default) it fails: {say(fails[0])}"
    if different := sum(not _same(a, b) for a, b in zip(as_texts, as_messages, strict=True)):
        return "text", f"as messages, {some(different, 'completion')} of {len(head)} got another value"
    return "text", "the same as messages"


def _golds(
    items: Sequence[Item], values: Sequence[Value], full: float
) -> tuple[int, dict[str, int], list[Gold]]:
    """How many gold answers the reward applies to, those at full marks by form, and those below in each."""
    in_form: dict[str, int] = {}
    best: dict[str, tuple[Item, Value]] = {}
    for item, value in zip(items, values, strict=True):
        if item.what in (OWN, EMPTY):
            continue
        in_form.setdefault(item.what, 0)
        in_form[item.what] += isinstance(value, float) and value >= full - SAME
        _, known = best.get(item.prompt.id, (item, None))
        better = isinstance(value, float) and (not isinstance(known, float) or value > known)
        if better or known is None:
            best[item.prompt.id] = item, value
    applies = [(item, value) for item, value in best.values() if value is not None]
    below = [
        Gold(int(item.prompt.id), keep(item.prompt.answer or ""), value)
        for item, value in applies
        if isinstance(value, str) or value < full - SAME
    ]
    return len(applies), in_form, below


def _same(one: Value, other: Value) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return abs(one - other) <= SAME
    return one == other

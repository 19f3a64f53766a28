"""The stages of a run by the models that they come from, and the chart of what each came to.

A branch is a base model and what was made of it, stage after stage. Where two stages begin with one model,
the one that more is made of goes on, and the other begins a branch of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from posttrain.evaluate.charts import escape, nice_ticks
from posttrain.evaluate.difference import Difference
from posttrain.evaluate.headline import accuracy_cell, axis_row, interval_row
from posttrain.evaluate.runfolder import Estimate
from posttrain.evaluate.stages_table import LEARNS, Origin, StageRow
from posttrain.evaluate.words import NONE

DOES = {"grpo": "reinforcement learning", "sft": "supervised fine-tuning", "eval": "measured"}


@dataclass(frozen=True)
class Branch:
    """Measured stages in their order, the first of which begins with `origin`."""

    origin: Origin
    rows: tuple[StageRow, ...]
    """Those that learn, each followed by the stages that only measured it."""
    root: bool
    """Whether `origin` is a model from outside; else it is a stage of another branch."""

    @property
    def learned(self) -> list[StageRow]:
        return [row for row in self.rows if row.kind in LEARNS]

    @property
    def start(self) -> Estimate | None:
        """The accuracy of the model that it begins with."""
        return next((row.start or row.after for row in self.rows), None)


def branches(rows: Sequence[StageRow]) -> list[Branch]:
    """The branch with the most stages that learn first, the others as the recipe has them."""
    measured = [row for row in rows if row.after is not None]
    given = {row.result for row in measured if row.kind in LEARNS}

    def of(origin: Origin, learns: bool) -> list[StageRow]:
        return [row for row in measured if row.origin == origin and (row.kind in LEARNS) == learns]

    @cache
    def depth(origin: Origin) -> int:  # origins lead from later stages to earlier ones: never in a circle
        return max((1 + depth(row.result) for row in of(origin, True)), default=0)

    found: list[Branch] = []

    def follow(origin: Origin, first: StageRow | None, root: bool) -> None:
        chain, aside, at = [*of(origin, False)] if root else [], [], origin
        while kids := ([first] if first is not None else of(at, True)):
            best = max(kids, key=lambda row: depth(row.result))
            aside += [(at, kid) for kid in kids if kid is not best]
            chain += [best, *of(best.result, False)]
            at, first = best.result, None
        found.append(Branch(origin, tuple(chain), root))
        for parent, kid in aside:
            follow(parent, kid, False)

    for origin in dict.fromkeys(row.origin for row in measured):
        if origin not in given:
            follow(origin, None, True)
    main = max(found, key=lambda branch: len(branch.learned), default=None)
    return [branch for branch in found if branch is main] + [b for b in found if b is not main]


def accuracy_chart(found: Sequence[Branch]) -> str:
    """Held-out accuracy after each stage, a line a stage: in grey what it began with; "" without any."""
    both = [e for branch in found for row in branch.rows for e in (row.start, row.after) if e]
    if not both:
        return ""
    highest = max(e.hi for e in both)
    top = 1.0 if highest > 0.5 else nice_ticks(0.0, highest)[-1]
    shown = axis_row(top, ["after", "added"])
    for branch in found:
        if len(found) > 1:
            shown += f'<p class="branch">{_title(branch)}</p>'
        first = branch.rows[0]
        if branch.root and first.start and first.since == first.name:
            name = f"{escape(model_name(first.origin))}<small>before training</small>"
            cells = accuracy_cell(first.start, "was") + _cell(None)
            shown += interval_row(name, first.start, None, top, cells)
        for row in branch.rows:
            name = f'<a href="#{escape(row.name)}">{escape(row.name)}</a><small>{DOES[row.kind]}</small>'
            shown += interval_row(
                name, row.start, row.after, top, accuracy_cell(row.after, "is") + _cell(row.added)
            )
    return f'<div class="intervals">{shown}</div>'


def model_name(origin: Origin) -> str:
    """For people: "smollm2-135m, 4 of its layers"."""
    name, layers = origin
    return name.removeprefix("stage:") + (f", {layers} of its layers" if layers is not None else "")


def _title(branch: Branch) -> str:
    name = escape(model_name(branch.origin))
    if branch.root:
        return f"<b>{name}</b>"
    return f"<b>{escape(branch.rows[0].name)}</b>, from {name} too"


def _cell(added: Difference | None) -> str:
    """What a stage added, in points."""
    if added is None:
        return f'<span class="cell">{NONE}</span>'
    css = "up" if added.lo > 0 else "down" if added.hi < 0 else "level"
    ends = f"<small>{100 * added.lo:+.0f} to {100 * added.hi:+.0f}</small>"
    return f'<span class="cell {css}">{100 * added.value:+.1f}{ends}</span>'

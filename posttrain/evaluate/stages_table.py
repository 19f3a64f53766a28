"""A run of stages as rows: what each stage did, how good the model is after it, and what it added.

What a stage added is the difference of strict accuracy to the model that it began with, over the held-out
problems that both answered (same id, same question), with the interval of a paired difference
(metrics.paired).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.cells import cell_len, set_cell_size

from posttrain.evaluate.difference import Difference, difference, verdicts
from posttrain.evaluate.metrics import number
from posttrain.evaluate.runfolder import Estimate, Run, estimate, read_run
from posttrain.evaluate.stage_text import did
from posttrain.evaluate.words import NONE, percent
from posttrain.plan import Planned, plan, unused
from posttrain.recipe_data import STAGE
from posttrain.stages import kind_of, load_stages, references
from posttrain.types import PosttrainError

WIDTH = 110  # columns of the table for the terminal
NAME = 18  # columns of a stage's name at most
LEARNS = ("grpo", "sft")  # the kinds that change what a model can do
EARLIER = "earlier"  # the state of a stage whose inputs changed since the result that is shown

Origin = tuple[str, int | None]  # a model: its name in the recipe, exports looked through; layers kept of it


@dataclass(frozen=True)
class StageRow:
    """A stage of a run's recipe, with what its folder holds."""

    name: str
    kind: str
    state: str
    """done, begun or new as in `posttrain.plan`; EARLIER: what is shown was made from other inputs."""
    why: str
    """What the plan says of a stage that is not done."""
    origin: Origin
    """The model that it begins with."""
    rows_from: tuple[str, ...] = ()
    """The stages whose rows it takes."""
    folder: Path | None = None
    """The folder that is shown; None where there is none."""
    run: Run | None = None
    after: Estimate | None = None
    """Held-out strict accuracy of its model; None for kinds that measure nothing, and before the end."""
    start: Estimate | None = None
    """The same of the model that it began with."""
    since: str = ""
    """The stage which measured that: an earlier one or the stage itself."""
    added: Difference | None = None
    blank: Estimate | None = None
    """Of `after`'s questions with blank pictures in place of their own; None for a model of words."""
    note: str = ""
    """Why there is no `added` although both were measured."""

    @property
    def parent(self) -> str | None:
        """The stage that its model comes from; None for a base model."""
        return self.origin[0].removeprefix(STAGE) if self.origin[0].startswith(STAGE) else None

    @property
    def minutes(self) -> float | None:
        if self.run is None:
            return None
        seconds = number(self.run.result.get("seconds"))
        if seconds is None:
            seconds = sum(number(record.get("seconds")) or 0.0 for record in self.run.steps)
        return seconds / 60 if seconds else None

    @property
    def did(self) -> str:
        """One line: what it did, or why there is nothing yet."""
        return self.why or "nothing yet" if self.run is None else did(self.run)

    @property
    def result(self) -> Origin:
        """The model that it gives, as later stages name it."""
        return STAGE + self.name, None


def stage_rows(folder: Path) -> list[StageRow]:
    """A row a stage, in the recipe's order; reads files and writes none.

    A stage whose inputs changed (a setting, a file, posttrain itself) is shown with its last result.

    Raises:
        PosttrainError: the folder holds no recipe of stages, or one that cannot be read.
    """
    return _rows(_planned(folder))


def _planned(folder: Path) -> list[Planned]:
    recipe = folder / "recipe.yaml"
    if not recipe.is_file():
        raise PosttrainError(f"{folder} holds no recipe.yaml; give the folder of a run, such as runs/demo")
    staged = load_stages(str(recipe))
    if staged.single is not None:
        raise PosttrainError(f"{recipe} has no stages: it is the recipe of a single run")
    return plan(replace(staged, output=str(folder)))


def _rows(planned: Sequence[Planned]) -> list[StageRow]:
    rows: dict[str, StageRow] = {}
    for one in planned:
        rows[one.stage.name] = _read(one, rows)
    return [_compared(row, rows) for row in rows.values()]


def stages_table(folder: Path) -> str:
    """The rows for the terminal, at most 110 columns wide; PosttrainError as `stage_rows`."""
    planned = _planned(folder)
    rows = _rows(planned)
    cells = grid(rows, ("stage", "kind", "state", "held-out", "added", "min", "what it did"))
    # Names and reasons hold whatever people and models wrote: they must not move the cursor.
    cells = [["".join(c if c.isprintable() else " " for c in cell) for cell in row] for row in cells]
    widths = [max(cell_len(row[i]) for row in cells) for i in range(len(cells[0]) - 1)]
    widths[0] = min(NAME, widths[0])
    room = max(12, WIDTH - sum(widths) - 2 * len(widths))
    lines = [
        "  ".join(_fit(c, w) for c, w in zip(row, [*widths, room], strict=True)).rstrip() for row in cells
    ]
    if any(row.added for row in rows):
        lines.append(
            "held-out: strict accuracy [95%]; added: points over the model it began with, same problems [95%]"
        )
    if any(row.blank for row in rows):
        lines.append("blank: the same with blank pictures [95%]")
    if any(row.state == EARLIER for row in rows):
        lines.append(f"{EARLIER}: the recipe, a file that it names or posttrain changed since")
    shown = {row.folder for row in rows}
    if left := [path.name for path in unused(folder, planned) if path not in shown]:
        lines.append(f"of no use to the recipe as it is now, and yours to delete: {', '.join(left)}")
    return "\n".join(lines)


def grid(rows: Sequence[StageRow], heads: Sequence[str]) -> list[list[str]]:
    """Heads, for all columns but `blank`, and a line a stage; that column is there where a model sees."""
    lines = [
        [row.name, row.kind, row.state, interval(row.after), points(row.added), minutes(row), row.did]
        for row in rows
    ]
    if not any(row.blank for row in rows):
        return [[*heads], *lines]
    found = [[*line[:4], interval(row.blank), *line[4:]] for row, line in zip(rows, lines, strict=True)]
    return [[*heads[:4], "blank", *heads[4:]], *found]


def interval(found: Estimate | None) -> str:
    """ "45% [39–52]" """
    return f"{percent(found.accuracy)} [{100 * found.lo:.0f}–{100 * found.hi:.0f}]" if found else NONE


def points(found: Difference | None) -> str:
    """ "+12.1 [+5.0, +19.2]", in points of a hundred"""
    return f"{100 * found.value:+.1f} [{100 * found.lo:+.1f}, {100 * found.hi:+.1f}]" if found else NONE


def minutes(row: StageRow) -> str:
    return NONE if row.minutes is None else f"{row.minutes:.1f}"


def _fit(text: str, width: int) -> str:
    return set_cell_size(text if cell_len(text) <= width else set_cell_size(text, width - 1) + "…", width)


def _read(planned: Planned, rows: Mapping[str, StageRow]) -> StageRow:
    stage, folder, state = planned.stage, planned.folder, str(planned.state)
    if not folder.is_dir():
        earlier = _earlier(folder.parent, stage.name)
        folder, state = (earlier, EARLIER) if earlier else (folder, state)
    given = [name for _, what, name in references(stage) if what == "rows"]
    row = StageRow(
        stage.name, kind_of(stage), state, planned.why, _origin(planned, rows), tuple(dict.fromkeys(given))
    )
    try:
        run = read_run(folder)
    except PosttrainError:
        return row
    run.kind = row.kind
    after, blank = (
        estimate(run.evaluation("after"), kind) if run.finished else None for kind in ("strict", "blank")
    )
    return replace(row, folder=folder, run=run, after=after, blank=blank)


def _origin(planned: Planned, rows: Mapping[str, StageRow]) -> Origin:
    model = planned.inputs["settings"]["model"]
    name, layers = model["name"], model["layers"]
    parent = rows.get(name.removeprefix(STAGE)) if name.startswith(STAGE) else None
    if parent is not None and parent.kind == "export" and layers is None:
        return parent.origin  # the same model in another type
    return name, layers


def _earlier(output: Path, name: str) -> Path | None:
    """The folder of the stage's last result, whatever its inputs were."""
    pattern = re.compile(re.escape(name) + "-[0-9a-f]{8}")
    found = [path for path in output.iterdir() if pattern.fullmatch(path.name)] if output.is_dir() else []
    found = [path for path in found if (path / "result.json").is_file()]
    return max(found, key=lambda path: (path / "result.json").stat().st_mtime_ns, default=None)


def _compared(row: StageRow, rows: Mapping[str, StageRow]) -> StageRow:
    """The row with what it began with and what it added; a stage that does not learn adds nothing."""
    if row.kind not in LEARNS or row.run is None:
        return row
    parent = rows.get(row.parent or "") if row.origin[1] is None else None
    then = [(parent, "after")] if parent is not None and parent.after else []
    then.append((row, "before"))
    then += [(r, "after") for r in rows.values() if r.kind == "eval" and r.after and r.origin == row.origin]
    then += [(r, "before") for r in rows.values() if r.run is not None and r.origin == row.origin]
    trouble = ""
    for other, phase in then:
        start = estimate(other.run and other.run.evaluation(phase), "strict")
        if start is None:
            continue
        if not (said := _unlike(row, other, phase)):
            added = difference(verdicts(other.run, phase), verdicts(row.run, "after")) if row.after else None
            return replace(row, start=start, since=other.name, added=added)
        trouble = trouble or said
    return replace(row, note=trouble)


def _unlike(row: StageRow, other: StageRow, phase: str) -> str:
    """Why a stage's accuracy cannot be held against another one's; "" where it can."""
    assert row.run is not None
    assert other.run is not None
    address = row.run.stages.get(other.name)
    if address and other.folder is not None and other.folder.name != f"{other.name}-{address}":
        return f"it began with an earlier result of {other.name}"
    if row.after is None:
        return ""
    forms = [
        (run.evaluation(when) or {}).get("form") for run, when in ((other.run, phase), (row.run, "after"))
    ]
    if forms[0] != forms[1]:
        return f"{other.name} was judged in another form"
    same = difference(verdicts(other.run, phase), verdicts(row.run, "after"))
    return "" if same else f"{other.name} answered other problems"

"""A run of stages as one self-contained page: what it came to, and what each stage did and added."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from posttrain.evaluate.branches import Branch, accuracy_chart, branches, model_name
from posttrain.evaluate.charts import escape
from posttrain.evaluate.curves import charts
from posttrain.evaluate.difference import Verdicts, difference, gain, verdicts
from posttrain.evaluate.page import RECIPE_LIMIT, table, write_page
from posttrain.evaluate.runfolder import Record
from posttrain.evaluate.seeing import signs
from posttrain.evaluate.shown import Shown
from posttrain.evaluate.stage_text import counts, example_text, kept_rows
from posttrain.evaluate.stages_table import (
    EARLIER,
    LEARNS,
    StageRow,
    grid,
    interval,
    points,
    stage_rows,
)
from posttrain.evaluate.words import duration, percent
from posttrain.evaluate.written import choose, completion, question
from posttrain.stages import load_stages

PROBLEMS = 6  # held-out problems shown as every stage answered them
EXAMPLE = 1500  # characters shown of what a stage learned from
KEPT = 2  # kept rows shown of a stage


def write_stages_report(folder: Path) -> Path:
    """Writes report.html into the folder of a run of stages and returns its path.

    Stages may be unfinished, killed or damaged: what is missing is left out and the page says so. Raises
    PosttrainError when the folder holds no recipe of stages.
    """
    rows = stage_rows(folder)
    found = branches(rows)
    recipe = folder / "recipe.yaml"
    name = load_stages(str(recipe)).name
    shown = Shown([row.folder for row in rows if row.folder is not None])
    sections = [_head(name, rows, found), _result(found, rows), _table(rows)]
    sections += [_stage(row) for row in rows]
    sections += [_problems(rows, found, shown), _recipe(recipe.read_text("utf-8")), shown.definitions()]
    return write_page(folder / "report.html", name, sections)


# --- the whole run ---


def _head(name: str, rows: Sequence[StageRow], found: Sequence[Branch]) -> str:
    done = sum(row.state == "done" for row in rows)
    status = '<span class="status done">finished</span>'
    if done < len(rows):
        status = f'<span class="status">not finished · {done} of {len(rows)} stages done</span>'
    lines = [_told(branch) for branch in found if branch.learned]
    if not lines:
        lines = [f"{len(rows)} stages; none of them has been measured yet."]
    lede = "".join(f'<p class="lede">{line}</p>' for line in lines)
    return f'<header><p class="kicker">posttrain {status}</p><h1>{escape(name)}</h1>{lede}</header>'


def _told(branch: Branch) -> str:
    """A branch as one sentence or two."""
    first, last = branch.learned[0], branch.learned[-1]
    assert last.after is not None
    names = [f"<b>{escape(row.name)}</b>" for row in branch.learned]
    through = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
    right = percent(last.after.accuracy)
    blank = f" With blank pictures: {percent(last.blank.accuracy)}." if last.blank else ""
    model = f"<b>{escape(model_name(branch.origin))}</b>"
    if first.start is None:
        return f"{model}, after {through}, gets {right} of the unseen problems right.{blank}"
    if not branch.root:
        return f"From {model}, with {through} instead: {percent(first.start.accuracy)} → {right}.{blank}"
    n = f"{last.after.n} " if last.after.n else ""
    return (
        f"{model} got {percent(first.start.accuracy)} of {n}unseen problems right. After {through} it gets "
        f"{right} right.{blank}"
    )


def _result(found: Sequence[Branch], rows: Sequence[StageRow]) -> str:
    """The main branch in large figures, and every stage's accuracy on one axis."""
    chart = accuracy_chart(found)
    if not chart:
        return ""
    main = found[0]
    begun, came = main.start, main.rows[-1] if not main.learned else main.learned[-1]
    big, gained = "", ""
    if came.after and begun and main.learned:
        big = (
            f'<span class="was">{percent(begun.accuracy)}</span><small>at first</small>'
            '<span class="arrow" aria-hidden="true">→</span><small></small>'
        )
        gained = gain(begun, came.after, difference(started(main, rows), verdicts(came.run, "after")))
    if came.after:
        big += f'<span class="is">{percent(came.after.accuracy)}</span><small>{escape(came.name)}</small>'
    facts = ""
    if seconds := sum(60 * (row.minutes or 0.0) for row in rows):
        facts = f'<dl class="facts"><div><dt>Time of all stages</dt><dd>{duration(seconds)}</dd></div></dl>'
    return (
        '<section class="result stages" aria-label="Held-out accuracy after each stage">'
        f'<div class="big"><p class="numbers">{big}</p>{gained}</div>{chart}{facts}</section>'
    )


def started(branch: Branch, rows: Sequence[StageRow]) -> Verdicts:
    """The held-out records of the model that a branch begins with; empty where nobody measured it."""
    first = branch.learned[0] if branch.learned else None
    since = next((row for row in rows if first and row.name == first.since), None)
    if since is None or first is None:
        return {}
    learns = since.origin == first.origin and since.kind in LEARNS  # one that began with the same model
    return verdicts(since.run, "before" if learns else "after")


def _table(rows: Sequence[StageRow]) -> str:
    heads = ("stage", "kind", "state", "held-out [95%]", "added, points [95%]", "minutes", "what it did")
    heads, *cells = grid(rows, heads)
    blank = " Blank: accuracy with blank pictures." if any(row.blank for row in rows) else ""
    return (
        '<section><h2>What each stage did</h2><p class="about">Accuracy: strict, greedy. Added: the '
        "difference to the model that the stage began with, on the problems that both answered; its interval "
        f"is Tango's for paired proportions.{blank}</p>"
        f'<div class="words">{table(heads, cells)}</div></section>'
    )


def _recipe(text: str) -> str:
    shown = f"<pre>{escape(text[:RECIPE_LIMIT].rstrip())}</pre>"
    return f"<section><details><summary>recipe.yaml, as it was resolved</summary>{shown}</details></section>"


# --- a stage ---


def _stage(row: StageRow) -> str:
    state = f'<span class="status{" done" if row.state == "done" else ""}">{escape(row.state)}</span>'
    head = f'<h2 id="{escape(row.name)}">{escape(row.name)} <small>{escape(row.kind)}</small> {state}</h2>'
    parts = [
        head,
        f'<p class="about">{escape(row.did[:1].upper() + row.did[1:])}.</p>',
        _note(row),
        _facts(row),
    ]
    if row.run is not None and row.folder is not None:
        drawn = _few(row)
        span = "s3" if len(drawn) > 1 else "s6"
        grid = "".join(f'<div class="{span}">{chart}</div>' for chart in drawn)
        parts += [f'<div class="charts">{grid}</div>'] if grid else []
        if row.kind == "sft" and (text := example_text(row.folder, EXAMPLE)):
            parts += ["<h3>It learned from</h3>", text]
        if row.kind == "sample" and row.run.finished:
            parts += [counts(row.run), kept_rows(row.folder, row.run, KEPT)]
        if row.run.problems:
            parts.append(f'<p class="callout quiet">{escape(" ".join(row.run.problems))}</p>')
        if (row.folder / "report.html").is_file():
            link = escape(f"{quote(row.folder.name)}/report.html")
            parts.append(f'<p class="more"><a href="{link}">All of {escape(row.name)}</a></p>')
    return f'<section class="stage">{"".join(parts)}</section>'


def _few(row: StageRow) -> list[str]:
    """The two charts that tell most."""
    assert row.run is not None
    wide, small = charts(row.run, height=132)
    return [*wide[:1], *small[:1]] if row.kind == "sft" else wide[:2]


def _note(row: StageRow) -> str:
    """Why a stage is not what it shall become."""
    notes = []
    if row.state == EARLIER:
        notes.append(f"This is an earlier result; the stage will run again: {row.why}.")
    elif row.run is None:
        notes.append("Nothing is here yet: the stage waits for its turn.")
    elif row.state == "begun":
        notes.append(
            "The stage is still going, or it was stopped; started again it goes on from its last checkpoint. "
            "What was written until now is shown."
        )
    elif row.state == "new":
        notes.append(f"The stage will run again: {row.why}.")
    if row.note:
        notes.append(f"What it added is not known: {row.note}.")
    seen = " ".join(signs(row.run)) if row.run is not None else ""
    said = f'<p class="callout">{escape(seen)}</p>' if seen else ""
    return (f'<p class="callout quiet">{escape(" ".join(notes))}</p>' if notes else "") + said


def _facts(row: StageRow) -> str:
    begins = escape(model_name(row.origin))
    if row.parent:
        begins = f'<a href="#{escape(row.parent)}">{begins}</a>'
    taken = ", ".join(f'<a href="#{escape(name)}">{escape(name)}</a>' for name in row.rows_from)
    added = f"{escape(points(row.added))} points" if row.added else ""
    if row.added and row.after and row.added.n != row.after.n:
        added += f", on the {row.added.n} problems that both answered"
    facts = [
        ("Begins with", begins),
        ("Rows from", taken),
        ("Held-out accuracy", escape(interval(row.after)) if row.after else ""),
        ("Added", added),
        ("With blank pictures", escape(interval(row.blank)) if row.blank else ""),
        ("Time", duration(60 * row.minutes) if row.minutes else ""),
    ]
    items = "".join(f"<div><dt>{label}</dt><dd>{value}</dd></div>" for label, value in facts if value)
    return f'<dl class="made">{items}</dl>'


# --- what the model wrote ---


def _problems(rows: Sequence[StageRow], found: Sequence[Branch], shown: Shown) -> str:
    """A few held-out problems as the model answered them at first and after each stage."""
    main = next((branch for branch in found if branch.learned), None)
    if main is None:
        return ""
    first, end = started(main, rows), verdicts(main.learned[-1].run, "after")
    sides: list[tuple[str, Verdicts]] = [("at first", first)] if first else []
    sides += [(row.name, verdicts(row.run, "after")) for branch in found for row in branch.learned]
    pairs: list[dict[str, Record]] = [
        {"before": first[key], "after": record} if key in first else {"after": record}
        for key, record in end.items()
    ]
    samples = ""
    for pair in choose(pairs, PROBLEMS):
        key = (str(pair["after"].get("id")), str(pair["after"].get("prompt")))
        answers = [(word, found_[key]) for word, found_ in sides if key in found_]
        columns = "".join(completion(record, word, shown=shown) for word, record in answers)
        columns = f'<div class="sides many">{columns}</div>'
        samples += f'<article class="sample">{question(pair["after"], shown=shown)}{columns}</article>'
    if not samples:
        return ""
    about = (
        "The same held-out problems after each stage, greedy. Of each kind (became right, became wrong, "
        "stayed wrong) the first ones in the file: none was picked by hand."
    )
    about = f'<p class="about">{about}</p>{shown.about()}'
    return f"<section><h2>What it wrote</h2>{about}{samples}</section>"

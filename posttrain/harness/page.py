"""An evaluation's folder as one page: numbers and warnings, what produced them, curves, every sample.

What a model wrote is data: it stands as JSON in the page and page.js puts it there as text. The page's policy
lets no script run but page.js. Without scripts everything but the samples is there.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from posttrain.evaluate.charts import Line, escape, line_chart
from posttrain.evaluate.headline import axis_row
from posttrain.evaluate.metrics import number
from posttrain.evaluate.page import table
from posttrain.evaluate.page import write_page as write_shell
from posttrain.evaluate.runfolder import Estimate, Record
from posttrain.evaluate.seeing import added, points
from posttrain.evaluate.words import NONE, compact, duration, percent1
from posttrain.harness import embed
from posttrain.harness.readback import (
    ANSWERS,
    BLIND,
    JUDGEMENTS,
    Evaluation,
    Task,
    estimate,
    part,
    read_evaluation,
)
from posttrain.harness.show import general, interval, made_by, reports

PAGE = 10  # questions shown at a time
JUDGED = {"right": "right", "wrong": "wrong", "open": "not judged", "failed": "failed"}


def write_page(folder: Path) -> Path:
    """Writes report.html into an evaluation's folder. -> its path

    The evaluation may be finished, still going, or killed: the page says what is missing.

    Raises:
        PosttrainError: the folder holds no evaluation.
    """
    evaluation = read_evaluation(folder)
    allowed = embed.limit([sample for task in evaluation.tasks for sample in task.samples])
    pictures = embed.Pictures()
    questions = [
        embed.question(i, question, [question.samples], allowed, pictures=pictures.of(question))
        for i, task in enumerate(evaluation.tasks)
        for question in task.questions
        if question.samples
    ]
    data = samples_data([""], [task.name for task in evaluation.tasks], questions)
    data |= {"pictures": pictures.addresses} if pictures.addresses else {}
    sections = [_head(evaluation), callouts(evaluation.state), _numbers(evaluation), _warnings(evaluation)]
    sections += [_every_number(evaluation), _made_of(evaluation), _curves(evaluation), _reported(evaluation)]
    counts = [0] * len(JUDGEMENTS)
    for task in evaluation.tasks:
        for sample in task.samples:
            counts[JUDGEMENTS.index(sample.judged)] += 1
    about = (
        f"Each question with all of its samples; the marked part is the answer that was read. {_cut(allowed)}"
    )
    if pictures.left_out:
        about += f" {len(pictures.addresses):,} pictures are shown, and {pictures.left_out:,} left out."
    choices = {
        "Verdict": [(str(i), JUDGED[word], counts[i]) for i, word in enumerate(JUDGEMENTS) if counts[i]]
    }
    if questions:
        sections.append(samples_section("What it wrote", about, [t.name for t in evaluation.tasks], choices))
    style, script = assets()
    return write_shell(
        folder / "report.html", evaluation.model, sections, css=style, script=script, data=data
    )


def assets() -> tuple[str, str]:
    """page.css and page.js."""
    here = files("posttrain.harness")
    return here.joinpath("page.css").read_text("utf-8"), here.joinpath("page.js").read_text("utf-8")


def samples_data(sides: Sequence[str], tasks: Sequence[str], questions: Sequence[Any]) -> dict[str, Any]:
    """What page.js reads; see `embed`."""
    return {
        "sides": [embed.short(side) for side in sides],
        "tasks": [embed.short(task) for task in tasks],
        "page": PAGE,
        "judged": [JUDGED[word] for word in JUDGEMENTS],
        "questions": questions,
    }


def samples_section(
    title: str, about: str, tasks: Sequence[str], choices: dict[str, list[tuple[str, str, int]]]
) -> str:
    """The filters and the place for the samples, both empty without scripts.

    choices: groups of boxes to tick: (value, label, how many).
    """
    options = "".join(f'<option value="{i}">{escape(name)}</option>' for i, name in enumerate(tasks))
    task = f'<label>Task <select name="task"><option value="">all</option>{options}</select></label>'
    boxes = ""
    for legend, found in choices.items():
        ticks = "".join(
            f'<label class="tick v-{escape(value)}"><input type="checkbox" name="{legend.lower()}" '
            f'value="{escape(value)}" checked><span>{escape(label)}</span> <small>{count:,}</small></label>'
            for value, label, count in found
        )
        boxes += f'<fieldset><legend class="unseen">{legend}</legend>{ticks}</fieldset>'
    ends = (("stop", "stopped"), ("length", "cut off"), ("error", "error"))
    finish = "".join(f'<option value="{value}">{label}</option>' for value, label in ends)
    return (
        f'<section id="samples" aria-labelledby="samples-title"><h2 id="samples-title">{escape(title)}</h2>'
        f'<p class="about">{escape(about)}</p>'
        f'<noscript><p class="callout quiet">Showing the samples needs JavaScript. They stand in '
        f"TASK/{ANSWERS}, beside this page.</p></noscript>"
        f'<form id="filters" role="search" aria-label="Filter the samples" hidden>'
        f"{task if len(tasks) > 1 else ''}{boxes}"
        f'<label>Finish <select name="finish"><option value="">any</option>{finish}</select></label>'
        '<label class="grow"><span class="unseen">Text in a question or a completion</span>'
        '<input type="search" name="text" placeholder="Search the text" autocomplete="off" '
        'spellcheck="false"></label>'
        '<div class="bar"><p id="count" role="status" aria-live="polite"></p>'
        '<button type="button" id="all" aria-pressed="false">Open all</button>'
        '<button type="button" class="previous">‹ Previous</button>'
        '<button type="button" class="next">Next ›</button></div></form>'
        '<div id="list"></div><nav id="pages" aria-label="Pages of samples" hidden>'
        '<button type="button" class="previous">‹ Previous</button><span id="where"></span>'
        '<button type="button" class="next">Next ›</button></nav></section>'
    )


def callouts(said: Sequence[str]) -> str:
    """What is missing or damaged."""
    if not said:
        return ""
    items = "".join(f"<li>{escape(one)}</li>" for one in said)
    return (
        '<div class="callout quiet"><b>This evaluation is not whole.</b> The page shows what is there.'
        f"<ul>{items}</ul></div>"
    )


# --- numbers ---


def _head(evaluation: Evaluation) -> str:
    samples = sum(len(task.samples) for task in evaluation.tasks)
    asked = sum(len(task.questions) for task in evaluation.tasks)
    tasks = len(evaluation.tasks)
    seconds = number(evaluation.result.get("seconds"))
    words = [f"{tasks} task{'s' * (tasks != 1)}", f"{asked:,} questions", f"{samples:,} samples"]
    words += [f"engine {evaluation.engine}"] if evaluation.engine else []
    words += [duration(seconds)] if seconds is not None else []
    whole = not evaluation.state
    status = (
        f'<span class="status{" done" if whole else ""}">{"finished" if whole else "not finished"}</span>'
    )
    return (
        f'<header><p class="kicker">posttrain eval {status}</p><h1>{escape(evaluation.model)}</h1>'
        f'<p class="lede">{escape(" · ".join(words))}</p></header>'
    )


def _numbers(evaluation: Evaluation) -> str:
    """The primary metric of each task with its interval on one axis."""
    firsts = [(task, *next(iter(task.metrics.items()))) for task in evaluation.tasks if task.metrics]
    if not firsts:
        return ""
    rows = "".join(_row(task, name, found) for task, name, found in firsts)
    return (
        '<section class="result alone" aria-label="Accuracy of each task">'
        f'<div class="intervals c1 wide">{axis_row(1.0, ["95% interval"])}{rows}</div></section>'
    )


def _row(task: Task, name: str, found: Estimate) -> str:
    lo, hi, at = (100 * min(max(v, 0.0), 1.0) for v in (found.lo, found.hi, found.accuracy))
    marks = f'<i class="bar is" style="left:{lo:.2f}%;width:{hi - lo:.2f}%"></i>'
    marks += f'<i class="mark is" style="left:{at:.2f}%"></i>'
    count = f"{found.n:,} questions" if found.n is not None else ""
    count += f" × {task.planned}" if count and (task.planned or 1) > 1 else ""
    about = ", ".join(word for word in (name, count) if word)
    signs = len(task.warnings)
    unsafe = f' · <a href="#warnings">{signs} warning{"s" * (signs != 1)}</a>' if signs else ""
    return (
        f'<div class="row"><span class="name">{escape(task.name)}<small>{escape(about)}{unsafe}</small>'
        "</span>"
        f'<span class="track" aria-hidden="true">{marks}</span>'
        f'<span class="cell is">{percent1(found.accuracy)}<small>{interval(found)}</small></span></div>'
    )


def _warnings(evaluation: Evaluation) -> str:
    found = [(task.name, warning) for task in evaluation.tasks for warning in task.warnings]
    if not found:
        return ""
    items = "".join(f"<li><b>{escape(name)}</b> {escape(warning)}</li>" for name, warning in found)
    return (
        '<section id="warnings" class="callout" aria-labelledby="warnings-title">'
        f'<h3 id="warnings-title">Before these numbers are used</h3><ul>{items}</ul></section>'
    )


def _every_number(evaluation: Evaluation) -> str:
    rows, facts = [], []
    for task in evaluation.tasks:
        for i, (name, found) in enumerate(task.metrics.items()):
            n = NONE if found.n is None else f"{found.n:,}"
            rows.append((task.name if i == 0 else "", name, percent1(found.accuracy), interval(found), n))
        for kind, name in BLIND.items():
            if found := task.blind.get(name):
                more = points(added(part(task.result, "blind"), kind))
                name += f"; the real ones add {more}" if more else ""
                rows.append(("", name, percent1(found.accuracy), interval(found), _count(found.n)))
        held = part(task.result, "facts")
        if not held:
            continue
        complete = estimate(held.get("accuracy_if_complete"))
        ends = part(held, "finish")
        facts.append(
            (
                task.name,
                _count(task.result.get("questions")),
                _count(task.planned),
                percent1(held.get("truncated")),
                percent1(held.get("no_answer")),
                *(_count(held.get(key)) for key in ("failed", "not_judged", "verifier_failed")),
                " / ".join(_count(ends.get(key)) for key in ("stop", "length", "error")),
                compact(held.get("mean_tokens")),
                f"{percent1(complete.accuracy)} ({interval(complete)})" if complete else NONE,
            )
        )
    if not rows:
        return ""
    heads = ("task", "metric", "value", "95% interval, %", "questions")
    shown = f'<div class="metrics named">{table(heads, rows)}</div>'
    heads = ("task", "questions", "samples each", "cut off", "no answer", "failed")
    heads += ("not judged", "verifier failed")
    heads += ("stop / length / error", "mean tokens", "accuracy of the uncut (95%)")
    shown += f'<h3 class="gap">How the samples ended</h3>{table(heads, facts)}' if facts else ""
    return f"<section><h2>Every number</h2>{shown}</section>"


def _count(value: object) -> str:
    found = number(value)
    return NONE if found is None else f"{found:,.0f}"


def _made_of(evaluation: Evaluation) -> str:
    """What is alike in all tasks once, the rest in a table."""
    tasks = {task.name: made for task in evaluation.tasks if (made := dict(made_by(task)))}
    keys = list(dict.fromkeys(key for made in tasks.values() for key in made))
    values = {key: [made.get(key) for made in tasks.values()] for key in keys}
    alike = [(key, found[0]) for key, found in values.items() if len(set(found)) == 1 and found[0]]
    pairs = [*general(evaluation), *alike]
    items = "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in pairs)
    apart = [key for key in keys if len(set(values[key])) > 1]
    rows = [(name, *(made.get(key, NONE) for key in apart)) for name, made in tasks.items()]
    shown = table(("task", *apart), rows) if apart else ""
    return f'<section><h2>What produced them</h2><dl class="made">{items}</dl>{shown}</section>'


# --- curves ---


def _curves(evaluation: Evaluation) -> str:
    charts = [chart for task in evaluation.tasks for chart in (_by_k(task), _by_budget(task)) if chart]
    if not charts:
        return ""
    last = len(charts) - 1
    grid = "".join(
        f'<div class="{"s6" if i == last and i % 2 == 0 else "s3"}">{chart}</div>'
        for i, chart in enumerate(charts)
    )
    about = "Bands are 95% intervals, where there is one. Point at a chart to read its values."
    return (
        f'<section><h2>With more samples, with more tokens</h2><p class="about">{about}</p>'
        f'<div class="charts">{grid}</div></section>'
    )


def _by_k(task: Task) -> str:
    points = _points(task, "k", "k")
    metrics = task.metrics
    lines = []
    for tone, (key, label) in enumerate((("pass", "pass@k"), ("cons", "cons@k"))):
        found = [metrics.get(f"{key}@{int(k)}") for k, _ in points]
        band = [(e.lo, e.hi) if e and e.lo < e.hi else None for e in found]
        lines.append(Line(label, [number(record.get(key)) for _, record in points], tone, band))
    mean = next((e for name, e in metrics.items() if name.startswith("avg@")), None)
    if mean and points:
        lines.append(Line("mean", [mean.accuracy for _ in points], 5, strong=False))
    note = "pass@k: one of k samples is right. cons@k: the most frequent answer of k is right."
    steps = [k for k, _ in points]
    title = f"{task.name}: samples"
    return line_chart(title, steps, lines, percent1, note=note, smooth=False, unit="k =", height=190)


def _by_budget(task: Task) -> str:
    points = _points(task, "budget", "tokens")
    line = Line("accuracy", [number(record.get("accuracy")) for _, record in points])
    note = "Answers that are right and took no more tokens than that."
    steps = [tokens for tokens, _ in points]
    title = f"{task.name}: token budget"
    return line_chart(title, steps, [line], percent1, note=note, smooth=False, unit="tokens", height=190)


def _points(task: Task, curve: str, key: str) -> list[tuple[float, Record]]:
    """A curve's records by what they are drawn against, in order."""
    found = part(task.result, "curves").get(curve)
    records = [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []
    known = [(x, one) for one in records if (x := number(one.get(key))) is not None]
    return sorted(known, key=lambda point: point[0])


def _reported(evaluation: Evaluation) -> str:
    rows = []
    for task in evaluation.tasks:
        ours = next(iter(task.metrics.items()), None)
        found = reports(task)
        if found and ours:
            name, e = ours
            rows.append(
                (
                    task.name,
                    f"{evaluation.model} (this page)",
                    f"{percent1(e.accuracy)} ({interval(e)})",
                    name,
                    "",
                )
            )
        for one in found:
            cells = (str(one.get(key) or NONE) for key in ("setting", "source"))
            rows.append(
                ("" if ours else task.name, str(one.get("model") or NONE), percent1(one.get("value")), *cells)
            )
    if not rows:
        return ""
    heads = ("task", "model", "value", "setting", "source")
    about = "Other prompts, samplings and verifiers give other numbers: compare within one setting."
    return (
        f'<section class="papers"><h2>What papers report</h2><p class="about">{about}</p>'
        f"{table(heads, rows)}</section>"
    )


def _cut(allowed: int) -> str:
    return f"Of a completion at most {allowed:,} characters are shown."

"""Two evaluations of the same questions: what changed in each task, and on which questions they part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.evaluate.charts import escape, nice_ticks
from posttrain.evaluate.metrics import number
from posttrain.evaluate.page import table as html_table
from posttrain.evaluate.page import write_page as write_shell
from posttrain.evaluate.runfolder import Estimate
from posttrain.evaluate.words import NONE, percent1, share
from posttrain.harness import embed
from posttrain.harness.page import assets, callouts, samples_data, samples_section
from posttrain.harness.readback import Evaluation, Question, Task, part, read_evaluation
from posttrain.harness.show import MEANING, figures, grid, interval, wrapped

SURE = 0.05  # a p-value below this is called a difference


@dataclass(frozen=True)
class Parted:
    """A question that both answered with different shares of right samples. change: gained or lost."""

    before: Question
    after: Question
    change: str
    size: float


def write_comparison(a: Path, b: Path, statistics: Mapping[str, Any], out: Path) -> Path:
    """Writes the page of `b` against `a`. -> out

    statistics: {TASK: {"difference": b less a in 0..1, "ci95": [lo, hi], "p": float, "n": questions of both,
    "gained": questions that went up, "lost": that went down,
    "needed": {"0.01": questions that a difference of 0.01 takes to be seen, …}}}; any of it may be missing.

    Raises:
        PosttrainError: one of the folders holds no evaluation.
    """
    before, after = read_evaluation(a), read_evaluation(b)
    sides = labels(before, after)
    pairs = _pairs(before, after)
    found = {name: parted(*both) for name, both in pairs.items()}
    texts = [s for ones in found.values() for one in ones for q in (one.before, one.after) for s in q.samples]
    allowed = embed.limit(texts)
    questions = [
        embed.question(i, one.after, [one.before.samples, one.after.samples], allowed, one.change)
        for i, ones in enumerate(found.values())
        for one in ones
    ]
    counts = {
        change: sum(one.change == change for ones in found.values() for one in ones)
        for change in ("gained", "lost")
    }
    choices = {
        "Change": [("gained", "became right", counts["gained"]), ("lost", "became wrong", counts["lost"])]
    }
    about = (
        f"The questions on which the two disagree, the clearest first; {sides[1]} stands on the right. With "
        "several samples a question became right where more of them are. Of a completion at most "
        f"{allowed:,} characters are shown."
    )
    state = [
        f"{side}: {said}" for side, one in zip(sides, (before, after), strict=True) for said in one.state
    ]
    sections = [
        _head(sides),
        callouts(state),
        _differences(pairs, statistics),
        _numbers(pairs, statistics, sides),
    ]
    sections.append(_unlike(before, after, pairs))
    if questions:
        sections.append(samples_section("Where they disagree", about, list(found), choices))
    else:
        sections.append(
            "<section><h2>Where they disagree</h2><p>On no question that both answered.</p></section>"
        )
    style, script = assets()
    data = samples_data(sides, list(found), questions)
    return write_shell(out, " against ".join(reversed(sides)), sections, css=style, script=script, data=data)


def comparison_table(a: Path, b: Path, statistics: Mapping[str, Any]) -> str:
    """The differences for the terminal, at most 110 columns wide. Arguments as `write_comparison`.

    Raises:
        PosttrainError: one of the folders holds no evaluation.
    """
    before, after = read_evaluation(a, samples=False), read_evaluation(b, samples=False)
    sides = labels(before, after)
    rows: list[tuple[str, ...]] = [("task", "metric", "A", "[95%]", "B", "[95%]", "B - A", "[95%]", "p", "n")]
    for name, (then, now) in _pairs(before, after).items():
        one = part(statistics, name)
        metric, first, second = _primary(then, now)
        ends = difference(one)
        shown = (points(ends.accuracy), f"[{span(ends)}]") if ends else (NONE, "")
        rows.append((name, metric, *figures(first)[:2], *figures(second)[:2], *shown, *_sure(one)))
    names = [line for side, name in zip("AB", sides, strict=True) for line in wrapped(name, f"{side}: ")]
    return "\n".join([*names, "", *grid(rows, left=2), "", MEANING + "; differences in points"])


def labels(before: Evaluation, after: Evaluation) -> tuple[str, str]:
    """What the two are called: their models, else their folders, else A and B."""
    for names in ((before.model, after.model), (before.name, after.name)):
        if names[0] != names[1]:
            return names
    return f"A {before.name}", f"B {after.name}"


def parted(then: Task, now: Task) -> list[Parted]:
    """Questions (same id, same text) whose share of right samples differs, the clearest first."""
    known = {(q.id, q.text): q for q in then.questions}
    found = []
    for question in now.questions:
        other = known.get((question.id, question.text))
        was, rate = (None if other is None else right_share(other)), right_share(question)
        if other is not None and was is not None and rate is not None and was != rate:
            found.append(Parted(other, question, "gained" if rate > was else "lost", abs(rate - was)))
    return sorted(found, key=lambda one: -one.size)  # stable: else the file's order


def right_share(question: Question) -> float | None:
    """Of the samples that have a verdict; None without any."""
    judged = [sample.judged == "right" for sample in question.samples if sample.judged in ("right", "wrong")]
    return sum(judged) / len(judged) if judged else None


def difference(one: Mapping[str, Any]) -> Estimate | None:
    """A task's statistics as an Estimate of the difference; None where it holds none."""
    value, ci95, n = number(one.get("difference")), one.get("ci95"), number(one.get("n"))
    if value is None:
        return None
    ends = [number(v) for v in ci95] if isinstance(ci95, (list, tuple)) and len(ci95) == 2 else [None, None]
    lo, hi = (value if end is None else end for end in ends)
    return Estimate(value, lo, hi, None if n is None else int(n))


def points(value: float) -> str:
    """+4.2, in points of a hundred"""
    return f"{100 * value:+.1f}"


def span(found: Estimate) -> str:
    return f"{points(found.lo)}, {points(found.hi)}" if found.lo < found.hi else "no interval"


def _pairs(before: Evaluation, after: Evaluation) -> dict[str, tuple[Task, Task]]:
    known = {task.name: task for task in before.tasks}
    return {task.name: (known[task.name], task) for task in after.tasks if task.name in known}


def _primary(then: Task, now: Task) -> tuple[str, Estimate | None, Estimate | None]:
    """The primary metric of the later one, of both."""
    name = next(iter(now.metrics), "")
    return name, then.metrics.get(name), now.metrics.get(name)


def _sure(one: Mapping[str, Any]) -> tuple[str, str]:
    p, n = number(one.get("p")), number(one.get("n"))
    shown = NONE if p is None else "<0.001" if p < 0.001 else f"{p:.3f}"
    return shown, NONE if n is None else f"{n:,.0f}"


def _head(sides: Sequence[str]) -> str:
    first, second = map(escape, sides)
    return (
        f'<header><p class="kicker">posttrain eval compare</p><h1>{second}</h1>'
        f'<p class="lede">against <b>{first}</b>, on the questions that both answered</p></header>'
    )


def _differences(pairs: Mapping[str, tuple[Task, Task]], statistics: Mapping[str, Any]) -> str:
    """Each task's difference with its interval around the line of no difference."""
    found = {name: ends for name in pairs if (ends := difference(part(statistics, name)))}
    if not found:
        return '<p class="callout quiet">There are no differences: no task was answered by both.</p>'
    top = nice_ticks(0.0, max(0.01, *(abs(v) for e in found.values() for v in (e.lo, e.hi))))[-1]
    place = [(0, f"-{share(top)}"), (50, "no difference"), (100, f"+{share(top)}")]
    axis = "".join(f'<span style="left:{left}%">{word}</span>' for left, word in place)
    rows = f'<div class="row head"><span></span><span class="axis">{axis}</span><span>points</span></div>'
    for name, e in found.items():
        lo, hi, at = (50 + 50 * min(max(v / top, -1.0), 1.0) for v in (e.lo, e.hi, e.accuracy))
        one = part(statistics, name)
        p, n = _sure(one)
        won, lost = number(one.get("gained")), number(one.get("lost"))
        moved = "" if won is None or lost is None else f", {won:,.0f} up, {lost:,.0f} down"
        value = number(one.get("p"))
        sure = (e.lo > 0 or e.hi < 0) and (value is None or value < SURE)  # they come from two tests
        css = "level" if not sure else "up" if e.accuracy > 0 else "down"
        said = "" if sure else ": this alone shows no difference"
        rows += (
            f'<div class="row"><span class="name">{escape(name)}'
            f"<small>p {escape(p)}, {n} questions{moved}{said}</small></span>"
            '<span class="track" aria-hidden="true"><i class="zero"></i>'
            f'<i class="bar is" style="left:{lo:.2f}%;width:{hi - lo:.2f}%"></i>'
            f'<i class="mark is" style="left:{at:.2f}%"></i></span>'
            f'<span class="cell {css}">{points(e.accuracy)}<small>{span(e)}</small></span></div>'
        )
    return (
        '<section class="result alone" aria-label="Difference of each task">'
        f'<div class="intervals c1 wide">{rows}</div></section>'
    )


def _numbers(
    pairs: Mapping[str, tuple[Task, Task]], statistics: Mapping[str, Any], sides: Sequence[str]
) -> str:
    rows = []
    for name, both in pairs.items():
        metric, *found = _primary(*both)
        one = part(statistics, name)
        ends = difference(one)
        cells = [f"{percent1(e.accuracy)} ({interval(e)})" if e else NONE for e in found]
        gap = f"{points(ends.accuracy)} ({span(ends)})" if ends else NONE
        rows.append((name, metric, *cells, gap, *_sure(one)))
    if not rows:
        return ""
    heads = ("task", "metric", f"A: {sides[0]}", f"B: {sides[1]}", "B − A, points (95%)", "p", "questions")
    shown = f'<div class="metrics named">{html_table(heads, rows)}</div>'
    return f"<section><h2>Every number</h2>{shown}{_needed(pairs, statistics)}</section>"


def _needed(pairs: Mapping[str, tuple[Task, Task]], statistics: Mapping[str, Any]) -> str:
    """How many questions it takes to see a difference: a row a task, a column a difference."""
    known: dict[str, dict[float, float]] = {}
    for name in pairs:
        counts = part(part(statistics, name), "needed").items()
        found = {size: n for key, count in counts if (size := _number(key)) and (n := number(count))}
        known |= {name: found} if found else {}
    sizes = sorted({size for found in known.values() for size in found})
    if not sizes:
        return ""
    heads = ("task", "these are", *(f"{100 * size:g} point{'s' * (size != 0.01)}" for size in sizes))
    rows = [
        (
            name,
            _sure(part(statistics, name))[1],
            *(f"{n:,.0f}" if (n := found.get(s)) else NONE for s in sizes),
        )
        for name, found in known.items()
    ]
    title = "How many questions it takes to see a difference of"
    return f'<h3 class="gap">{title}</h3><div class="metrics">{html_table(heads, rows)}</div>'


def _number(text: object) -> float | None:
    try:
        return number(float(str(text)))
    except ValueError:
        return None


def _unlike(before: Evaluation, after: Evaluation, pairs: Mapping[str, tuple[Task, Task]]) -> str:
    """What the two were not asked alike, which a difference may come from; and the warnings of each."""
    said = []
    for name, both in pairs.items():
        made = [part(task.result, "made_by") for task in both]
        for key in ("sampling", "template", "data", "verifier", "few_shot"):
            if all(made) and made[0].get(key) != made[1].get(key):
                said.append(f"<li><b>{escape(name)}</b> {key.replace('_', ' ')} differs.</li>")
        for warning in dict.fromkeys(warning for task in both for warning in task.warnings):
            which = " and ".join(x for x, task in zip("AB", both, strict=True) if warning in task.warnings)
            said.append(f"<li><b>{escape(name)}, {which}</b> {escape(warning)}</li>")
    for one, side, other in ((before, "A", after), (after, "B", before)):
        missing = {task.name for task in one.tasks} - {task.name for task in other.tasks}
        said += [f"<li><b>{escape(name)}</b> was only asked in {side}.</li>" for name in sorted(missing)]
    if not said:
        return ""
    return (
        '<section id="warnings" class="callout" aria-labelledby="warnings-title">'
        f'<h3 id="warnings-title">Before these numbers are used</h3><ul>{"".join(said)}</ul></section>'
    )

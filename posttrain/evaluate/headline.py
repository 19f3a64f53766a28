"""The report's first section: accuracy before and after, with intervals on one axis."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from posttrain.evaluate.charts import escape, nice_ticks
from posttrain.evaluate.difference import difference, gain, verdicts
from posttrain.evaluate.metrics import number
from posttrain.evaluate.runfolder import Estimate, Record, Run, estimate
from posttrain.evaluate.seeing import BLIND, added, points
from posttrain.evaluate.words import NONE, decimal, duration, percent, share


def result_section(run: Run) -> str:
    """Strict, lenient and sampled accuracy, what is right without the pictures, and the facts beside them; ""
    without any evaluation."""
    before, after = run.evaluation("before") or {}, run.evaluation("after") or {}
    kinds = [
        (kind, estimate(before, kind), estimate(after, kind))
        for kind in ("strict", "lenient", "sampled", *BLIND)
    ]
    kinds = [row for row in kinds if row[1] or row[2]]
    if not kinds:
        return ""
    ends = [e.hi for _, b, a in kinds for e in (b, a) if e]
    top = 1.0 if max(ends) > 0.5 else nice_ticks(0.0, max(ends))[-1]
    unit = "update" if run.kind == "sft" else "step"
    when = "after" if run.finished or not after else f"{unit} {run.evaluated}"
    sides = [("was", "before"), ("is", when)]
    if run.kind == "eval":
        sides, when = [("is", "accuracy")], "greedy"
    elif not before:
        sides = sides[1:]
    rows = ""
    for kind, b, a in kinds:
        name, about = _kind_label(kind, after or before)
        found = {"was": b, "is": a}
        shown = "".join(accuracy_cell(found[css], css) for css, _ in sides)
        rows += interval_row(f"{escape(name)}<small>{escape(about)}</small>", b, a, top, shown)
    _, b, a = kinds[0]
    verdict = ""
    if b and a:
        same = difference(verdicts(run, "before"), verdicts(run, "after"))
        verdict = gain(b, a, same if kinds[0][0] == "strict" else None)
    shown = [(css, word, e) for css, word, e in (("was", "before", b), ("is", when, a)) if e]
    arrow = '<span class="arrow" aria-hidden="true">→</span><small></small>'
    big = arrow.join(
        f'<span class="{css}">{percent(e.accuracy)}</span><small>{escape(word)}</small>'
        for css, word, e in shown
    )
    return (
        '<section class="result" aria-label="Held-out accuracy">'
        f'<div class="big"><p class="numbers">{big}</p>{verdict}</div>'
        f'<div class="intervals c{len(sides)}">{axis_row(top, [word for _, word in sides])}{rows}</div>'
        f"{_facts(run, before, after)}</section>"
    )


def _kind_label(kind: str, evaluation: Record) -> tuple[str, str]:
    form = evaluation.get("form")
    if kind == "strict":
        return "Strict", f"greedy, form {form}" if form else "greedy, in the form asked for"
    if kind == "lenient":
        return "Lenient", "greedy, last number anywhere"
    if kind in BLIND:
        found = added(evaluation, kind)
        more = f"; the real ones add {points(found)}" if found else ""
        return kind.capitalize(), f"strict, {BLIND[kind]}{more}"
    sampled = evaluation.get("sampled")
    n, samples = (
        (number(sampled.get(key)) for key in ("n", "samples")) if isinstance(sampled, dict) else (None, None)
    )
    each = f"mean of {samples / n:.0f} a problem" if n and samples else "mean of the samples"
    return "Sampled", f"strict, {each}"


def axis_row(top: float, heads: Sequence[str]) -> str:
    """The axis from 0 to `top` above rows of intervals, and the heads of the columns beside it."""
    marks = "".join(f'<span style="left:{100 * t:g}%">{share(t * top)}</span>' for t in (0, 0.5, 1))
    columns = "".join(f"<span>{escape(head)}</span>" for head in heads)
    return f'<div class="row head"><span></span><span class="axis">{marks}</span>{columns}</div>'


def interval_row(name: str, before: Estimate | None, after: Estimate | None, top: float, cells: str) -> str:
    """Two accuracies with their intervals on one line. `name` and `cells` are HTML."""
    marks = ""
    if before and after:
        left, right = sorted(100 * min(e.accuracy / top, 1.0) for e in (before, after))
        marks += f'<i class="move" style="left:{left:.2f}%;width:{right - left:.2f}%"></i>'
    both = [(css, e) for css, e in (("was", before), ("is", after)) if e]
    for side, e in both:
        lo, hi = (100 * min(v / top, 1.0) for v in (e.lo, e.hi))
        marks += f'<i class="bar {side}" style="left:{lo:.2f}%;width:{hi - lo:.2f}%"></i>'
    for side, e in both:  # above both bars, where the intervals overlap
        marks += f'<i class="mark {side}" style="left:{100 * min(e.accuracy / top, 1.0):.2f}%"></i>'
    return (
        f'<div class="row"><span class="name">{name}</span>'
        f'<span class="track" aria-hidden="true">{marks}</span>{cells}</div>'
    )


def accuracy_cell(found: Estimate | None, css: str) -> str:
    """An accuracy in figures, its interval below it."""
    ends = f"<small>{100 * found.lo:.0f}–{100 * found.hi:.0f}%</small>" if found else ""
    return f'<span class="cell {css}">{percent(found.accuracy) if found else NONE}{ends}</span>'


def _facts(run: Run, before: Record, after: Record) -> str:
    def change(label: str, key: str, fmt: Callable[[object], str], unit: str = "") -> tuple[str, str]:
        values = [fmt(e.get(key)) for e in (before, after) if number(e.get(key)) is not None]
        return label, " → ".join(values) + (f" {unit}" if values and unit else "")

    seconds = number(run.result.get("seconds"))
    if seconds is None:
        seconds = sum(number(r.get("seconds")) or 0.0 for r in run.steps) or None
    facts = [
        change("Mean completion", "length", lambda v: decimal(v, 0), "tokens"),
        change("Works it out in steps", "steps_share", percent),
        change("Cut off", "truncated", percent),
        ("Updates" if run.kind == "sft" else "Steps", str(run.done) if run.done else ""),
        ("Time", duration(seconds) if seconds else ""),
    ]
    items = "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in facts if v)
    return f'<dl class="facts">{items}</dl>'

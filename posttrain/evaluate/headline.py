"""The report's first section: accuracy before and after, with intervals on one axis."""

from __future__ import annotations

from collections.abc import Callable

from posttrain.evaluate.charts import escape, nice_ticks
from posttrain.evaluate.metrics import disjoint, number
from posttrain.evaluate.runfolder import Estimate, Record, Run, estimate
from posttrain.evaluate.words import NONE, decimal, duration, percent, share


def result_section(run: Run) -> str:
    """Strict, lenient and sampled accuracy, and the facts beside them; "" without any evaluation."""
    before, after = run.evaluation("before") or {}, run.evaluation("after") or {}
    kinds = [
        (kind, estimate(before, kind), estimate(after, kind)) for kind in ("strict", "lenient", "sampled")
    ]
    kinds = [row for row in kinds if row[1] or row[2]]
    if not kinds:
        return ""
    ends = [e.hi for _, b, a in kinds for e in (b, a) if e]
    top = 1.0 if max(ends) > 0.5 else nice_ticks(0.0, max(ends))[-1]
    rows = "".join(_interval_row(_kind_label(kind, after or before), b, a, top) for kind, b, a in kinds)
    marks = "".join(f'<span style="left:{100 * t:g}%">{share(t * top)}</span>' for t in (0, 0.5, 1))
    when = "after" if run.finished or not after else f"step {run.evaluated}"
    _, b, a = kinds[0]
    verdict = ""
    if b and a:
        gain = 100 * (a.accuracy - b.accuracy)
        apart = disjoint((b.lo, b.hi), (a.lo, a.hi))
        verdict = f'<p class="gain">{gain:+.0f} points<span>' + (
            "the 95% intervals do not overlap</span></p>"
            if apart
            else "the 95% intervals overlap: this alone shows no change</span></p>"
        )
    shown = [(css, word, e) for css, word, e in (("was", "before", b), ("is", when, a)) if e]
    arrow = '<span class="arrow" aria-hidden="true">→</span><small></small>'
    big = arrow.join(
        f'<span class="{css}">{percent(e.accuracy)}</span><small>{escape(word)}</small>'
        for css, word, e in shown
    )
    return (
        '<section class="result" aria-label="Held-out accuracy before and after">'
        f'<div class="big"><p class="numbers">{big}</p>{verdict}</div>'
        f'<div class="intervals"><div class="row head"><span></span><span class="axis">{marks}</span>'
        f"<span>before</span><span>{escape(when)}</span></div>{rows}</div>"
        f"{_facts(run, before, after)}</section>"
    )


def _kind_label(kind: str, evaluation: Record) -> tuple[str, str]:
    form = evaluation.get("form")
    if kind == "strict":
        return "Strict", f"greedy, form {form}" if form else "greedy, in the form asked for"
    if kind == "lenient":
        return "Lenient", "greedy, last number anywhere"
    sampled = evaluation.get("sampled")
    n, samples = (
        (number(sampled.get(key)) for key in ("n", "samples")) if isinstance(sampled, dict) else (None, None)
    )
    each = f"mean of {samples / n:.0f} a problem" if n and samples else "mean of the samples"
    return "Sampled", f"strict, {each}"


def _interval_row(label: tuple[str, str], before: Estimate | None, after: Estimate | None, top: float) -> str:
    marks = ""
    if before and after:
        left, right = sorted(100 * min(e.accuracy / top, 1.0) for e in (before, after))
        marks += f'<i class="move" style="left:{left:.2f}%;width:{right - left:.2f}%"></i>'
    both = [(css, e) for css, e in (("was", before), ("is", after)) if e]
    for css, e in both:
        lo, hi = (100 * min(v / top, 1.0) for v in (e.lo, e.hi))
        marks += f'<i class="bar {css}" style="left:{lo:.2f}%;width:{hi - lo:.2f}%"></i>'
    for css, e in both:  # above both bars, where the intervals overlap
        marks += f'<i class="mark {css}" style="left:{100 * min(e.accuracy / top, 1.0):.2f}%"></i>'
    cells = "".join(
        f'<span class="cell {css}">{percent(e.accuracy) if e else NONE}'
        + (f"<small>{100 * e.lo:.0f}–{100 * e.hi:.0f}%</small>" if e else "")
        + "</span>"
        for css, e in (("was", before), ("is", after))
    )
    return (
        f'<div class="row"><span class="name">{escape(label[0])}<small>{escape(label[1])}</small></span>'
        f'<span class="track" aria-hidden="true">{marks}</span>{cells}</div>'
    )


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
        ("Steps", str(run.done) if run.done else ""),
        ("Time", duration(seconds) if seconds else ""),
    ]
    items = "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in facts if v)
    return f'<dl class="facts">{items}</dl>'

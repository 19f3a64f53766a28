"""Curves as inline SVG, readable without scripts at any width.

The SVG holds only lines, stretched to the box it is in; every word and number around it is HTML placed in
per cent, so that text keeps its size on a phone and on a wide screen. Hovering a step shows its values by CSS
alone.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from html import escape as html_escape

from posttrain.evaluate.words import percent, percent1, share

POINTS = 240  # a chart draws at most this many points; more steps are averaged in equal pieces
SMOOTH_FROM = 16  # with fewer points the raw line is clear enough
LABEL_HEIGHT = 15.0  # px between two labels at the right edge

Value = float | None
Format = Callable[[float], str]


def escape(text: object) -> str:
    """Anything as inert HTML text: tags escaped, characters that HTML forbids made visible."""
    return html_escape(visible(str(text).replace("\r\n", "\n")), quote=True)


def visible(text: str) -> str:
    """As many characters; those that HTML forbids or that turn the order of letters are made visible."""
    return _FORBIDDEN.sub(_visible, text)


# Control characters but tab and newline, marks that turn the order of letters, lone surrogates (valid in
# JSON, not in UTF-8), non-characters.
_FORBIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")


def _visible(found: re.Match[str]) -> str:
    """Control characters as their pictures (␀), the rest as the replacement character."""
    code = ord(found[0])
    return chr(0x2400 + code) if code < 0x20 else "\ufffd"


@dataclass(frozen=True)
class Line:
    """One curve. `values` has one entry a step (None: not measured); `band`, if any, a low and a high one.

    `tone` is an index into the palette of report.css; `strong` lines are thicker.
    """

    label: str
    values: Sequence[Value]
    tone: int = 0
    band: Sequence[tuple[float, float] | None] = ()
    strong: bool = True


def line_chart(
    title: str,
    steps: Sequence[float],
    lines: Sequence[Line],
    fmt: Format,
    *,
    note: str = "",
    smooth: bool = True,
    unit: str = "step",
    height: int = 132,
) -> str:
    """A figure, or "" when nothing was measured. Many steps: a bold moving mean over the faint raw line.

    unit: what one of `steps` is called.
    """
    lines = [line for line in lines if any(v is not None for v in line.values)]
    if not lines:
        return ""
    values = [v for line in lines for v in line.values if v is not None]
    values += [end for line in lines for ends in line.band if ends is not None for end in ends]
    ticks = nice_ticks(min(0.0, *values), max(0.0, *values))
    scale = _Scale(steps, ticks[0], ticks[-1])
    window = max(3, len(steps) // 12) | 1 if smooth and len(steps) >= SMOOTH_FROM else 1
    drawn, ends = [], []
    for line in reversed(lines):  # the first line lies on top
        shown = moving_mean(line.values, window)
        tone = f"t{line.tone % 6}" + (" strong" if line.strong else "")
        drawn.append(_band(scale, line, tone))
        if window > 1:
            drawn.append(_path(scale, line.values, f"raw {tone}"))
        drawn.append(_path(scale, shown, f"line {tone}"))
        last = next(v for v in reversed(shown) if v is not None)
        ends.append((scale.y(last), line.label, tone))
    labels = _end_labels(ends, height) if len(lines) > 1 else ""
    first = lines[0]
    known = [(s, v) for s, v in zip(steps, first.values, strict=True) if v is not None]
    summary = f"{title}: {first.label} from {fmt(known[0][1])} at {unit} {known[0][0]:g} to "
    summary += f"{fmt(known[-1][1])} at {unit} {known[-1][0]:g}."
    tips = _tips(scale, steps, [(line.label, line.values) for line in lines], fmt, unit)
    return _figure(
        title, fmt(known[-1][1]), note, summary, scale, ticks, fmt, "".join(drawn), labels, tips, height, unit
    )


def bar_chart(
    title: str,
    steps: Sequence[float],
    parts: Sequence[Line],
    fmt: Format,
    *,
    note: str = "",
    height: int = 132,
) -> str:
    """Parts of a whole as one stacked bar a step; "" when nothing was measured."""
    # A negative duration (a clock set back) has no bar.
    parts = [replace(part, values=[v and max(0.0, v) for v in part.values]) for part in parts]
    parts = [part for part in parts if any(part.values)]
    if not parts:
        return ""
    totals = [sum(part.values[i] or 0.0 for part in parts) for i in range(len(steps))]
    ticks = nice_ticks(0.0, max(totals))
    scale = _Scale(steps, 0.0, ticks[-1], bars=True)
    rects = []
    width = 100 / len(steps)
    gap = 0.08 if len(steps) <= 40 else -0.02  # many thin bars read better as one area, without hairlines
    for i, _ in enumerate(steps):
        base = 0.0
        for part in parts:
            if value := part.values[i]:
                top = scale.y(base + value)
                size = scale.y(base) - top
                rects.append(
                    f'<rect class="bar t{part.tone % 6}" x="{i * width + width * gap:.2f}" y="{top:.2f}" '
                    f'width="{width * (1 - 2 * gap):.2f}" height="{size:.2f}"/>'
                )
                base += value
    sums = [sum(v or 0.0 for v in part.values) for part in parts]
    shares = [part_sum / sum(sums) for part_sum in sums]
    ends, base = [], 0.0
    for part, portion in zip(parts, shares, strict=True):
        ends.append((scale.y((base + portion / 2) * totals[-1]), part.label, f"t{part.tone % 6}"))
        base += portion
    summary = ", ".join(f"{part.label} {share(portion)}" for part, portion in zip(parts, shares, strict=True))
    tips = _tips(scale, steps, [(part.label, part.values) for part in parts], fmt)
    return _figure(
        title,
        fmt(totals[-1]),
        note,
        f"{title}: {summary}.",
        scale,
        ticks,
        fmt,
        "".join(rects),
        _end_labels(ends, height),
        tips,
        height,
    )


def thin(steps: Sequence[float], columns: Sequence[Sequence[Value]]) -> tuple[list[float], list[list[Value]]]:
    """At most POINTS points: steps in equal pieces, each the mean of what was measured in it."""
    size = -(-len(steps) // POINTS) if steps else 1
    starts = range(0, len(steps), size)
    means = [[_mean(column[at : at + size]) for at in starts] for column in columns]
    ends = [steps[min(at + size, len(steps)) - 1] for at in starts]
    return [*steps[:1], *ends[1:]], means  # so that the axis runs from the first step to the last


def moving_mean(values: Sequence[Value], window: int) -> list[Value]:
    """The centred mean over `window` steps (odd), where the step itself was measured."""
    half = window // 2
    return [
        None if v is None else _mean(values[max(0, i - half) : i + half + 1]) if window > 1 else v
        for i, v in enumerate(values)
    ]


def nice_ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten) that enclose [low, high], about `count` of them."""
    span = high - low
    if not math.isfinite(span) or span < 1e-300:
        return [0.0, 1.0]
    raw = span / (count - 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next((m * power for m in (1, 2, 2.5, 5) if m * power >= raw * 0.999), 10 * power)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, last + 1)]


def _mean(values: Sequence[Value]) -> Value:
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else None


class _Scale:
    """Steps and values -> per cent of the plot; y runs down, as in SVG."""

    def __init__(self, steps: Sequence[float], low: float, high: float, bars: bool = False):
        self.steps, self.low, self.high, self.bars = steps, low, high, bars

    def x(self, i: int) -> float:
        if self.bars:
            return 100 * (i + 0.5) / len(self.steps)
        first, last = self.steps[0], self.steps[-1]
        return 100 * (self.steps[i] - first) / (last - first) if last > first else 50.0

    def y(self, value: float) -> float:
        return 100 * (self.high - value) / (self.high - self.low)


def _path(scale: _Scale, values: Sequence[Value], css: str) -> str:
    """A polyline with gaps where a value is missing; a point alone becomes a dot (a round-capped stroke)."""
    commands, open_ = [], False
    for i, value in enumerate(values):
        if value is None:
            open_ = False
            continue
        x, y = f"{scale.x(i):.2f}", f"{scale.y(value):.2f}"
        alone = not open_ and (i + 1 == len(values) or values[i + 1] is None)
        commands.append(f"L{x} {y}" if open_ else f"M{x} {y}" + (f"L{x} {y}" if alone else ""))
        open_ = True
    dotted = " dots" if len(commands) == 1 else ""
    return f'<path class="{css}{dotted}" d="{"".join(commands)}"/>'


def _band(scale: _Scale, line: Line, tone: str) -> str:
    ends = [(i, band) for i, band in enumerate(line.band) if band is not None]
    if not ends:
        return ""
    if len(ends) == 1:
        i, (lo, hi) = ends[0]
        return f'<path class="whisker {tone}" d="M{scale.x(i):.2f} {scale.y(lo):.2f}V{scale.y(hi):.2f}"/>'
    top = [f"{scale.x(i):.2f} {scale.y(hi):.2f}" for i, (_, hi) in ends]
    bottom = [f"{scale.x(i):.2f} {scale.y(lo):.2f}" for i, (lo, _) in reversed(ends)]
    return f'<path class="band {tone}" d="M{"L".join(top + bottom)}Z"/>'


def _end_labels(ends: list[tuple[float, str, str]], height: int) -> str:
    """Names at the right edge, pushed apart so that none covers another. `ends`: (y %, name, css)."""
    ordered = sorted(ends, key=lambda end: end[0])
    gap = LABEL_HEIGHT / height * 100
    places = [y for y, _, _ in ordered]
    for i in range(1, len(places)):
        places[i] = max(places[i], places[i - 1] + gap)
    if places and places[-1] > 100:
        places[-1] = 100.0
        for i in range(len(places) - 2, -1, -1):
            places[i] = min(places[i], places[i + 1] - gap)
    return "".join(
        f'<span class="end {css}" style="top:{place:.1f}%" title="{escape(name)}">{escape(name)}</span>'
        for place, (_, name, css) in zip(places, ordered, strict=True)
    )


def _tips(
    scale: _Scale,
    steps: Sequence[float],
    columns: Sequence[tuple[str, Sequence[Value]]],
    fmt: Format,
    unit: str = "step",
) -> str:
    """One hover strip a step; its values appear above the plot."""
    tips = []
    edges = [0.0, *((scale.x(i) + scale.x(i + 1)) / 2 for i in range(len(steps) - 1)), 100.0]
    for i, step in enumerate(steps):
        shown = [
            f"{escape(name)} {escape(fmt(v))}" for name, values in columns if (v := values[i]) is not None
        ]
        if not shown:
            continue
        side = " flip" if scale.x(i) > 50 else ""
        tips.append(
            f'<i style="left:{edges[i]:.2f}%;width:{edges[i + 1] - edges[i]:.2f}%">'
            f'<b class="tip{side}"><u>{unit} {step:g}</u>{"<br>".join(shown)}</b></i>'
        )
    return "".join(tips)


def _figure(
    title: str,
    now: str,
    note: str,
    summary: str,
    scale: _Scale,
    ticks: Sequence[float],
    fmt: Format,
    drawn: str,
    labels: str,
    tips: str,
    height: int,
    unit: str = "step",
) -> str:
    axis = share if fmt in (percent, percent1) else fmt
    rules = "".join(f'<path class="rule" d="M0 {scale.y(t):.2f}H100"/>' for t in ticks)
    y_axis = "".join(f'<span class="y" style="top:{scale.y(t):.2f}%">{escape(axis(t))}</span>' for t in ticks)
    first, last = scale.steps[0], scale.steps[-1]
    x_axis = f'<span class="x first">{f"{unit} " if last > first else ""}{first:g}</span>'
    x_axis = x_axis + f'<span class="x last">{last:g}</span>' if last > first else x_axis
    named = " named" if labels else ""
    about = f'<p class="note">{escape(note)}</p>' if note else ""
    return (
        f'<figure class="chart"><figcaption><h3>{escape(title)}</h3>'
        f'<span class="now">{escape(now)}</span></figcaption>'
        f'<div class="plot{named}" style="height:{height}px" role="img" aria-label="{escape(summary)}">'
        f'<svg viewBox="0 0 100 100" preserveAspectRatio="none" aria-hidden="true">{rules}{drawn}</svg>'
        f'<div aria-hidden="true">{y_axis}{x_axis}{labels}<div class="tips">{tips}</div></div></div>'
        f"{about}</figure>"
    )

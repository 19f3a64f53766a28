"""What a run looks like while it runs: a live panel on a terminal, one plain line a step anywhere else.

Everything goes to stderr, so stdout stays free for results.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from posttrain.evaluate.diagnose import why_flat
from posttrain.evaluate.metrics import number
from posttrain.evaluate.words import NONE, compact, decimal, duration, percent

BLOCKS = "▁▂▃▄▅▆▇█"
TWO_COLUMNS = 76  # narrower terminals get one column
QUIET = 30.0  # seconds between progress lines inside a step, where there is no terminal


class Display:
    """Use as a context manager around the run. Metrics are records as metrics.jsonl holds them; any field may
    be missing, None or NaN.

        with Display(total_steps=40, names=["accuracy", "form"]) as display:
            display.phase("generating", 24, 64)
            display.step({"step": 1, "reward": 0.4, ...})

    `plain` None chooses: live when stderr is a terminal that can draw, plain lines otherwise.
    """

    def __init__(
        self,
        total_steps: int,
        names: Sequence[str],
        plain: bool | None = None,
        console: Console | None = None,
    ):
        self.total_steps, self.names = total_steps, list(names)
        self.console = console or Console(stderr=True, highlight=False)
        can_draw = self.console.is_terminal and not self.console.is_dumb_terminal
        self.plain = not (can_draw and self.console.encoding.startswith("utf")) if plain is None else plain
        self.history: list[dict[str, Any]] = []
        self.why: str | None = None
        self._phase: tuple[str, int | None, int | None] = ("starting", None, None)
        self._start = self._last_step = self._last_line = time.monotonic()
        self._intervals: list[float] = []
        self._spinner = Spinner("dots", style="cyan")
        self._live: Live | None = None

    def __enter__(self) -> Display:
        self._start = self._last_step = self._last_line = time.monotonic()
        if not self.plain:
            self._live = Live(get_renderable=self._panel, console=self.console, refresh_per_second=6)
            self._live.start(refresh=True)
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._phase = ("", None, None)
            live, self._live = self._live, None
            live.stop()

    def phase(self, text: str, done: int | None = None, total: int | None = None) -> None:
        """What is going on inside the step. Cheap enough to call for every completion."""
        self._phase = (text, done, total)
        if self.plain and time.monotonic() - self._last_line > QUIET:
            self._line(f"{text} … {_fraction(done, total)}".rstrip(" …"))

    def step(self, metrics: dict[str, Any]) -> None:
        """A finished step or update (or an evaluation alone: a record with "heldout" and no more)."""
        now = time.monotonic()
        if _learned(metrics):
            # The first interval would hold start-up and the first evaluation: take the step's own time.
            measured = number(metrics.get("seconds")) if not self._intervals else None
            self._intervals.append(measured if measured is not None else now - self._last_step)
            self._last_step = now
        self.history.append(metrics)
        before, self.why = self.why, why_flat(self.history)
        if self.plain:
            self._line(step_line(metrics, self.total_steps, self.names, self.seconds_left()))
            if self.why is not None and self.why != before:
                self._line(f"why flat: {self.why}")

    def note(self, text: str) -> None:
        """A line that stays, above the live panel."""
        if self._live is not None:
            self.console.print(Text.from_ansi(text))
        else:
            self._line(text)

    def seconds_left(self) -> float | None:
        """Estimated from the time between steps, evaluations included; None before the first step."""
        done = max((number(r.get("step")) or 0.0 for r in self.history), default=0.0)
        if not self._intervals:
            return None
        recent = self._intervals[-20:]
        left = (self.total_steps - done) * sum(recent) / len(recent)
        return max(0.0, left - (time.monotonic() - self._last_step))

    def _line(self, text: str) -> None:
        self._last_line = time.monotonic()
        file = self.console.file
        encoding = getattr(file, "encoding", None) or "utf-8"
        print(text.encode(encoding, "replace").decode(encoding), file=file, flush=True)

    # --- the live panel ---

    def _panel(self) -> RenderableType:
        width = self.console.width
        latest = next((r for r in reversed(self.history) if _learned(r)), {})
        done = int(max((number(r.get("step")) or 0.0 for r in self.history), default=0.0))
        parts: list[RenderableType] = [self._head("update" if _tuned(latest) else "step", done, width)]
        if self.history:
            room = max(0, min(24, width - 34 if width < TWO_COLUMNS else (width - 60) // 2))
            if _tuned(latest):
                left, right = self._losses(latest, room), self._rates(latest)
            else:
                left, right = self._rewards(latest, room), self._signals(latest)
            if width >= TWO_COLUMNS:
                grid = Table.grid(padding=(0, 4, 0, 0))
                grid.add_row(left, right)
                parts += [Text(""), grid]
            else:
                parts += [Text(""), left, right]
        if self.why is not None:
            parts += [Text(""), Text(f"! {self.why}", style="yellow")]
        if self._phase[0]:
            parts += [Text(""), self._phase_row(width)]
        return Padding(Group(*parts), (1, 1, 0, 1))

    def _head(self, unit: str, done: int, width: int) -> RenderableType:
        elapsed, left = time.monotonic() - self._start, self.seconds_left()
        step = Text.assemble((f"{unit} ", "dim"), (f"{done}", "bold"), (f"/{self.total_steps}", "dim"))
        clock = Text(duration(elapsed), style="dim")
        if left is not None and done < self.total_steps:
            clock.append(f" · about {duration(left)} left")
        room = width - step.cell_len - clock.cell_len - 6
        row = Table.grid(padding=(0, 1, 0, 0))
        if room < 8:
            row.add_row(step, clock)
            return row
        bar = ProgressBar(max(1, self.total_steps), done, width=min(room, 48), complete_style="cyan")
        row.add_row(step, bar, clock)
        return row

    def _rewards(self, latest: dict[str, Any], room: int) -> Table:
        table = _table()
        table.add_row("reward", _bold(latest.get("reward")), self._trend("reward", room))
        for name in self.names if len(self.names) > 1 else []:
            key = f"reward/{name}"
            table.add_row(
                Text(f"  {_shorten(name, 18)}", style="dim"), decimal(latest.get(key)), self._trend(key, room)
            )
        self._add_heldout(table)
        return table

    def _losses(self, latest: dict[str, Any], room: int) -> Table:
        """Of supervised fine-tuning."""
        table, accuracy = _table(), "mean_token_accuracy"
        table.add_row("loss", _bold(latest.get("loss")), self._trend("loss", room))
        table.add_row(
            Text("  token accuracy", style="dim"), percent(latest.get(accuracy)), self._trend(accuracy, room)
        )
        self._add_heldout(table)
        return table

    def _rates(self, latest: dict[str, Any]) -> Table:
        table = _table()
        table.add_row("epoch", decimal(latest.get("epoch"), 2), "")
        table.add_row("entropy", decimal(latest.get("entropy"), 2), Text("nats a token", style="dim"))
        table.add_row("gradient", decimal(latest.get("grad_norm"), 2), Text("norm", style="dim"))
        table.add_row("rate", compact(latest.get("learning_rate")), "")
        table.add_row("read", compact(latest.get("num_tokens")), Text("tokens", style="dim"))
        return table

    def _add_heldout(self, table: Table) -> None:
        heldout = [r["heldout"] for r in self.history if isinstance(r.get("heldout"), dict)]
        for kind in ("strict", "lenient") if heldout else ():
            first, last = (_accuracy(h, kind) for h in (heldout[0], heldout[-1]))
            change = Text("" if last is None else interval(last[1]), style="dim")
            if first is not None and len(heldout) > 1:
                change.append(f" from {percent(first[0])}")
            label = "held-out" if kind == "strict" else Text("  lenient", style="dim")
            table.add_row(
                label, Text(percent(last and last[0]), style="bold green" if kind == "strict" else ""), change
            )

    def _trend(self, key: str, room: int) -> Text:
        values = [number(r.get(key)) for r in self.history if _learned(r)]
        return Text(sparkline(values, room), style="cyan")

    def _signals(self, latest: dict[str, Any]) -> Table:
        table = _table()
        table.add_row("pass rate", percent(latest.get("pass_rate")), "")
        table.add_row("silent", *_warn(silent(latest), _ratio(latest) >= 0.9, "groups"))
        cut = number(latest.get("truncated")) or 0.0
        table.add_row("truncated", *_warn(percent(latest.get("truncated")), cut >= 0.5, ""))
        table.add_row("length", decimal(latest.get("length"), 0), Text("tokens", style="dim"))
        table.add_row("entropy", decimal(latest.get("entropy"), 2), Text("nats a token", style="dim"))
        table.add_row("speed", decimal(latest.get("tokens_per_second"), 0), Text("tokens/s", style="dim"))
        failed = number(latest.get("masked_rows"))
        if failed:
            table.add_row("left out", *_warn(f"{failed:.0f}", True, "completions"))
        return table

    def _phase_row(self, width: int) -> RenderableType:
        text, done, total = self._phase
        label = Text(_shorten(text, max(8, width - 24)))
        row = Table.grid(padding=(0, 1, 0, 0))
        if done is None or not total:
            row.add_row(self._spinner, label)
            return row
        count = Text(_fraction(done, total), style="dim")
        room = width - label.cell_len - count.cell_len - 8
        cells: list[RenderableType] = [self._spinner, label, count]
        if room >= 8:
            cells.append(ProgressBar(total, min(done, total), width=min(room, 30), complete_style="dim cyan"))
        row.add_row(*cells)
        return row


def step_line(metrics: dict[str, Any], total_steps: int, names: Sequence[str], left: float | None) -> str:
    """One step or update as one line; what is missing is left out."""
    step = number(metrics.get("step"))
    parts = [f"{'update' if _tuned(metrics) else 'step'} {'?' if step is None else int(step)}/{total_steps}"]
    if _tuned(metrics):
        parts.append(f"loss {decimal(metrics.get('loss'))}")
        if (accuracy := percent(metrics.get("mean_token_accuracy"))) != NONE:
            parts.append(f"token accuracy {accuracy}")
    if "reward" in metrics:
        by_name = ", ".join(f"{name} {decimal(metrics.get(f'reward/{name}'), 2)}" for name in names)
        parts.append(f"reward {decimal(metrics.get('reward'))}" + (f" ({by_name})" if len(names) > 1 else ""))
    heldout = metrics.get("heldout")
    kinds = (("held-out", "strict"), ("lenient", "lenient"), ("blank", "blank"), ("shuffled", "shuffled"))
    for label, kind in kinds:
        if found := _accuracy(heldout, kind):
            parts.append(f"{label} {percent(found[0])} {interval(found[1])}".rstrip())
    for label, value in (
        ("pass", percent(metrics.get("pass_rate"))),
        ("silent", silent(metrics)),
        ("truncated", percent(metrics.get("truncated"))),
        ("length", decimal(metrics.get("length"), 0)),
        ("entropy", decimal(metrics.get("entropy"), 2)),
    ):
        if value != NONE:
            parts.append(f"{label} {value}")
    if (speed := number(metrics.get("tokens_per_second"))) is not None:
        parts.append(f"{speed:.0f} tokens/s")
    if failed := number(metrics.get("masked_rows")):
        parts.append(f"left out {failed:.0f}")
    if left is not None and (step or 0) < total_steps:
        parts.append(f"about {duration(left)} left")
    return " | ".join(parts)


# --- small words ---


def _learned(metrics: dict[str, Any]) -> bool:
    """Whether a record is of a step or an update, and not of an evaluation alone."""
    return "reward" in metrics or _tuned(metrics)


def _tuned(metrics: dict[str, Any]) -> bool:
    """Whether a record is of an update of supervised fine-tuning."""
    return "loss" in metrics and "reward" not in metrics


def interval(ci95: Sequence[float] | None) -> str:
    return "" if ci95 is None else f"[{100 * ci95[0]:.0f}–{100 * ci95[1]:.0f}]"


def silent(metrics: dict[str, Any]) -> str:
    quiet, groups = number(metrics.get("groups_silent")), number(metrics.get("groups"))
    return NONE if quiet is None or groups is None else f"{quiet:.0f}/{groups:.0f}"


def sparkline(values: Sequence[float | None], width: int) -> str:
    """The last values as block characters, averaged so that all steps fit; a gap where none was measured."""
    if width <= 0 or not values:
        return ""
    size = -(-len(values) // width)
    pieces = [[v for v in values[at : at + size] if v is not None] for at in range(0, len(values), size)]
    means = [sum(piece) / len(piece) if piece else None for piece in pieces]
    known = [m for m in means if m is not None]
    low, span = (min(known), max(known) - min(known)) if known else (0.0, 0.0)
    top = len(BLOCKS) - 1
    return "".join(" " if m is None else BLOCKS[round(top * (m - low) / span) if span else 0] for m in means)


def _accuracy(heldout: object, kind: str) -> tuple[float, Sequence[float] | None] | None:
    estimate = heldout.get(kind) if isinstance(heldout, dict) else None
    value = number(estimate.get("accuracy")) if isinstance(estimate, dict) else None
    if value is None or not isinstance(estimate, dict):
        return None
    ci95 = estimate.get("ci95")
    known = [number(v) for v in ci95] if isinstance(ci95, (list, tuple)) and len(ci95) == 2 else []
    ends = [v for v in known if v is not None]
    return value, ends if len(ends) == 2 else None


def _ratio(metrics: dict[str, Any]) -> float:
    quiet, groups = number(metrics.get("groups_silent")), number(metrics.get("groups"))
    return quiet / groups if quiet is not None and groups else 0.0


def _fraction(done: int | None, total: int | None) -> str:
    return "" if done is None else f"{done}" if not total else f"{done}/{total}"


def _shorten(text: str, width: int) -> str:
    while cell_len(text) > width and len(text) > 1:
        text = text[: max(1, min(len(text) - 2, width - 1))] + "…"
    return text


def _table() -> Table:
    table = Table.grid(padding=(0, 1, 0, 0))
    table.add_column(no_wrap=True, min_width=10)
    table.add_column(no_wrap=True, justify="right", min_width=6)
    table.add_column(no_wrap=True)
    return table


def _bold(value: object) -> Text:
    return Text(decimal(value), style="bold")


def _warn(text: str, bad: bool, unit: str) -> tuple[Text, Text]:
    return Text(text, style="yellow" if bad else ""), Text(unit, style="dim")

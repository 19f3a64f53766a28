"""The report's second section: how the run went, step by step."""

from __future__ import annotations

from collections.abc import Callable

from posttrain.evaluate.charts import SMOOTH_FROM, Format, Line, bar_chart, escape, line_chart, thin
from posttrain.evaluate.diagnose import why_flat
from posttrain.evaluate.metrics import number
from posttrain.evaluate.runfolder import Record, Run, estimate
from posttrain.evaluate.seeing import TOWER, tower
from posttrain.evaluate.words import compact, percent

# Charts of one metric: title, key in metrics.jsonl, how its values read, what it means.
SINGLE: tuple[tuple[str, str, Format, str], ...] = (
    ("Completion length", "length", compact, "Mean tokens."),
    ("Cut off", "truncated", percent, "Completions that ran out of tokens."),
    ("Entropy", "entropy", compact, "Mean nats a token. Near 0 nothing new is tried."),
    ("Mismatch", "mismatch", compact, "Mean |log π trainer − log π engine| a token."),
    ("KL", "kl", compact, "To the reference policy, nats a token."),
    ("Gradient norm", "grad_norm", compact, "Before clipping."),
    ("Speed", "tokens_per_second", compact, "Completion tokens a second, over the whole step."),
)
# Of supervised fine-tuning, beside the loss.
LOSS = "Mean nats a token of what is learned."
SFT: tuple[tuple[str, str, Format, str], ...] = (
    ("Token accuracy", "mean_token_accuracy", percent, "Tokens that the model held for the likeliest."),
    ("Entropy", "entropy", compact, "Mean nats a token."),
    ("Gradient norm", "grad_norm", compact, "Before clipping."),
    ("Learning rate", "learning_rate", compact, ""),
    ("Tokens", "num_tokens", compact, "Read so far."),
    ("Seconds an update", "seconds", compact, ""),
)
PHASES = ("seconds_generate", "seconds_reward", "seconds_update")

Column = Callable[[Record], float | None]


def curves_section(run: Run) -> str:
    """Every chart for which something was measured; "" when nothing was."""
    wide, small = charts(run)
    small += tower_charts(run)
    grid = _grid(wide, small)
    if not grid:
        return ""
    unit = "updates" if run.kind == "sft" else "steps"
    many = len(run.steps) >= SMOOTH_FROM
    faint = f"Faint lines are single {unit}, bold ones a moving mean. " if many else ""
    why = why_flat(run.steps)
    callout = f'<p class="callout"><b>Why reward is flat.</b> {escape(why)}</p>' if why else ""
    return (
        f'<section><h2>How it went</h2><p class="about">{faint}Point at a chart to read its values.</p>'
        f'{callout}<div class="charts">{grid}</div></section>'
    )


def charts(run: Run, height: int = 200) -> tuple[list[str], list[str]]:
    """The large charts, of `height` pixels, and the small ones, the most telling first."""
    if run.kind == "eval":  # one evaluation is no curve
        return [], []
    all_steps = [float(record["step"]) for record in run.steps]
    steps, _ = thin(all_steps, [])

    def line(label: str, read: Column, tone: int = 0, strong: bool = True) -> Line:
        _, (values,) = thin(all_steps, [[read(record) for record in run.steps]])
        return Line(label, values, tone, strong=strong)

    parts = list(dict.fromkeys(key for record in run.steps for key in record if key.startswith("reward/")))
    rewards = [line("total", _key("reward"))]
    for tone, key in enumerate(parts if len(parts) > 1 else [], 1):
        rewards.append(line(key.removeprefix("reward/"), _key(key), tone, strong=False))
    signal = [line("right", _key("pass_rate")), line("silent", _silent_share, 1, strong=False)]
    seconds = [line(key.removeprefix("seconds_"), _key(key), tone) for tone, key in enumerate(PHASES)]
    seconds.append(line("other", _other_seconds, 5))
    silent_note = "A group is silent when all its completions got the same reward: it teaches nothing."
    if run.kind == "sft":
        wide = [
            line_chart(
                "Loss", steps, [line("loss", _key("loss"))], compact, note=LOSS, unit="update", height=height
            )
        ]
        small = [
            line_chart(title, steps, [line(title.lower(), _key(key))], fmt, note=note, unit="update")
            for title, key, fmt, note in SFT
        ]
        wide.append(_heldout_chart(run, height, "update"))
        return [chart for chart in wide if chart], [chart for chart in small if chart]
    wide = [
        line_chart("Reward", steps, rewards, compact, height=height),
        _heldout_chart(run, height),
        line_chart("Pass rate and silent groups", steps, signal, percent, note=silent_note),
        bar_chart(
            "Seconds a step",
            steps,
            seconds,
            compact,
            note="By phase; reward: what generating left to wait for.",
        ),
    ]
    small = [
        line_chart(title, steps, [line(title.lower(), _key(key))], fmt, note=note)
        for title, key, fmt, note in SINGLE
    ]
    return [chart for chart in wide if chart], [chart for chart in small if chart]


def tower_charts(run: Run) -> list[str]:
    """Of a model that sees: what its tower makes of the held-out pictures, at each evaluation."""
    found = [(step, evaluation) for step, evaluation in run.evaluations if "tower" in evaluation]
    if len(found) < 2:
        return []
    steps, unit = [step for step, _ in found], "update" if run.kind == "sft" else "step"
    drawn = []
    for key, title, reads, note in TOWER:
        line = Line(title.lower(), [tower(evaluation, key) for _, evaluation in found])
        drawn.append(line_chart(title, steps, [line], reads, note=note, smooth=False, unit=unit))
    return [chart for chart in drawn if chart]


def _grid(wide: list[str], small: list[str]) -> str:
    """Rows of two wide charts, then of three small ones; what is left over in the last row fills it."""
    spans = [3] * (len(wide) // 2 * 2) + [6] * (len(wide) % 2)
    spans += [2] * (len(small) // 3 * 3) + {0: [], 1: [6], 2: [3, 3]}[len(small) % 3]
    return "".join(
        f'<div class="s{span}">{chart}</div>' for span, chart in zip(spans, wide + small, strict=True)
    )


def _heldout_chart(run: Run, height: int, unit: str = "step") -> str:
    lines = []
    for tone, kind in enumerate(("strict", "lenient")):
        found = [estimate(evaluation, kind) for _, evaluation in run.evaluations]
        band = [(e.lo, e.hi) if e else None for e in found]
        lines.append(Line(kind, [e.accuracy if e else None for e in found], tone, band, strong=tone == 0))
    steps = [step for step, _ in run.evaluations]
    note = "Greedy. Bands: 95% intervals."
    return line_chart(
        "Held-out accuracy", steps, lines, percent, note=note, smooth=False, unit=unit, height=height
    )


def _key(key: str) -> Column:
    return lambda record: number(record.get(key))


def _silent_share(record: Record) -> float | None:
    quiet, groups = number(record.get("groups_silent")), number(record.get("groups"))
    return quiet / groups if quiet is not None and groups else None


def _other_seconds(record: Record) -> float | None:
    """What is left of a step after its phases."""
    whole = number(record.get("seconds"))
    known = [seconds for seconds in (number(record.get(key)) for key in PHASES) if seconds is not None]
    return max(0.0, whole - sum(known)) if whole is not None and known else None

"""What a stage did, in words, and what it learned from or kept: for its own page and that of all stages."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from posttrain.evaluate.charts import escape
from posttrain.evaluate.metrics import number
from posttrain.evaluate.page import table
from posttrain.evaluate.runfolder import Record, Run, estimate, json_lines
from posttrain.evaluate.words import compact, percent
from posttrain.evaluate.written import TEXT_LIMIT, clip, completion, question

EXAMPLES, ROWS = "examples.txt", "rows.jsonl"
FIFTHS = ("0–20%", "20–40%", "40–60%", "60–80%", "80–100%")
REASONS = 20  # why completions were dropped: so many are shown
KEPT = 3  # kept rows shown on a stage's own page


def did(run: Run) -> str:
    """One line: "28 steps", "312 examples, 3 epochs, 117 updates", "kept 214 of 1,600 completions"."""
    if run.kind == "sample":
        kept, drawn = (sampled(run).get(key) for key in ("kept", "completions"))
        return f"kept {_count(kept)} of {_count(drawn, 'completion')}" if run.finished else "no rows yet"
    if run.kind == "export":
        return f"written as {run.result['dtype']}" if run.finished else "not written yet"
    if run.kind == "eval":
        after = estimate(run.evaluation("after"), "strict")
        if after is None:
            return "nothing measured yet"
        return _count(after.n, "problem") if after.n else "measured"
    if run.kind == "sft":
        return _learned(run)
    planned = f" of {run.total_steps}" if run.total_steps else ""
    return _count(run.done, "step") if run.finished else f"step {run.done}{planned}"


def _learned(run: Run) -> str:
    train = run.recipe.get("train")
    epochs = number(train.get("epochs")) if isinstance(train, dict) else None
    if not run.finished:
        at = number(run.steps[-1].get("epoch")) if run.steps else None
        of = f" of {epochs:g}" if epochs is not None else ""
        return f"update {run.done}" + (f", epoch {at:.2f}{of}" if at is not None else "")
    examples = number(run.result.get("examples"))
    parts = [_count(examples, "example")] if examples is not None else []
    parts += [_count(epochs, "epoch")] if epochs is not None else []
    return ", ".join([*parts, _count(run.done, "update")])


def stage_section(folder: Path, run: Run, rows: int = KEPT) -> str:
    """What an sft stage learned from, what a sample stage kept and why not the rest; "" for other kinds.

    rows: kept ones shown at most.
    """
    if run.kind == "sft":
        text = example_text(folder)
        about = '<p class="about">As the model saw it; what carries loss stands in «…».</p>'
        return f"<section><h2>What it learned from</h2>{about}{text}</section>" if text else ""
    if run.kind == "sample" and run.finished:
        return (
            f'<section><h2>What it kept</h2><p class="about">{escape(_sources(run))}</p>{counts(run)}'
            f"{kept_rows(folder, run, rows)}</section>"
        )
    return ""


def example_text(folder: Path, limit: int = TEXT_LIMIT) -> str:
    """The first characters of the examples that the stage wrote down; "" where it wrote none."""
    try:
        with (folder / EXAMPLES).open("rb") as file:
            text = file.read(100_000).decode("utf-8", "replace").strip()
    except OSError:
        return ""
    shown = f'<pre dir="auto" tabindex="0">{clip(text, EXAMPLES, limit)}</pre>'
    return f'<div class="sample"><div class="side">{shown}</div></div>' if text else ""


def _sources(run: Run) -> str:
    prompts = number(sampled(run).get("prompts"))
    of = f" of {_count(prompts, 'prompt')}" if prompts is not None else ""
    parts = sampled(run).get("parts")
    means = [f"{name} {compact(mean)}" for name, mean in parts.items()] if isinstance(parts, dict) else []
    return f"{did(run).capitalize()}{of}." + (f" Mean rewards: {', '.join(means)}." if means else "")


def counts(run: Run) -> str:
    """Prompts by the share of their completions that passed, all and those kept; why the rest was not."""
    found = sampled(run)
    rates = found.get("pass_rates")
    columns = [rates.get(key) for key in ("all", "kept")] if isinstance(rates, dict) else []
    shown = ""
    if len(columns) == 2 and all(isinstance(column, list) and len(column) == 5 for column in columns):
        rows = [
            (fifth, *map(_count, pair))
            for fifth, pair in zip(FIFTHS, zip(*columns, strict=True), strict=True)
        ]
        shown += f"<div>{table(('pass rate', 'all', 'kept'), rows)}</div>"
    dropped = found.get("dropped")
    if isinstance(dropped, dict) and dropped:
        ordered = sorted(dropped.items(), key=lambda item: -(number(item[1]) or 0.0))[:REASONS]
        shown += (
            f"<div>{table(('dropped because', 'completions'), [(k, _count(v)) for k, v in ordered])}</div>"
        )
    return f'<div class="pairs">{shown}</div>' if shown else ""


def kept_rows(folder: Path, run: Run, limit: int) -> str:
    """The first kept rows, with their prompts."""
    shown = ""
    for row in islice(json_lines(folder / ROWS, run), limit):
        record: Record = {**row, **{key: _text(row.get(key)) for key in ("prompt", "completion")}}
        rate = number(row.get("pass_rate"))
        word = "kept" if rate is None else f"kept · {percent(rate)} of its prompt's passed"
        sides = f'<div class="sides">{completion(record, word, ROWS)}</div>'
        shown += f'<article class="sample">{question(record, ROWS)}{sides}</article>'
    return shown


def sampled(run: Run) -> Record:
    """What a sample stage's result tells of its completions; empty for other kinds."""
    found = run.result.get("sampled")
    return found if isinstance(found, dict) else {}


def _text(value: object) -> str:
    """A text, or the contents of messages, as one text."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "\n".join(_text(m.get("content")) if isinstance(m, dict) else str(m) for m in value)
    return "" if value is None else str(value)


def _count(value: object, unit: str = "") -> str:
    """ "1,600 completions", "1 step"; "?" where it is no number."""
    found = number(value)
    text = "?" if found is None else f"{found:,.10g}"
    return f"{text} {unit}{'s' * (found != 1)}" if unit else text

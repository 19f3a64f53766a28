"""An evaluation's numbers for the terminal, as Markdown and as CSV. Each has its 95% interval beside it."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.cells import cell_len, chop_cells, set_cell_size

from posttrain.evaluate.charts import visible
from posttrain.evaluate.metrics import number
from posttrain.evaluate.runfolder import Estimate, Record
from posttrain.evaluate.words import NONE, compact, duration, percent1
from posttrain.files import replace_text
from posttrain.harness.lm_eval import lm_eval
from posttrain.harness.readback import Evaluation, Task, estimate, part, read_evaluation

WIDTH = 110  # columns of the table for the terminal
NAME = 26  # columns of a task's or a metric's name at most
MEANING = "[95%]: interval of the number to its left, over questions"
CSV_HEAD = ("model", "engine", "task", "metric", "primary", "value", "ci95_low", "ci95_high", "questions")
CSV_HEAD = (*CSV_HEAD, "samples_per_question", "truncated", "no_answer", "failed", "warnings")


def table(folder: Path) -> str:
    """The numbers for the terminal, at most 110 columns wide, then every warning and what is missing.

    Raises:
        PosttrainError: the folder holds no evaluation.
    """
    evaluation = read_evaluation(folder)
    rows: list[tuple[str, ...]] = [
        ("task", "metric", "value", "[95%]", "n", "cut off", "no answer", "failed", "tokens")
    ]
    for task in evaluation.tasks:
        facts = _facts(task)
        metrics: list[tuple[str, Estimate | None]] = list(task.metrics.items()) or [(NONE, None)]
        for i, (name, found) in enumerate(metrics):
            first = i == 0
            rows.append(
                (task.name if first else "", name, *figures(found), *(facts if first else ("", "", "", "")))
            )
        if complete := estimate(part(task.result, "facts").get("accuracy_if_complete")):
            rows.append(("", "if never cut off", *figures(complete), "", "", "", ""))
        rows += [("", name, *figures(found), "", "", "", "") for name, found in task.blind.items()]
    lines = grid(rows, left=2)
    if any(task.metrics for task in evaluation.tasks):
        lines += ["", MEANING]
    for task in evaluation.tasks:
        lines += [line for warning in task.warnings for line in wrapped(f"{task.name}: {warning}", "! ")]
        for one in reports(task):
            about = "; ".join(str(one[key]) for key in ("setting", "source") if one.get(key))
            said = f"{task.name}: {one.get('model')} is reported at {percent1(one.get('value'))} ({about})"
            lines += wrapped(said, "= ")
    lines += [line for said in evaluation.state for line in wrapped(said, "- ")]
    return "\n".join(lines)


def write_exports(folder: Path) -> list[Path]:
    """Writes result.md, result.csv and lm_eval.json beside result.json. -> their paths

    Raises:
        PosttrainError: the folder holds no evaluation.
    """
    evaluation = read_evaluation(folder)
    lm = json.dumps(lm_eval(folder, evaluation), ensure_ascii=False, indent=2, allow_nan=False) + "\n"
    texts = {"result.md": markdown(evaluation), "result.csv": rows_csv(evaluation), "lm_eval.json": lm}
    for name, text in texts.items():
        replace_text(folder / name, text.encode("utf-8", "replace").decode())
    return [folder / name for name in texts]


def markdown(evaluation: Evaluation) -> str:
    """Numbers, warnings, what produced them and what papers report, as GitHub's Markdown."""
    lines = [f"# {_plain(evaluation.model)}", ""]
    lines += [f"> **Not finished.** {_plain(said)}" for said in evaluation.state]
    lines += [""] if evaluation.state else []
    heads = ("task", "metric", "value", "95% interval", "questions", "cut off", "no answer", "failed")
    rows = []
    for task in evaluation.tasks:
        facts = _facts(task)[:3]
        for i, (name, found) in enumerate(task.metrics.items()):
            shown = f"**{name}**" if i == 0 else name
            rows.append((task.name, shown, *figures(found), *(facts if i == 0 else ("", "", ""))))
        if complete := estimate(part(task.result, "facts").get("accuracy_if_complete")):
            rows.append((task.name, "if never cut off", *figures(complete), "", "", ""))
        rows += [(task.name, name, *figures(found), "", "", "") for name, found in task.blind.items()]
    lines += _markdown_table(heads, rows) if rows else ["No numbers yet."]
    warnings = [(task.name, warning) for task in evaluation.tasks for warning in task.warnings]
    if warnings:
        lines += ["", "## Warnings", ""]
        lines += [f"- **{_plain(name)}**: {_plain(warning)}" for name, warning in warnings]
    reported = [
        (task.name, one.get("model"), percent1(one.get("value")), one.get("setting"), one.get("source"))
        for task in evaluation.tasks
        for one in reports(task)
    ]
    if reported:
        lines += ["", "## What papers report", ""]
        lines += _markdown_table(("task", "model", "value", "setting", "source"), reported)
    lines += ["", "## What produced it", ""]
    made = [(key, value) for key, value in general(evaluation)]
    made += [(f"{task.name}: {key}", value) for task in evaluation.tasks for key, value in made_by(task)]
    lines += _markdown_table(("what", "value"), made)
    return "\n".join(lines) + "\n"


def rows_csv(evaluation: Evaluation) -> str:
    """A row a task and metric, numbers unrounded; a task without numbers has one row without a metric."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(CSV_HEAD)
    for task in evaluation.tasks:
        facts = part(task.result, "facts")
        ends = [
            facts.get("truncated"),
            facts.get("no_answer"),
            facts.get("failed"),
            " | ".join(task.warnings),
        ]
        metrics: list[tuple[str, Estimate | None]] = list(task.metrics.items()) or [("", None)]
        for name, found in [*metrics, *task.blind.items()]:
            shown = (found.accuracy, found.lo, found.hi, found.n) if found else (None, None, None, None)
            primary = int(name == task.result.get("primary")) if found else ""
            start = (evaluation.model, evaluation.engine, task.name, name, primary)
            writer.writerow([*start, *shown, task.planned, *ends])
    return out.getvalue()


# --- words that the page uses too ---


def interval(found: Estimate) -> str:
    """41.2–49.5, in per cent; "no interval" where the file holds none."""
    return f"{100 * found.lo:.1f}–{100 * found.hi:.1f}" if found.lo < found.hi else "no interval"


def figures(found: Estimate | None) -> tuple[str, str, str]:
    """The value, its interval in brackets and the number of questions."""
    if found is None:
        return NONE, "", ""
    return percent1(found.accuracy), f"[{interval(found)}]", NONE if found.n is None else f"{found.n:,}"


def reports(task: Task) -> list[Record]:
    """What papers report of the task."""
    found = task.result.get("reported")
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []


def general(evaluation: Evaluation) -> list[tuple[str, str]]:
    """What produced all of the numbers: model, engine, time, versions, machine."""
    seconds = number(evaluation.result.get("seconds"))
    said: dict[str, Any] = {"model": evaluation.model, "engine": evaluation.engine}
    said["time"] = None if seconds is None else duration(seconds)
    for key in ("versions", "machine"):
        said |= part(evaluation.result, key) or part(evaluation.asked, key)
    return _pairs(said)


def made_by(task: Task) -> list[tuple[str, str]]:
    """What produced a task's numbers: sampling, seed, template, data, verifier."""
    made = part(task.result, "made_by")
    said: dict[str, Any] = dict(made)
    said |= {f"data {key}": value for key, value in part(made, "data").items()}
    said = {key: value for key, value in said.items() if not (key == "data" and isinstance(value, dict))}
    return _pairs(said)


def _pairs(said: Mapping[str, Any]) -> list[tuple[str, str]]:
    shown = []
    for key, value in said.items():
        if isinstance(value, dict):
            value = ", ".join(f"{k} {v}" for k, v in value.items() if v is not None)
        if value is not None and value != "":
            shown.append((str(key).replace("_", " "), str(value)))
    return shown


def _facts(task: Task) -> tuple[str, str, str, str]:
    facts = part(task.result, "facts")
    failed = number(facts.get("failed"))
    return (
        percent1(facts.get("truncated")),
        percent1(facts.get("no_answer")),
        NONE if failed is None else f"{failed:,.0f}",
        compact(facts.get("mean_tokens")),
    )


# --- for the terminal ---


def grid(rows: Sequence[Sequence[str]], left: int) -> list[str]:
    """Cells in columns, the first `left` of them to the left, the rest to the right; at most 110 columns.

    Where that is too wide, the names in the left columns are cut.
    """
    # Names are whatever people wrote: they must not move the cursor.
    rows = [["".join(c if c.isprintable() else " " for c in visible(cell)) for cell in row] for row in rows]
    widths = [max(cell_len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for i in range(left):
        widths[i] = min(NAME, widths[i])
    over = max(0, sum(widths) + 2 * (len(widths) - 1) - WIDTH)
    for i in range(left):
        cut = min(max(0, widths[i] - 8), over)
        widths[i], over = widths[i] - cut, over - cut
    lines = []
    for row in rows:
        cells = [_fit(cell, width, i < left) for i, (cell, width) in enumerate(zip(row, widths, strict=True))]
        lines.append(set_cell_size("  ".join(cells), WIDTH).rstrip())
    return lines


def _fit(text: str, width: int, left: bool) -> str:
    text = text if cell_len(text) <= width else set_cell_size(text, width - 1) + "…"
    space = " " * (width - cell_len(text))
    return text + space if left else space + text


def wrapped(text: str, mark: str) -> list[str]:
    """A sentence in lines of at most 110 columns, `mark` before the first one."""
    room = WIDTH - len(mark)
    lines, line = [], ""
    for word in "".join(c if c.isprintable() else " " for c in visible(text)).split():
        for piece in chop_cells(word, room) if cell_len(word) > room else [word]:
            if line and cell_len(line) + 1 + cell_len(piece) > room:
                lines.append(line)
                line = piece
            else:
                line = f"{line} {piece}" if line else piece
    lines.append(line)
    return [(mark if i == 0 else " " * len(mark)) + line for i, line in enumerate(lines)]


# --- Markdown ---

_SPECIAL = re.compile(r"([\\`*\[\]|~])")


def _plain(text: object) -> str:
    """Any text as one line of Markdown that means nothing but itself."""
    line = " ".join(visible(NONE if text is None else str(text)).split())
    return _SPECIAL.sub(r"\\\1", line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;"))


def _markdown_table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for row in rows:
        cells = [str(c) if re.fullmatch(r"\*\*[\w@.]+\*\*", str(c)) else _plain(c) for c in row]
        lines.append(f"| {' | '.join(cells)} |")
    return lines

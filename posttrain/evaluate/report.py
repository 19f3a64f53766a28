"""A run folder as one self-contained page: result, curves, what the model wrote, what produced it.

Model text is data: everything is escaped, and the page's own policy forbids scripts and outside content.
"""

from __future__ import annotations

from collections import Counter
from importlib.resources import files
from pathlib import Path
from typing import Any

from posttrain import __version__
from posttrain.evaluate.charts import escape
from posttrain.evaluate.curves import curves_section
from posttrain.evaluate.headline import result_section
from posttrain.evaluate.metrics import number
from posttrain.evaluate.runfolder import Run, estimate, read_run
from posttrain.evaluate.suspicion import suspicions
from posttrain.evaluate.words import NONE, decimal, percent
from posttrain.evaluate.written import written_section
from posttrain.files import replace_text

RECIPE_LIMIT = 100_000  # characters shown
REASONS = 20  # why completions were left out: so many are shown

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>
{css}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""


def write_report(folder: Path) -> Path:
    """Writes report.html into a run folder and returns its path.

    The run may be finished, still going, or killed: what is missing is left out and the page says so. Raises
    PosttrainError when the folder holds no run.
    """
    run = read_run(folder)
    sections = (_head(run), _callouts(run), result_section(run), curves_section(run), written_section(run))
    body = "\n".join(section for section in (*sections, _made_of(run)) if section)
    css = files("posttrain.evaluate").joinpath("report.css").read_text("utf-8")
    page = PAGE.format(title=f"{escape(run.name)} · posttrain", css=css, body=body)
    path = folder / "report.html"
    replace_text(path, page)
    return path


# --- head ---


def _head(run: Run) -> str:
    before, after = (estimate(run.evaluation(when), "strict") for when in ("before", "after"))
    model = f"<b>{escape(_model(run) or 'The model')}</b>"
    count = run.evaluated if before and after else run.done
    steps = f"{count} step{'s' * (count != 1)} of reinforcement learning"
    if before and after:
        n = f"{after.n or before.n} " if after.n or before.n else ""
        lede = (
            f"{model} got {percent(before.accuracy)} of {n}unseen problems right. After {steps} it gets "
            f"{percent(after.accuracy)} right."
        )
    elif before:
        lede = f"{model} gets {percent(before.accuracy)} of the unseen problems right before any training."
    else:
        lede = f"{model}, {steps}."
    if run.finished:
        status = '<span class="status done">finished</span>'
    else:
        planned = f" of {run.total_steps}" if run.total_steps else ""
        status = f'<span class="status">not finished · step {run.done}{planned}</span>'
    return (
        f'<header><p class="kicker">posttrain {status}</p><h1>{escape(run.name)}</h1>'
        f'<p class="lede">{lede}</p></header>'
    )


def _callouts(run: Run) -> str:
    notes = []
    if not run.finished:
        notes.append(
            '<p class="callout quiet">This run has no final evaluation: it is still going, or it was '
            "stopped. The page shows what was written until now.</p>"
        )
    if run.problems:
        notes.append(f'<p class="callout quiet">{escape(" ".join(run.problems))}</p>')
    if signs := suspicions(run):
        notes.append(
            '<p class="callout"><b>Is a reward being gamed?</b> '
            f"{escape(' '.join(signs))} Read those completions before you trust the curve.</p>"
        )
    return "\n".join([*notes, *left_out(run)])


def left_out(run: Run) -> list[str]:
    """How many completions had no reward, and why; nothing where all had one."""
    masked = sum(number(record.get("masked_rows")) or 0 for record in run.steps)
    reasons: Counter[str] = Counter()
    for record in run.steps:
        counts = record.get("reward_failures")
        for reason, count in (counts if isinstance(counts, dict) else {}).items():
            reasons[str(reason)] += int(number(count) or 0)
    failed = sum(reasons.values())
    if not masked and not failed:
        return []
    if masked > failed:
        reasons["no reward applied (None)"] = int(masked - failed)
    # The number of completions is not logged; tokens / mean length gives it.
    pairs = [(number(record.get("tokens")), number(record.get("length"))) for record in run.steps]
    rows = round(sum(tokens / length for tokens, length in pairs if tokens and length))
    of = f" of {rows:,}" if rows >= masked else ""
    told = f"{masked:,.0f}{of} training completions had no reward, so nothing was learnt from them."
    if not masked:
        told = "Every completion had a reward, but one that is only reported (weight 0) failed."
    shown = "".join(
        f"<tr><td>{escape(reason)}</td><td>{count:,}</td></tr>"
        for reason, count in reasons.most_common(REASONS)
    )
    more = f" The {REASONS} most frequent of {len(reasons):,}." if len(reasons) > REASONS else ""
    heads = '<tr><th scope="col">reason</th><th scope="col">times</th></tr>'
    table = f'<div class="scroll"><table><thead>{heads}</thead><tbody>{shown}</tbody></table></div>'
    return [
        f'<p class="callout"><b>Rewards that failed or did not apply.</b> {told}</p>',
        f"<details><summary>Why there was no value.{more}</summary>{table}</details>",
    ]


# --- what produced it ---


def _made_of(run: Run) -> str:
    model, result = run.recipe.get("model"), run.result
    versions = result.get("versions")
    rows: list[tuple[str, Any]] = [
        ("Model", _model(run)),
        ("Compute", model.get("compute") if isinstance(model, dict) else None),
        ("Seed", result.get("seed", run.recipe.get("seed"))),
        *_machine(result.get("machine")),
        ("Steps", f"{run.done} of {run.total_steps}" if run.total_steps else run.done or None),
        *(versions.items() if isinstance(versions, dict) else ()),
    ]
    items = "".join(
        f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in rows if v is not None and v != ""
    )
    recipe = ""
    if run.recipe_text.strip():
        text = escape(run.recipe_text[:RECIPE_LIMIT].rstrip())
        recipe = f"<details><summary>recipe.yaml, as it was resolved</summary><pre>{text}</pre></details>"
    return (
        f'<section><h2>What produced it</h2><dl class="made">{items}</dl>{_table(run)}{recipe}</section>'
        f"<footer>Written by posttrain {escape(__version__)} from the files beside this page.</footer>"
    )


def _machine(machine: object) -> list[tuple[str, Any]]:
    if not isinstance(machine, dict):
        return []
    memory = number(machine.get("peak_gib"))
    return [
        ("Machine", machine.get("device")),
        ("Cores", machine.get("cores")),
        ("Peak memory", None if memory is None else f"{memory:.1f} GiB"),
    ]


def _model(run: Run) -> str | None:
    model = run.result.get("model") or run.recipe.get("model")
    name = model.get("name") if isinstance(model, dict) else model
    return None if name is None else str(name)


def _table(run: Run) -> str:
    """Every held-out evaluation in numbers: the chart for those who cannot see it."""
    if not run.evaluations:
        return ""
    rows = ""
    for step, e in run.evaluations:
        cells = [f"{step:g}"]
        for kind in ("strict", "lenient"):
            found = estimate(e, kind)
            cells.append(
                f"{percent(found.accuracy)} ({100 * found.lo:.1f}–{100 * found.hi:.1f}%)" if found else NONE
            )
        cells += [decimal(e.get("length"), 1), percent(e.get("steps_share")), percent(e.get("truncated"))]
        rows += "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>"
    heads = "".join(
        f'<th scope="col">{h}</th>'
        for h in ("step", "strict", "lenient", "tokens", "works it out", "cut off")
    )
    return (
        '<details><summary>Held-out evaluations in numbers</summary><div class="scroll"><table>'
        f"<thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div></details>"
    )

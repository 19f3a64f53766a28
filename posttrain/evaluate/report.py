"""A run folder as one self-contained page: result, curves, what the model wrote, what produced it.

Model text is data: everything is escaped, and the page's own policy forbids scripts and outside content.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from posttrain.evaluate.charts import escape
from posttrain.evaluate.curves import curves_section
from posttrain.evaluate.headline import result_section
from posttrain.evaluate.metrics import number
from posttrain.evaluate.page import RECIPE_LIMIT, table, write_page
from posttrain.evaluate.runfolder import Run, estimate, read_run
from posttrain.evaluate.seeing import BLIND, TOWER, added, points, tower
from posttrain.evaluate.seeing import signs as signs_of_sight
from posttrain.evaluate.shown import Shown
from posttrain.evaluate.stage_text import did, stage_section
from posttrain.evaluate.suspicion import suspicions
from posttrain.evaluate.words import NONE, decimal, percent
from posttrain.evaluate.written import written_section

REASONS = 20  # why completions were left out: so many are shown
# What a step of each kind is called, one and several.
STEPS = {
    "grpo": ("step of reinforcement learning", "steps of reinforcement learning"),
    "sft": ("update of supervised fine-tuning", "updates of supervised fine-tuning"),
}


def write_report(folder: Path) -> Path:
    """Writes report.html into a run folder and returns its path.

    The run may be finished, still going, or killed: what is missing is left out and the page says so. Raises
    PosttrainError when the folder holds no run.
    """
    run = read_run(folder)
    shown = Shown([folder])
    sections = [_head(run), _callouts(run), result_section(run), curves_section(run)]
    sections += [written_section(run, shown), stage_section(folder, run), _made_of(run), shown.definitions()]
    return write_page(folder / "report.html", run.name, sections)


# --- head ---


def _head(run: Run) -> str:
    before, after = (estimate(run.evaluation(when), "strict") for when in ("before", "after"))
    model = f"<b>{escape(run.model or 'The model')}</b>"
    count = run.evaluated if after else run.done
    one, many = STEPS.get(run.kind, STEPS["grpo"])
    steps = f"{count} {one if count == 1 else many}"
    asked = next((e.n for e in (after, before) if e and e.n), None)
    n = f"{asked} " if asked else ""
    if run.kind not in STEPS:
        lede = f"{model}: {escape(did(run))}."
        if after:
            lede = f"{model} gets {percent(after.accuracy)} of {n}unseen problems right."
    elif before and after:
        lede = (
            f"{model} got {percent(before.accuracy)} of {n}unseen problems right. After {steps} it gets "
            f"{percent(after.accuracy)} right."
        )
    elif before:
        lede = f"{model} gets {percent(before.accuracy)} of the unseen problems right before any training."
    elif after:
        lede = f"After {steps} {model} gets {percent(after.accuracy)} of {n}unseen problems right."
    else:
        lede = f"{model}, {steps}."
    if run.finished:
        status = '<span class="status done">finished</span>'
    else:
        status = f'<span class="status">not finished · {escape(did(run))}</span>'
    return (
        f'<header><p class="kicker">posttrain {status}</p><h1>{escape(run.name)}</h1>'
        f'<p class="lede">{lede}</p></header>'
    )


def _callouts(run: Run) -> str:
    notes = []
    if not run.finished:
        what = "final evaluation" if run.kind in STEPS else "result"
        notes.append(
            f'<p class="callout quiet">This run has no {what}: it is still going, or it was stopped. '
            "The page shows what was written until now.</p>"
        )
    if run.problems:
        notes.append(f'<p class="callout quiet">{escape(" ".join(run.problems))}</p>')
    if signs := suspicions(run):
        notes.append(
            '<p class="callout"><b>Is a reward being gamed?</b> '
            f"{escape(' '.join(signs))} Read those completions before you trust the curve.</p>"
        )
    if seen := signs_of_sight(run):
        notes.append(f'<p class="callout"><b>Does it see?</b> {escape(" ".join(seen))}</p>')
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
    shown = table(
        ("reason", "times"), [(reason, f"{count:,}") for reason, count in reasons.most_common(REASONS)]
    )
    more = f" The {REASONS} most frequent of {len(reasons):,}." if len(reasons) > REASONS else ""
    return [
        f'<p class="callout"><b>Rewards that failed or did not apply.</b> {told}</p>',
        f"<details><summary>Why there was no value.{more}</summary>{shown}</details>",
    ]


# --- what produced it ---


def _made_of(run: Run) -> str:
    model, result = run.recipe.get("model"), run.result
    versions = result.get("versions")
    rows: list[tuple[str, Any]] = [
        ("Model", run.model),
        ("Compute", model.get("compute") if isinstance(model, dict) else None),
        ("Seed", result.get("seed", run.recipe.get("seed"))),
        *_machine(result.get("machine")),
        ("Updates" if run.kind == "sft" else "Steps", _steps(run)),
        ("Examples", run.result.get("examples")),
        *(versions.items() if isinstance(versions, dict) else ()),
    ]
    items = "".join(
        f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in rows if v is not None and v != ""
    )
    recipe = ""
    if run.recipe_text.strip():
        text = escape(run.recipe_text[:RECIPE_LIMIT].rstrip())
        recipe = f"<details><summary>recipe.yaml, as it was resolved</summary><pre>{text}</pre></details>"
    return f'<section><h2>What produced it</h2><dl class="made">{items}</dl>{_table(run)}{recipe}</section>'


def _steps(run: Run) -> object:
    return f"{run.done} of {run.total_steps}" if run.total_steps else run.done or None


def _machine(machine: object) -> list[tuple[str, Any]]:
    if not isinstance(machine, dict):
        return []
    memory = number(machine.get("peak_gib"))
    return [
        ("Machine", machine.get("device")),
        ("Cores", machine.get("cores")),
        ("Peak memory", None if memory is None else f"{memory:.1f} GiB"),
    ]


def _table(run: Run) -> str:
    """Every held-out evaluation in numbers: the chart for those who cannot see it."""
    if not run.evaluations:
        return ""
    rows = []
    blind = [kind for kind in BLIND if any(estimate(e, kind) for _, e in run.evaluations)]
    towers = [one for one in TOWER if any(tower(e, one[0]) is not None for _, e in run.evaluations)]
    for step, e in run.evaluations:
        cells = [f"{step:g}"]
        for kind in ("strict", "lenient"):
            found = estimate(e, kind)
            cells.append(
                f"{percent(found.accuracy)} ({100 * found.lo:.1f}–{100 * found.hi:.1f}%)" if found else NONE
            )
        cells += [decimal(e.get("length"), 1), percent(e.get("steps_share")), percent(e.get("truncated"))]
        for kind in blind:
            found = estimate(e, kind)
            cells += [percent(found.accuracy) if found else NONE, points(added(e, kind)) or NONE]
        cells += [reads(tower(e, key)) for key, _, reads, _ in towers]
        rows.append(cells)
    heads = ["step", "strict", "lenient", "tokens", "works it out", "cut off"]
    heads += [head for kind in blind for head in (kind, f"pictures add to {kind}")]
    heads += [title.lower() for _, title, _, _ in towers]
    return f"<details><summary>Held-out evaluations in numbers</summary>{table(heads, rows)}</details>"

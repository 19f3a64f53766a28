"""What a run or a stage came to, in a few lines for the terminal."""

from __future__ import annotations

from pathlib import Path

from posttrain.evaluate.metrics import number
from posttrain.evaluate.runfolder import Estimate, Run, estimate, read_run
from posttrain.evaluate.seeing import BLIND, added, points, sign_lines
from posttrain.evaluate.stage_text import did, sampled
from posttrain.evaluate.suspicion import suspicion_lines
from posttrain.profile import TABLE, TRACE

DROPPED = 5  # reasons why completions were dropped: so many are shown


def summary(folder: Path) -> str:
    """What a finished run or stage came to; PosttrainError where there is none."""
    run = read_run(folder)
    lines = [*_accuracies(run), *_dropped(run), _work(run)]
    for label, name, about in (
        ("report", "report.html", ""),
        ("rows", "rows.jsonl", ""),
        ("model", "model", "   (loads with AutoModelForCausalLM.from_pretrained)"),
    ):
        if (folder / name).exists():
            lines.append(f"{label:9} {folder / name}{about}")
    if (folder / TABLE).is_file():
        lines.append(f"profile   {folder / TABLE}, {folder / TRACE}")
    return "\n".join(lines + suspicion_lines(folder) + sign_lines(run))


def _accuracies(run: Run) -> list[str]:
    before, after = (run.evaluation(when) or {} for when in ("before", "after"))
    lines = []
    for kind, what in (
        ("strict", "in the asked-for form"),
        ("lenient", "last number anywhere"),
        ("sampled", "sampled"),
    ):
        shown = [_interval(e) for e in (estimate(before, kind), estimate(after, kind)) if e]
        lines += [f"{kind:9} {' -> '.join(shown)}   ({what})"] if shown else []
    for kind, what in BLIND.items():
        shown = [_interval(e) for e in (estimate(before, kind), estimate(after, kind)) if e]
        more = points(added(after or before, kind))
        told = f"{what}; the real ones add {more} points" if more else what
        lines += [f"{kind:9} {' -> '.join(shown)}   ({told})"] if shown else []
    for key, unit, form in (
        ("length", "tokens a completion", ".0f"),
        ("steps_share", "of completions show a step that holds", ".0%"),
    ):
        values = [v for v in (number(e.get(key)) for e in (before, after)) if v is not None]
        shown = [format(v, form) for v in values]
        lines += [f"{key.split('_')[0]:9} {' -> '.join(shown)} {unit}"] if shown else []
    return lines


def _dropped(run: Run) -> list[str]:
    dropped = sampled(run).get("dropped") if run.kind == "sample" else None
    known = {k: number(v) or 0.0 for k, v in dropped.items()} if isinstance(dropped, dict) else {}
    most = sorted(known.items(), key=lambda item: -item[1])[:DROPPED]
    # A reason may hold a reward's own words: they must not move the cursor.
    texts = ["".join(c if c.isprintable() else " " for c in f"{k} {v:,.0f}") for k, v in most]
    return [f"dropped   {', '.join(texts)}"] if texts else []


def _work(run: Run) -> str:
    """What was done, in which time and memory."""
    machine, seconds = run.result.get("machine"), number(run.result.get("seconds"))
    memory = machine.get("peak_gib") if isinstance(machine, dict) else None
    text = did(run) + (f" in {seconds / 60:.1f} minutes" if seconds is not None else "")
    return text + (f", {memory} GiB at most" if number(memory) is not None else "")


def _interval(value: Estimate) -> str:
    return f"{value.accuracy:.1%} [{value.lo:.1%} to {value.hi:.1%}]"

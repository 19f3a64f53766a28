"""What a run came to, in a few lines for the terminal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from posttrain.evaluate.suspicion import suspicion_lines
from posttrain.profile import TABLE, TRACE


def summary(folder: Path) -> str:
    """What a finished run came to, in a few lines for the terminal."""
    result = json.loads((folder / "result.json").read_text())
    lines = []
    for kind, what in (
        ("strict", "in the asked-for form"),
        ("lenient", "last number anywhere"),
        ("sampled", "sampled"),
    ):
        before, after = result["before"][kind], result["after"][kind]
        if before and after:
            lines.append(f"{kind:9} {_interval(before)} -> {_interval(after)}   ({what})")
    for key, unit in (
        ("length", "tokens a completion"),
        ("steps_share", "of completions show a step that holds"),
    ):
        before, after = result["before"][key], result["after"][key]
        form = ".0f" if key == "length" else ".0%"
        lines.append(f"{key.split('_')[0]:9} {before:{form}} -> {after:{form}} {unit}")
    minutes, memory = result["seconds"] / 60, result["machine"]["peak_gib"]
    lines.append(f"{result['steps']} steps in {minutes:.1f} minutes, {memory} GiB at most")
    lines.append(f"report    {folder / 'report.html'}")
    lines.append(f"model     {folder / 'model'}   (loads with AutoModelForCausalLM.from_pretrained)")
    if (folder / TABLE).is_file():
        lines.append(f"profile   {folder / TABLE}, {folder / TRACE}")
    return "\n".join(lines + suspicion_lines(folder))


def _interval(value: dict[str, Any]) -> str:
    low, high = value["ci95"]
    return f"{value['accuracy']:.1%} [{low:.1%} to {high:.1%}]"

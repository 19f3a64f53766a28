"""From the sides' reports to medians, ratios, results.json and RESULTS.md."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.sides import Report
from benchmarks.work import COMPLETIONS, Job

Part = dict[str, Any]
TITLES = {
    "step": "A whole training step",
    "update": "The update alone, of the same completions",
    "long": "The update with long prompts: P = 1000, R = 100",
    "linear": "What a batch of another size or shape costs",
    "rollout": "Rollouts, against transformers' generate",
    "vllm": "Rollouts, against vLLM's steady state",
    "vision": "A model that sees: completions that share a picture",
    "race": "Time to accuracy on the demo's recipe",
}


def part(cases: dict[str, list[Report]], job: Job, **more: Any) -> Part:
    """Medians a side and case beside the rounds they are of."""
    return {
        "prompts": job.prompts,
        "completions": COMPLETIONS,
        "max_tokens": job.tokens,
        "summary": {case: summarise(reports) for case, reports in cases.items()},
        "rounds": cases,
        **more,
    }


def summarise(reports: list[Report]) -> dict[str, dict[str, float]]:
    """Per side: medians of the counted rounds, and how many times the first side's rate it takes.

    slower: of tokens a second, in rounds that followed each other: their median, least (slower_low) and most
    (slower_high). The sides have the same tokens in a round; only the race's draw their own.
    """
    counted = [r for r in reports if r["repeat"]] or reports
    sides = list(dict.fromkeys(r["side"] for r in reports))
    rounds = {
        side: sorted((r for r in counted if r["side"] == side), key=lambda r: r["repeat"]) for side in sides
    }
    ours, rows = rounds[sides[0]], {}
    for side, mine in rounds.items():
        each = [rate(a) / rate(b) for a, b in zip(ours, mine, strict=True)]
        row = {
            "seconds": _median(mine, lambda r: r["seconds"]),
            "tokens": _median(mine, lambda r: r["tokens"]),
            "rate": _median(mine, rate),
            "peak_gib": max(r["peak_gib"] for r in mine),
            "slower": statistics.median(each),
            "slower_low": min(each),
            "slower_high": max(each),
        }
        if "generate" in mine[0]:
            row["generate"] = _median(mine, lambda r: r["generate"])
            row["update"] = _median(mine, lambda r: r["seconds"] - r["generate"])
        if "cpu" in mine[0]:
            row["cpu"] = _median(mine, lambda r: r["cpu"])
            row["cpu_ratio"] = row["cpu"] / _median(ours, lambda r: r["cpu"])
        if "packed" in mine[0]:
            row["packed_rate"] = _median(mine, lambda r: r["packed"] / r["seconds"])
        if "flops" in mine[0]:
            row["matmul_share"] = _median(mine, lambda r: r["flops"] / r["seconds"] / r["peak"])
            row["peak_tflops"] = mine[0]["peak"] / 1e12
        for key in ("weights", "start"):
            if key in mine[0]:
                row[key] = mine[0][key]
        rows[side] = row
    return rows


def rate(r: Report) -> float:
    """Completion tokens a second of what is measured."""
    return r["tokens"] / r["seconds"]


def _median(rounds: list[Report], value: Callable[[Report], float]) -> float:
    return statistics.median(value(r) for r in rounds)


# --- the race ---------------------------------------------------------------------------------------

TARGETS = (0.2, 0.3, 0.4, 0.5)  # held-out accuracy, strict


def curve(rounds: list[Report], side: str) -> list[tuple[float, float]]:
    """(minutes of training, held-out accuracy) wherever it was measured."""
    mine = sorted((r for r in rounds if r["side"] == side), key=lambda r: r["repeat"])
    minutes, points = 0.0, []
    for r in mine:
        minutes += r["seconds"] / 60
        if r["strict"] is not None:
            points.append((minutes, r["strict"]))
    return points


def reached(points: list[tuple[float, float]], target: float) -> float | None:
    return next((minutes for minutes, accuracy in points if accuracy >= target), None)


# --- ratios -----------------------------------------------------------------------------------------


def ratios(parts: dict[str, Part]) -> dict[str, float]:
    """Times: how many times posttrain's rate, of completions as long as the model's own; fixed: of equal
    lengths. memory: the share of TRL's at equal precision. matmul_share: of the machine's own bfloat16
    products. rate: of packed tokens, over that of the plain batch (x1), or of equal lengths."""
    found: dict[str, float] = {}

    def slower(key: str, name: str, case: str, side: str) -> None:
        if name in parts:
            found[key] = parts[name]["summary"][case][side]["slower"]

    slower("step_vs_trl", "step", "natural", "trl")
    slower("step_vs_trl_float32", "step", "natural", "trl_float32")
    slower("step_vs_trl_fixed", "step", "fixed", "trl")
    slower("update_vs_trl", "update", "update", "trl")
    slower("update_vs_trl_float32", "update", "update", "trl_float32")
    slower("long_prompt_update_vs_trl", "long", "update", "trl")
    slower("rollout_vs_generate", "rollout", "natural", "generate")
    slower("rollout_vs_generate_fixed", "rollout", "fixed", "generate")
    slower("rollout_vs_vllm_32", "vllm", "32 rows", "vllm")
    slower("rollout_vs_vllm_128", "vllm", "128 rows", "vllm")
    slower("vision_update_vs_trl", "vision", "update", "trl")
    slower("vision_frozen_vs_trl", "vision", "tower frozen", "trl")
    slower("vision_first_token_vs_generate", "vision", "first token", "generate")
    if "step" in parts:
        rows = parts["step"]["summary"]["natural"]
        found["memory_vs_trl"] = rows["posttrain"]["peak_gib"] / rows["trl_float32"]["peak_gib"]
    if "update" in parts:
        found["matmul_share"] = parts["update"]["summary"]["update"]["posttrain"]["matmul_share"]
    if "linear" in parts:
        rows = parts["linear"]["summary"]["linear"]
        found["rate_x4_batch"] = rows["posttrain x4"]["packed_rate"] / rows["posttrain x1"]["packed_rate"]
        found["rate_ragged"] = rows["posttrain x4"]["packed_rate"] / rows["posttrain x4 even"]["packed_rate"]
    if "race" in parts:
        ours, trl = (curve(parts["race"]["rounds"]["race"], side) for side in ("posttrain", "trl_float32"))
        both = [t for t in TARGETS if reached(ours, t) and reached(trl, t)]
        if both:
            found["race_vs_trl"] = (reached(trl, both[-1]) or 0) / (reached(ours, both[-1]) or 1)
    return {key: round(value, 4) for key, value in found.items()}


# --- files ------------------------------------------------------------------------------------------


HEAD = (
    "Written by `python -m benchmarks` (`make bench` runs every part). Sides take turns, each in a process",
    "of its own, after a warm-up round. Figures are medians, each by itself; ratios are the median, and in",
    "brackets the smallest and largest, of rounds that followed each other. Absolute figures drift with the",
    "machine; the ratios are what to trust.",
)


def store(out: Path, name: str, found: Part, settings: dict[str, str]) -> str:
    """Put a part's results beside the others'; -> its section of RESULTS.md."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / "results.json"
    parts: dict[str, Part] = json.loads(path.read_text())["parts"] if path.exists() else {}
    parts[name] = found
    parts = {key: parts[key] for key in TITLES if key in parts}
    result = {"ratios": ratios(parts), "sides": settings, "parts": parts}
    path.write_text(json.dumps(result, indent=1) + "\n")
    sections = {key: section(key, one) for key, one in parts.items()}
    lines = [
        "# posttrain and its peers, side by side",
        "",
        *HEAD,
        "",
        "| ratio | |",
        "|---|---|",
        *(f"| {key} | {value:.2f} |" for key, value in result["ratios"].items()),
        "",
        *(f"- {side}: {text}" for side, text in settings.items()),
        "",
    ]
    (out / "RESULTS.md").write_text("\n".join(lines) + "\n" + "\n".join(sections.values()))
    return sections[name]


def section(name: str, found: Part) -> str:
    """A part as Markdown."""
    machine, versions = found["machine"], ", ".join(f"{k} {v}" for k, v in found["versions"].items())
    lines = [f"## {TITLES[name]}", ""]
    for case, rows in found["summary"].items():
        lines += [f"{case}:", "", *table(rows), ""]
    if name == "race":
        lines += race(found)
    if "same" in found:
        firsts = {r["side"]: r["loss"] for r in found["rounds"]["update"] if r["repeat"] == 0}
        firsts |= found.get("losses", {})
        lines += [
            "Loss of the first update: " + ", ".join(f"{s} {loss:.6f}" for s, loss in firsts.items()),
            "",
        ]
        lines += ["| gradients of the first update | cosine | ratio of norms | difference |"]
        lines += ["|---|---|---|---|"]
        for pair, same in found["same"].items():
            cosine, ratio = same["cosine"], same["norm_ratio"]
            lines.append(f"| {pair} | {cosine:.6f} | {ratio:.4f} | {difference(cosine, ratio):.1e} |")
        lines.append("")
    shares = [row for rows in found["summary"].values() for row in rows.values() if "matmul_share" in row]
    if shares:
        lines.append(
            f"posttrain's update runs at {shares[0]['matmul_share']:.0%} of the machine's own products "
            f"({shares[0]['peak_tflops']:.3f} TFLOP/s; 6 x matrix entries x tokens, over the time)."
        )
    shown = f"pictures of {found['picture']} pixels; " if "picture" in found else ""
    what = (
        f"{found['model']}, {found['prompts']} prompts x {found['completions']} completions of up to "
        f"{found['max_tokens']} tokens; {shown}{machine['device']}, {machine['cores']} cores, "
        f"{machine['threads']} threads; {versions}; {found['date']}. Again: `python -m benchmarks {name}`."
    )
    return "\n".join([*lines, "", what, ""])


def difference(cosine: float, ratio: float) -> float:
    """|x - y| / |y| of two vectors, from their cosine and |x| / |y|."""
    return math.sqrt(max(0.0, (ratio - 1) ** 2 + 2 * ratio * (1 - cosine)))


COLUMNS = {
    "seconds": ("s", "{:.2f}"),
    "generate": ("rollouts, s", "{:.2f}"),
    "update": ("update, s", "{:.2f}"),
    "cpu": ("cores' s", "{:.2f}"),
    "cpu_ratio": ("of the first's", "{:.2f}"),
    "tokens": ("tokens", "{:.0f}"),
    "rate": ("tokens/s", "{:.0f}"),
    "packed_rate": ("packed tokens/s", "{:.0f}"),
    "weights": ("loading, s", "{:.2f}"),
    "start": ("start-up, s", "{:.2f}"),
    "peak_gib": ("GiB", "{:.2f}"),
}


def table(rows: dict[str, dict[str, float]]) -> list[str]:
    shown = [key for key in COLUMNS if any(key in row for row in rows.values())]
    lines = [
        "| side | " + " | ".join(COLUMNS[key][0] for key in shown) + " | slower than the first |",
        "|---|" + "---|" * (len(shown) + 1),
    ]
    for i, (side, row) in enumerate(rows.items()):
        cells = [COLUMNS[key][1].format(row[key]) if key in row else "" for key in shown]
        low, high = row["slower_low"], row["slower_high"]
        faster = f"**{row['slower']:.2f}×** ({low:.2f}–{high:.2f})" if i else ""
        lines.append(f"| {side} | " + " | ".join(cells) + f" | {faster} |")
    return lines


def race(found: Part) -> list[str]:
    """Minutes to each accuracy, and the curves."""
    rounds = found["rounds"]["race"]
    curves = {side: curve(rounds, side) for side in found["summary"]["race"]}
    lines = ["| held-out accuracy | " + " | ".join(f"{side}, min" for side in curves) + " |"]
    lines.append("|---|" + "---|" * len(curves))
    for target in TARGETS:
        cells = [reached(points, target) for points in curves.values()]
        lines.append(
            f"| {target:.0%} | " + " | ".join(f"{c:.1f}" if c else "not reached" for c in cells) + " |"
        )
    lines.append("")
    for side, points in curves.items():
        lines.append(f"- {side}: " + ", ".join(f"{a:.1%} at {m:.1f} min" for m, a in points))
    return [*lines, "", *chart(curves), ""]


def chart(curves: dict[str, list[tuple[float, float]]], width: int = 60, height: int = 12) -> list[str]:
    """Accuracy over minutes in text, a letter a side."""
    end = max(m for points in curves.values() for m, _ in points)
    top = max(a for points in curves.values() for _, a in points) or 1.0
    grid = [[" "] * (width + 1) for _ in range(height + 1)]
    for side, points in curves.items():
        for minutes, accuracy in points:
            grid[height - round(accuracy / top * height)][round(minutes / end * width)] = side[0]
    lines = [f"{top * (height - i) / height:6.1%} |" + "".join(row).rstrip() for i, row in enumerate(grid)]
    legend = ", ".join(f"{side[0]}: {side}" for side in curves)
    axis = "        +" + "-" * width
    return ["```", *lines, axis, f"         0 to {end:.1f} minutes of training   {legend}", "```"]

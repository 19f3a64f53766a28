"""Made-up folders of a run and of a run of stages that look like real ones: numbers that wander."""

from __future__ import annotations

import json
import math
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from posttrain.evaluate.metrics import proportion
from posttrain.harness.intervals import average
from posttrain.plan import Planned, begin, finish, plan
from posttrain.stages import dump, load_stages


def _evaluation(
    rng: random.Random, accuracy: float, form: float, samples: int, length: float
) -> dict[str, Any]:
    verdicts = [rng.random() < accuracy for _ in range(256)]
    lenient = [v or rng.random() < 0.04 / max(form, 0.3) for v in verdicts]
    sampled = None
    if samples:
        levels = [min(1.0, rng.betavariate(0.6, 0.6 / max(accuracy, 0.05) - 0.5)) for _ in range(256)]
        found = average([sum(rng.random() < p for _ in range(samples)) / samples for p in levels])
        sampled = {"accuracy": found["value"], "ci95": found["ci95"], "n": 256, "samples": 256 * samples}
    return {
        "strict": proportion(verdicts),
        "lenient": proportion(lenient),
        "sampled": sampled,
        "form": "the_answer_is",
        "length": length + rng.uniform(-1, 1),
        "steps_share": min(1.0, 0.86 + 0.13 * accuracy),
        "truncated": 0.11 * (1 - form),
    }


def _completion(rng: random.Random, a: int, b: int, c: int, right: bool, form: bool) -> str:
    total = a + b - c if right else a + b - c + rng.choice([-10, -2, 1, 2, 9])
    if not form:
        return (
            f"To find the number of apples, we add {a} and {b}.\n\nSo there are {total} apples in the basket."
        )
    return f"First, {a} + {b} = {a + b}.\nThen {a + b} - {c} = {total}.\nThe answer is: {total}"


def make_run(
    folder: Path,
    *,
    steps: int = 60,
    planned: int | None = None,
    seed: int = 0,
    result: bool = True,
    n: int = 256,
) -> Path:
    """`result` False: the run was killed after `steps` of its `planned` steps."""
    rng = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    planned = planned or steps
    recipe = {
        "name": "r1-zero-smollm2",
        "seed": seed,
        "output": "runs/demo",
        "model": {"name": "smollm2-135m", "compute": "bfloat16"},
        "data": {
            "train": {"source": "reasoning_gym:chain_sum", "size": 2000},
            "heldout": {"size": n, "seed": 2},
            "prompt": "{question}\nWork it out step by step. Finish with a line 'The answer is: N'.",
        },
        "rewards": [{"use": "accuracy"}, {"use": "format", "weight": 0.2}],
        "sampling": {"completions": 8, "max_tokens": 128, "temperature": 1.0},
        "train": {"steps": planned, "prompts": 8, "learning_rate": 2e-5, "loss": "grpo"},
        "evaluate": {"every": 10, "samples": 4},
    }  # fmt: skip
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    before = _evaluation(rng, 0.07, 0.15, 4, 61)
    lines = [{"step": 0, "heldout": {**before, "sampled": None}}]
    for step in range(1, steps + 1):
        t = step / planned
        form = 1 / (1 + math.exp(-12 * (t - 0.22)))
        accuracy = max(0.0, min(1.0, 0.05 + 0.5 * t**0.8 + rng.gauss(0, 0.055)))
        form = max(0.0, min(1.0, form + rng.gauss(0, 0.02)))
        length = 61 - 12 * t + rng.gauss(0, 2.2)
        tokens, seconds = int(length * 64), 8.2 + rng.gauss(0, 0.5)
        line: dict[str, Any] = {
            "step": step,
            "seconds": seconds,
            "reward": accuracy + 0.2 * form,
            "reward/accuracy": accuracy,
            "reward/format": form,
            "reward_std": 0.3,
            "pass_rate": accuracy,
            "groups": 8,
            "groups_silent": max(0, min(8, round(3.5 - 3 * t + rng.gauss(0, 1)))),
            "rounds": 1,
            "masked_rows": 0,
            "reward_failures": {},
            "truncated": max(0.0, 0.11 - 0.1 * t + rng.gauss(0, 0.012)),
            "length": length,
            "entropy": 0.74 - 0.35 * t + rng.gauss(0, 0.02),
            "kl": None,
            "loss": rng.gauss(0, 0.01),
            "grad_norm": 0.8 + rng.gauss(0, 0.12),
            "learning_rate": 2e-5,
            "clip_fraction": 0.0,
            "mismatch": abs(0.009 + rng.gauss(0, 0.001)),
            "tokens": tokens,
            "tokens_per_second": tokens / seconds,
            "seconds_generate": seconds * 0.58,
            "seconds_reward": seconds * 0.03,
            "seconds_update": seconds * 0.36,
        }
        if step % 10 == 0:
            line["heldout"] = {**_evaluation(rng, 0.07 + 0.42 * t**0.8, form, 0, length), "sampled": None}
        lines.append(line)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if result:
        after = _evaluation(rng, 0.49, 0.99, 4, 50)
        versions = {"posttrain": "0.1.0", "torch": "2.13.0+cpu", "transformers": "5.19.0", "python": "3.11.9"}
        found = {"name": recipe["name"], "model": "smollm2-135m", "before": before, "after": after}
        found |= {"seconds": 611.4, "steps": steps, "seed": seed, "versions": versions}
        (folder / "result.json").write_text(json.dumps(found, indent=2))
    samples = []
    phases = [("before", 0.07, 0.15), ("after", 0.49, 0.99)]
    for phase, share, form in phases if result else phases[:1]:
        for i in range(n):
            problem = random.Random(i)
            a, b = problem.randint(11, 60), problem.randint(11, 60)
            c = problem.randint(2, 10)
            right, formed = rng.random() < share, rng.random() < form
            text = _completion(rng, a, b, c, right, formed)
            record = {
                "step": 0 if phase == "before" else steps,
                "split": "heldout",
                "phase": phase,
                "id": f"heldout-{i}",
                "prompt": f"Tom has {a} apples and picks {b} more. He gives {c} to Ann. How many are left?\n"
                "Work it out step by step. Finish with a line 'The answer is: N'.",
                "completion": text,
                "answer": str(a + b - c),
                "parts": {"accuracy": float(right and formed)},
                "total": float(right and formed),
                "finish": "stop" if rng.random() > 0.1 * (1 - share) else "length",
                "tokens": len(text) // 3,
                "strict": right and formed,
                "lenient": right,
            }
            samples.append(record)
    (folder / "samples.jsonl").write_text("".join(json.dumps(record) + "\n" for record in samples))
    return folder


@pytest.fixture
def fake_run(tmp_path: Path) -> Callable[..., Path]:
    """fake_run(**options of make_run) -> the folder."""
    return lambda **options: make_run(tmp_path / "demo", **options)


# --- a run of stages: an R1 recipe with a comparison run and a student ---

RECIPE = """\
name: r1-smollm2
output: {output}
model: {{name: smollm2-135m}}
data:
  train: {{source: "reasoning_gym:chain_sum", size: 400, seed: 1}}
  heldout: {{source: "reasoning_gym:chain_sum", size: 64, seed: 2}}
rewards: [{{use: accuracy}}]
stages:
  - {{name: base, kind: eval}}
  - {{name: zero, kind: grpo, train: {{steps: 28}}}}
  - {{name: cold_start, kind: sft, train: {{epochs: 3}}}}
  - {{name: reason, kind: grpo, model: {{name: "stage:cold_start"}}, train: {{steps: 28}}}}
  - {{name: draw, kind: sample, model: {{name: "stage:reason"}}}}
  - name: second
    kind: sft
    model: {{name: "stage:reason"}}
    data: {{train: {{source: "stage:draw"}}}}
  - {{name: served, kind: export, model: {{name: "stage:second"}}}}
  - {{name: final, kind: grpo, model: {{name: "stage:served"}}, train: {{steps: 20}}}}
  - name: student
    kind: sft
    model: {{name: smollm2-135m, layers: 8}}
    data: {{train: {{source: "stage:draw"}}}}
"""
# The share that each stage gets right, before and after.
LEVELS = {
    "base": (0.0, 0.08), "zero": (0.08, 0.3), "cold_start": (0.08, 0.25), "reason": (0.25, 0.55),
    "second": (0.55, 0.6), "final": (0.6, 0.7), "student": (0.0, 0.2),
}  # fmt: skip


def verdict(i: int, level: float) -> bool:
    """Whether problem i is answered right by a model of a level: mostly the same ones at a higher level."""
    luck = random.Random(f"{i}").random() * 0.85 + random.Random(f"{i} {level}").random() * 0.15
    return luck < level


def records(level: float, phase: str, n: int) -> list[dict[str, Any]]:
    found = []
    for i in range(n):
        right = verdict(i, level)
        a, b = 11 + i % 50, 3 + i % 9
        text = f"<think>{a} + {b} is {a + b if right else a + b + 1}.</think>\nThe answer is: "
        found.append(
            {
                "step": 0,
                "phase": phase,
                "split": "heldout",
                "id": f"heldout-{i}",
                "prompt": f"Ann hat {a} Äpfel und kauft {b}. 一共有几个?",
                "answer": str(a + b),
                "completion": text + str(a + b if right else a + b + 1),
                "parts": {"accuracy": float(right)},
                "total": float(right),
                "finish": "stop",
                "tokens": len(text) // 3,
                "strict": right,
                "lenient": right,
            }
        )
    return found


def measured(found: list[dict[str, Any]]) -> dict[str, Any]:
    accuracy = proportion([record["strict"] for record in found])
    return {
        "strict": accuracy,
        "lenient": accuracy,
        "sampled": None,
        "form": "the_answer_is",
        "length": 31.5,
        "steps_share": 0.5,
        "truncated": 0.02,
    }


def write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), "utf-8")


def update(step: int, of: int) -> dict[str, Any]:
    """A record of metrics.jsonl of supervised fine-tuning."""
    noise = random.Random(step)
    loss = 0.4 + 1.6 * math.exp(-3 * step / of) + noise.gauss(0, 0.05)
    return {
        "step": step,
        "loss": loss,
        "grad_norm": 1.1 + noise.gauss(0, 0.1),
        "learning_rate": 2e-5,
        "entropy": 0.3 + loss / 4,
        "mean_token_accuracy": math.exp(-loss),
        "num_tokens": 900.0 * step,
        "epoch": 3 * step / of,
        "seconds": 1.4,
    }


def rollout(step: int, of: int) -> dict[str, Any]:
    """A record of metrics.jsonl of reinforcement learning."""
    reward = 0.2 + 0.3 * step / of + random.Random(step).gauss(0, 0.04)
    keys = {"reward": reward, "reward/accuracy": reward, "pass_rate": reward, "groups": 8, "groups_silent": 2}
    return {"step": step, "seconds": 9.0, "length": 40.0, "loss": 0.01, "entropy": 0.6, **keys}


def write_stage(planned: Planned, *, n: int = 64, until: int | None = None) -> None:
    """What a stage leaves in its folder; `until`: killed after so many steps."""
    begin(planned)
    folder, name, kind = planned.folder, planned.stage.name, planned.inputs["kind"]
    model = planned.inputs["settings"]["model"]["name"]
    result: dict[str, Any] = {"name": name, "kind": kind, "model": model, "seconds": 372.0, "seed": 0}
    result |= {"machine": {"device": "cpu", "peak_gib": 1.9}, "versions": {"torch": "2.13.0"}}
    if kind == "sample":
        result["sampled"] = {
            "prompts": 400,
            "completions": 1600,
            "kept": 214,
            "dropped": {"accuracy below 1": 1100, "cut off": 200, "a repeat": 86},
            "pass_rates": {"all": [150, 90, 70, 50, 40], "kept": [20, 60, 60, 44, 30]},
            "parts": {"accuracy": 0.3125},
        }
        rows = [
            {
                "prompt": f"{i} + {i}?",
                "completion": f"The answer is: {2 * i}",
                "answer": str(2 * i),
                "pass_rate": 0.25,
            }
            for i in range(9)
        ]
        rows[1]["prompt"] = [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "1 + 1?"},
        ]
        write_lines(folder / "rows.jsonl", rows)
    elif kind == "export":
        result["dtype"] = "bfloat16"
        (folder / "model").mkdir()
        (folder / "model" / "config.json").write_text("{}")
    else:
        before, after = (
            records(level, phase, n)
            for level, phase in zip(LEVELS.get(name, (0.1, 0.2)), ("before", "after"), strict=True)
        )
        if kind == "eval":
            before = []
        steps = {"grpo": planned.inputs["settings"].get("train", {}).get("steps"), "sft": 117}.get(kind, 0)
        made = until if until is not None else steps
        record = update if kind == "sft" else rollout
        lines = [record(step, steps) for step in range(1, made + 1)] if kind != "eval" else []
        if kind != "eval":
            lines.insert(0, {"step": 0, "heldout": measured(before)})
            result |= {"before": measured(before), "steps": steps}
        if until is not None:
            after, result = [], {}
        else:
            result["after"] = measured(after)
            lines.append({"step": steps, "heldout": result["after"]})
        if kind == "sft":
            result |= {"examples": 312} if result else {}
            (folder / "examples.txt").write_text(
                "Ann hat 3 Äpfel.«<think>3</think> The answer is: 3<|end|>»\n", "utf-8"
            )
        write_lines(folder / "metrics.jsonl", lines)
        write_lines(folder / "samples.jsonl", before + after)
    if until is None:
        (folder / "result.json").write_text(json.dumps(result), "utf-8")
        (folder / "report.html").write_text("")
        finish(planned, ["result.json"])


def make_stages(
    folder: Path,
    *,
    text: str = RECIPE,
    stop_at: str | None = None,
    change: Callable[[Planned], None] | None = None,
    **options: Any,
) -> Path:
    """A run of the recipe in `folder`.

    stop_at: this stage is killed after 12 steps, and later ones never ran; change: called after each finished
    stage.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    written = folder / "recipe.yaml"
    written.write_text(text.format(output=folder), "utf-8")
    staged = load_stages(str(written))
    written.write_text(dump(staged), "utf-8")
    for planned in plan(staged):
        if planned.stage.name == stop_at:
            write_stage(planned, until=12, **options)
            break
        write_stage(planned, **options)
        if change is not None:
            change(planned)
    return folder


@pytest.fixture
def fake_stages(tmp_path: Path) -> Callable[..., Path]:
    """fake_stages(**options of make_stages) -> the folder."""
    return lambda **options: make_stages(tmp_path / "r1", **options)

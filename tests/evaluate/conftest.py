"""A made-up run folder that looks like a real one: numbers that wander, groups that fall silent."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from posttrain.evaluate.metrics import clustered, proportion


def _evaluation(
    rng: random.Random, accuracy: float, form: float, samples: int, length: float
) -> dict[str, Any]:
    verdicts = [rng.random() < accuracy for _ in range(256)]
    lenient = [v or rng.random() < 0.04 / max(form, 0.3) for v in verdicts]
    sampled = None
    if samples:
        levels = [min(1.0, rng.betavariate(0.6, 0.6 / max(accuracy, 0.05) - 0.5)) for _ in range(256)]
        sampled = clustered([[rng.random() < p for _ in range(samples)] for p in levels])
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

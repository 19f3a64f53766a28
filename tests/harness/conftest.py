"""A made-up folder of an evaluation, as `posttrain eval` leaves it: seeded, of any size, not only English."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from posttrain.evaluate.metrics import wilson

TASKS = (("gsm8k", 200, 8, 0.62), ("aime24", 30, 30, 0.11), ("mgsm_zh", 250, 10, 0.48))
REASONING = (
    "Let me set up the equation first: if x is the number of apples, then 3x + 4 = 25, so x = 7.",
    r"By Vieta, $x_1 + x_2 = -\frac{b}{a}$ and $x_1 x_2 = \frac{c}{a}$, so $\left(x_1 - x_2\right)^2 \ge 0$.",
    "Wait, that is not right: I counted the corner twice. Let me count again, one side at a time.",
    "首先计算总人数：12 × 3 = 36，再减去没有来的 5 个人，得到 31。",
    "Проверим ответ подстановкой: 2·17 − 9 = 25, что совпадает с условием.",
    "لنحسب المسافة أولاً: السرعة ٦٠ كم في الساعة والزمن ساعتان، فالمسافة ١٢٠ كم.",
    "Also gilt für alle n ≥ 2, dass die Summe kleiner als 1 ist — das zeigt man mit 𝑛 → 𝑛 + 1 🙂.",
    "```python\ntotal = sum(n for n in range(100) if n % 3 == 0 or n % 5 == 0)\n```",
    "Therefore 17 < 23 && 23 > 19, so the larger prime is 23 & nothing else fits.",
)
WARNINGS = {
    "aime24": [
        "30 questions are few: differences below 15 points between two models cannot be told from chance.",
        "41% of the completions ran out of tokens before an answer: the number measures the limit as well.",
    ],
    "mgsm_zh": ["2 requests failed and were left out of their questions' samples."],
}


def _estimate(value: float, n: int) -> dict[str, Any]:
    return {"value": value, "ci95": list(wilson(value * n, n)), "n": n}


def make_evaluation(
    folder: Path,
    seed: int = 0,
    tasks: tuple[tuple[str, int, int, float], ...] = TASKS,
    shift: float = 0.0,
    model: str = "Qwen/Qwen3-0.6B",
    length: int = 12,
) -> Path:
    """tasks: (name, questions, samples a question, accuracy). shift: added to every accuracy. length: of a
    completion, in sentences of some 80 characters, on average. Questions hang on the task's name alone."""
    result: dict[str, Any] = {
        "model": model,
        "engine": "vllm",
        "seconds": 1843.2,
        "versions": {"posttrain": "0.9.0", "torch": "2.13.0", "vllm": "0.32.0", "transformers": "5.17.0"},
        "machine": {"device": "1 × H100 80GB", "cores": 16},
        "tasks": {},
    }
    for name, questions, samples, accuracy in tasks:
        rows, answers, verdicts = _records(name, questions, samples, accuracy + shift, seed, length)
        result["tasks"][name] = _summary(name, questions, samples, verdicts, answers)
        place = folder / name
        place.mkdir(parents=True)
        for file, lines in (("rows", rows), ("answers", answers), ("verdicts", verdicts)):
            text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
            (place / f"{file}.jsonl").write_text(text, "utf-8")
    settings = {name: {"samples": samples} for name, _, samples, _ in tasks}
    asked = {"model": model, "engine": "vllm", "seed": seed, "tasks": settings}
    (folder / "eval.json").write_text(json.dumps(asked), "utf-8")
    (folder / "result.json").write_text(json.dumps(result, indent=1), "utf-8")
    return folder


def _records(
    name: str, questions: int, samples: int, accuracy: float, seed: int, length: int
) -> tuple[list, ...]:
    asked, made = random.Random(f"questions {name}"), random.Random(f"{name} {seed}")
    rows, answers, verdicts = [], [], []
    for i in range(questions):
        gold, hard = asked.randint(2, 999), asked.betavariate(0.9, 0.9)
        text = f"{name} {i}: a shop sells {asked.randint(3, 90)} boxes of {asked.randint(2, 40)} pens. "
        text += "How many pens are left?" if name != "mgsm_zh" else "还剩下多少支笔？请写出推理过程。"
        rows.append({"id": f"{name}-{i}", "question": text, "answer": str(gold), "columns": {}})
        chance = min(1.0, max(0.0, accuracy + 0.9 * (hard - 0.5)))
        for s in range(samples):
            right, roll = made.random() < chance, made.random()
            said = gold if right else made.choice((gold + 1, gold - 1, 2 * gold, made.randint(2, 999)))
            body = "\n".join(made.choice(REASONING) for _ in range(made.randint(1, 2 * length)))
            start = body + "\n</think>\n\nThe answer is \\boxed{"
            answer = {
                "id": f"{name}-{i}",
                "sample": s,
                "tokens": len(start) // 4,
                "finish": "stop",
                "error": None,
            }
            verdict = {
                "id": f"{name}-{i}",
                "sample": s,
                "value": float(right),
                "right": right,
                "failure": None,
            }
            verdict |= {
                "extracted": str(said),
                "span": [len(start), len(start) + len(str(said))],
                "group": said,
            }
            answer["completion"] = f"{start}{said}}}."
            if roll < 0.06:  # ran out of tokens: wrong, nothing extracted
                answer |= {"completion": body, "finish": "length"}
                verdict |= {"value": 0.0, "right": False, "extracted": None, "span": None, "group": None}
                verdict["failure"] = "no answer found"
            elif roll < 0.065:
                verdict |= {"value": None, "right": None, "failure": "took longer than 10 s", "group": None}
            elif roll < 0.068:
                answer |= {
                    "completion": "",
                    "finish": "error",
                    "error": "HTTP 503 after 4 tries",
                    "tokens": None,
                }
                verdict |= {"value": None, "right": None, "extracted": None, "span": None, "group": None}
                verdict["failure"] = "request failed: HTTP 503 after 4 tries"
            answers.append(answer)
            verdicts.append(verdict)
    made.shuffle(answers)
    return rows, answers, verdicts


def _summary(name: str, questions: int, samples: int, verdicts: list, answers: list) -> dict[str, Any]:
    judged = [verdict["right"] for verdict in verdicts if verdict["right"] is not None]
    mean, ends = sum(judged) / len(judged), [answer["finish"] for answer in answers]
    primary = f"avg@{samples}" if samples > 1 else "accuracy"
    ks = [k for k in (1, 2, 4, 8, 16, 32) if k <= samples]
    metrics = {primary: _estimate(mean, questions)}
    if samples > 1:
        metrics |= {f"pass@{k}": _estimate(1 - (1 - mean) ** (k**0.7), questions) for k in ks}
        metrics |= {f"cons@{samples}": _estimate(min(1, mean * 1.2), questions)}
        metrics |= {f"g_pass@{samples}_0.5": _estimate(mean * 0.8, questions)}
    budget = [64, 128, 256, 512, 1024]
    return {
        "questions": questions,
        "samples": samples,
        "primary": primary,
        "metrics": metrics,
        "curves": {
            "k": [
                {"k": k, "pass": 1 - (1 - mean) ** (k**0.7), "cons": mean * (1 + 0.2 * i / len(ks))}
                for i, k in enumerate(ks)
                if samples > 1
            ],
            "budget": [{"tokens": t, "accuracy": mean * (1 - 0.8 ** (i + 1))} for i, t in enumerate(budget)],
        },
        "facts": {
            "truncated": ends.count("length") / len(ends),
            "no_answer": sum(v["extracted"] is None for v in verdicts) / len(verdicts),
            "failed": ends.count("error"),
            "not_judged": sum(v["right"] is None for v in verdicts) - ends.count("error"),
            "verifier_failed": 0,
            "finish": {end: ends.count(end) for end in ("stop", "length", "error")},
            "accuracy_if_complete": _estimate(min(1.0, mean / 0.94), questions),
            "mean_tokens": sum(answer["tokens"] or 0 for answer in answers) / len(answers),
        },
        "made_by": {
            "sampling": {"temperature": 0.6, "top_p": 0.95, "max_tokens": 4096},
            "seed": 17,
            "template": "9f2c41d0",
            "data": {
                "source": f"data/{name}",
                "revision": "main@4b1c2f",
                "hash": "5e88a1c3",
                "rows": questions,
            },
            "verifier": "accuracy(form=boxed)",
            "few_shot": 0,
        },
        "warnings": WARNINGS.get(name, []),
        "reported": [
            {
                "model": "Qwen3-0.6B",
                "value": 0.1067,
                "source": "arXiv 2505.09388, table 21",
                "setting": "thinking, 32k tokens",
            }
        ]
        if name == "aime24"
        else [],
    }


Make = Callable[..., Path]


@pytest.fixture
def evaluation(tmp_path: Path) -> Make:
    """evaluation("name", **make_evaluation's arguments): the folder; small unless `tasks` says else."""

    def make(name: str = "run", **settings: Any) -> Path:
        small = (("gsm8k", 6, 4, 0.6), ("mgsm_zh", 4, 1, 0.5))
        return make_evaluation(tmp_path / name, **{"tasks": small, **settings})

    return make

"""Every task that ships, on made-up rows with the columns of its data: right passes, and wrong does not."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from posttrain import content
from posttrain.data import question_key
from posttrain.harness.questions import load_prompts
from posttrain.harness.task import Task, load_task
from posttrain.recipe_data import MADE
from posttrain.rewards import Rewards, locate
from posttrain.types import Completion, Prompt

NAMES = [name for name, _, _ in content.listing("eval")]
PROBLEM = {"problem": "What is $1 + 1$?", "solution": "So \\boxed{2}.", "answer": "2"}
ADD = "```python\ndef add(a, b):\n    return a + b\n```"
SUBTRACT = ADD.replace("+", "-")
MATH500 = PROBLEM | {"subject": "Algebra", "level": 5, "unique_id": "test/algebra/1.json"}
# For each task: a row, a right answer, a wrong one. Of rows that are made, the answer stands in <answer>.
ROWS: dict[str, tuple[dict[str, Any], str, str]] = {
    "gsm8k": (
        {"question": "What is 600 + 634?", "answer": "600 + 634 = <<600+634=1234>>1234\n#### 1,234"},
        "It is \\boxed{1234}.",
        "It is \\boxed{1235}, and not 1234.",
    ),
    "gsm8k_base": (
        {"question": "What is 2 + 2?", "answer": "2 + 2 = <<2+2=4>>4\n#### 4"},
        "It is 2 + 2 = 4.\n#### 4",
        "It is 4.",
    ),
    "math500": (MATH500, "\\boxed{2}", "\\boxed{3}"),
    "math500_level5": (MATH500, "\\boxed{$2.0$}", "2"),
    "math500_base": (MATH500, "It is \\boxed{2}.", "It is 2."),
    "aime24": (
        PROBLEM | {"id": 60, "answer": "033", "url": "https://x", "year": "2024"},
        "So \\boxed{33}.",
        "So \\boxed{34}.",
    ),
    "aime25": ({"problem": "p", "answer": "588", "id": "0"}, "\\boxed{588}", "\\boxed{58}"),
    "amc23": ({"id": 0, "question": "q", "answer": "27.0", "url": "https://x"}, "\\boxed{27}", "\\boxed{28}"),
    "minerva_math": (
        {"question": "q", "answer": "8.7e8"},
        "\\boxed{8.7 \\times 10^8}",
        "\\boxed{8.7 \\times 10^9}",
    ),
    "olympiadbench": (
        {"id": 1606, "question": "q", "final_answer": ["$2$,$3$"], "context": None},
        "\\boxed{3, 2}",
        "\\boxed{3}",
    ),
    "gpqa_diamond": (
        {
            "Record ID": "rec06", "Question": "Which?", "Correct Answer": "right\n",
            "Incorrect Answer 1": "w1", "Incorrect Answer 2": "w2", "Incorrect Answer 3": "w3",
        },
        "Think.\nAnswer: {letter}",
        "Answer: {other}",
    ),
    "mmlu_pro": (
        {"question_id": 70, "question": "q", "options": list("klmnopqrst"), "answer": "I", "answer_index": 8,
         "cot_content": "", "category": "business", "src": "x"},
        "Answer: I",
        "Answer: B",
    ),
    "ifeval": (
        {"key": 1, "prompt": "Write a titled poem without commas.",
         "instruction_id_list": ["punctuation:no_comma", "detectable_format:title"],
         "kwargs": [{"num_words": None}, {"num_words": None}]},
        "<<Spring>>\nGreen.",
        "<<Spring>>\nGreen, green.",
    ),
    "humaneval": (
        {"task_id": "HumanEval/0",
         "prompt": 'from typing import List\n\n\ndef add(a: int, b: int) -> int:\n    """Sum."""\n',
         "canonical_solution": "    return a + b\n", "entry_point": "add",
         "test": "METADATA = {'author': 'x'}\n\n\ndef check(candidate):\n    assert candidate(1, 2) == 3\n"},
        "```python\ndef add(a: int, b: int) -> int:\n    c: List[int] = [a, b]\n    return sum(c)\n```",
        SUBTRACT,
    ),
    "mbpp": (
        {"task_id": 11, "text": "Write a function to add.", "code": "def add(a, b): return a + b",
         "test_list": ["assert add(1, 2) == 3", "assert add(0, one) == 1"], "test_setup_code": "one = 1",
         "challenge_test_list": []},
        ADD,
        SUBTRACT,
    ),
    "stdio": (
        {"id": "sum", "question": "Add.", "tests": [{"stdin": "1 2\n", "stdout": "3\n"}]},
        "```python\nprint(sum(map(int, input().split())))\n```",
        "```python\nprint(4)\n```",
    ),
}  # fmt: skip


def made(task: Task) -> bool:
    return task.data.source.startswith(MADE)


def prompts_of(name: str, folder: Path) -> tuple[Task, list[Prompt]]:
    task = load_task(name)
    if made(task):
        return task, load_prompts(task, limit=4)
    row = ROWS[name][0]
    shots = task.shots if task.few_shot and task.few_shot.data else 0
    rows = [{**row, task.question: "Another question, for the examples."}] * shots + [row]
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return task, load_prompts(task, str(path))


@cache
def function(use: str) -> Callable[..., Any]:
    place = locate(use, {}).place
    spec = importlib.util.spec_from_file_location(f"shipped_{use}", place)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, use)


def verdict(task: Task, prompt: Prompt, text: str) -> float | None:
    """As the rewards' process calls it."""
    columns: dict[str, Any] = {key: [value] for key, value in prompt.columns.items()}
    said = text if isinstance(prompt.content, str) else [{"role": "assistant", "content": text}]
    given = {"completions": [said], "answer": [prompt.answer], "prompts": [prompt.content]}
    return function(task.verifier.use)(**columns, **given, **task.verifier.args)[0]


def test_every_task_is_tried_and_says_whose_its_data_is() -> None:
    assert ROWS.keys() == {name for name in NAMES if not made(load_task(name))}
    for name, path, _ in content.listing("eval"):
        comment = "".join(line for line in path.read_text().splitlines() if line.startswith("#"))
        assert load_task(name).name == name == path.stem
        assert "# Data: " in comment, name
        assert "licence" in comment or "CC BY" in comment, name


@pytest.mark.parametrize("name", NAMES)
def test_a_right_answer_passes_and_a_wrong_one_does_not(
    name: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    task, prompts = prompts_of(name, tmp_path)
    if task.verifier.use == "code":
        request.getfixturevalue("bubblewrap")
    assert len({question_key(prompt.question, prompt.pictures) for prompt in prompts}) == len(prompts)
    for prompt in prompts:
        if made(task):
            assert "<answer>" in prompt.question
            other = "2" if prompt.answer == "1" else "1"
            right, wrong = f"So <answer>{prompt.answer}</answer>", f"So <answer>{other}</answer>"
        else:
            _, right, wrong = ROWS[name]
            other = "ABCD"[prompt.answer == "A"]
            right = right.replace("{letter}", prompt.answer or "")
            wrong = wrong.replace("{other}", other)
        assert verdict(task, prompt, right) == 1.0
        assert verdict(task, prompt, wrong) == 0.0
        assert verdict(task, prompt, "") == 0.0


def test_a_verifier_is_a_reward(tmp_path: Path) -> None:
    task, prompts = prompts_of("gsm8k", tmp_path)
    with Rewards([task.verifier], task.verifier.deadline) as rewards:
        completions = [Completion([], [], "stop", text) for text in ROWS["gsm8k"][1:]]
        totals = [score.total for score in rewards.score(prompts * 2, completions)]
    assert totals == [1.0, 0.0]


def test_what_papers_report_names_its_source() -> None:
    for name, path, _ in content.listing("eval"):
        for row in yaml.safe_load(path.read_text()).get("reported", []):
            assert set(row) == {"model", "value", "source", "setting"}, name

"""`posttrain eval` from its command to its folder, with a real (tiny) model: killed, resumed, rescored."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from posttrain import models
from posttrain.cli import main
from posttrain.evaluate import harness as held_out
from posttrain.harness import judge as judge_module
from posttrain.harness.answer import Answer
from posttrain.harness.records import read_answers
from posttrain.pipeline import run
from posttrain.recipe import load_recipe

TASK = """\
name: sums
data:
  source: reasoning_gym:chain_sum
  args: {min_terms: 2, max_terms: 2, min_digits: 1, max_digits: 1}
  size: 12
  seed: 3
verifier: {use: accuracy, args: {form: last_number}}
sampling: {samples: 4, temperature: 1.0, max_tokens: 8}
"""


@pytest.fixture
def task(tmp_path: Path) -> Path:
    path = tmp_path / "sums.yaml"
    path.write_text(TASK)
    return path


def evaluate(task: Path, folder: Path, *more: str) -> int:
    return main(["eval", str(task), "--model", "tiny", "--output", str(folder), *more])


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_folder_holds_all_that_made_the_number(task: Path, tmp_path: Path, capsys: Any) -> None:
    folder = tmp_path / "out"
    assert evaluate(task, folder) == 0
    assert "avg@4" in capsys.readouterr().out
    result = json.loads((folder / "result.json").read_text())["tasks"]["sums"]
    answers = read_answers(folder / "sums" / "answers.jsonl")
    verdicts = lines(folder / "sums" / "verdicts.jsonl")
    assert len(answers) == len(verdicts) == 48 and result["questions"] == 12
    right = {}
    for verdict in verdicts:
        right.setdefault(verdict["id"], []).append(verdict["right"])
    value = sum(sum(r) / 4 for r in right.values()) / 12
    assert result["metrics"]["avg@4"]["value"] == pytest.approx(value)
    assert result["metrics"]["pass@4"]["value"] == pytest.approx(sum(any(r) for r in right.values()) / 12)
    assert result["made_by"]["sampling"]["max_tokens"] == 8 and result["made_by"]["data"]["rows"] == 12
    told = " ".join(result["warnings"])
    assert "12 questions tell little" in told
    capsys.readouterr()
    assert main(["status", str(folder)]) == 0 and main(["report", str(folder)]) == 0
    assert "avg@4" in capsys.readouterr().out
    for name in ("result.md", "result.csv", "lm_eval.json", "report.html", "sums/task.yaml"):
        assert (folder / name).is_file(), name


def test_again_it_asks_nothing_and_another_question_is_refused(
    task: Path, tmp_path: Path, capsys: Any
) -> None:
    folder = tmp_path / "out"
    assert evaluate(task, folder) == 0
    before = (folder / "sums" / "answers.jsonl").read_bytes()
    judged = (folder / "sums" / "verdicts.jsonl").stat().st_mtime_ns
    assert evaluate(task, folder) == 0
    assert (folder / "sums" / "answers.jsonl").read_bytes() == before
    assert (folder / "sums" / "verdicts.jsonl").stat().st_mtime_ns == judged
    assert evaluate(task, folder, "sampling.max_tokens=9") == 2
    assert "other settings" in capsys.readouterr().err
    assert evaluate(task, folder, "--seed", "1") == 2
    assert "seed: 0 then, 1 now" in capsys.readouterr().err


def test_one_seed_gives_the_same_samples(task: Path, tmp_path: Path) -> None:
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        assert evaluate(task, folder) == 0
    a, b = (sorted(lines(folder / "sums" / "answers.jsonl"), key=str) for folder in folders)
    assert a == b
    assert evaluate(task, tmp_path / "c", "--seed", "1") == 0
    assert sorted(lines(tmp_path / "c" / "sums" / "answers.jsonl"), key=str) != a


def test_killed_at_any_moment_it_loses_and_repeats_nothing(task: Path, tmp_path: Path) -> None:
    whole, folder = tmp_path / "whole", tmp_path / "run"
    more = ("data.size=150",)
    assert evaluate(task, whole, *more) == 0
    command = [
        sys.executable,
        "-m",
        "posttrain",
        "eval",
        str(task),
        "--model",
        "tiny",
        "--output",
        str(folder),
        *more,
    ]
    answers = folder / "sums" / "answers.jsonl"
    kept: list[bytes] = []
    for _ in range(2):
        process = subprocess.Popen(
            command, env=os.environ | {"HF_HUB_OFFLINE": "1"}, stderr=subprocess.DEVNULL
        )
        there = answers.stat().st_size if answers.exists() else 0
        end = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < end:
            if answers.exists() and answers.stat().st_size > there:
                break
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
        kept.append(answers.read_bytes())
    assert evaluate(task, folder, *more) == 0
    final = answers.read_bytes()
    assert all(final.startswith(some[: some.rfind(b"\n") + 1]) for some in kept)
    key = lambda one: (int(one["id"]), one["sample"])  # noqa: E731
    assert sorted(lines(answers), key=key) == sorted(lines(whole / "sums" / "answers.jsonl"), key=key)
    results = [json.loads((one / "result.json").read_text())["tasks"] for one in (whole, folder)]
    assert results[0] == results[1]


def test_judged_again_in_another_form(task: Path, tmp_path: Path, capsys: Any) -> None:
    folder = tmp_path / "out"
    assert evaluate(task, folder) == 0
    before = (folder / "sums" / "answers.jsonl").read_bytes()
    assert main(["eval", "--rescore", str(folder), "verifier.args.form=boxed"]) == 0
    assert (folder / "sums" / "answers.jsonl").read_bytes() == before
    result = json.loads((folder / "result.json").read_text())["tasks"]["sums"]
    assert result["facts"]["no_answer"] == 1.0 and result["metrics"]["avg@4"]["value"] == 0.0
    assert any("no answer was found" in told for told in result["warnings"])
    assert result["made_by"]["verifier"] == "accuracy(form=boxed)"


def test_the_best_of_several_by_a_reward(task: Path, tmp_path: Path, capsys: Any) -> None:
    folder = tmp_path / "out"
    assert evaluate(task, folder, "best_of.use=accuracy", "best_of.args.form=last_number") == 0
    found = json.loads((folder / "result.json").read_text())["tasks"]["sums"]["metrics"]
    assert (
        found["best_of@4"]["value"] == found["pass@4"]["value"]
    )  # it picks a right one wherever there is one
    assert evaluate(task, tmp_path / "none", "metric=best_of@4") == 2
    assert "needs best_of" in capsys.readouterr().err


def test_two_models_on_the_same_questions(task: Path, tmp_path: Path, capsys: Any) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    assert evaluate(task, a) == 0
    assert evaluate(task, b, "--seed", "1") == 0
    capsys.readouterr()
    assert main(["eval", "compare", str(a), str(b)]) == 0
    out = capsys.readouterr().out
    assert "sums" in out and "12" in out
    assert (b / "against-a.html").is_file()
    other = tmp_path / "other.yaml"
    other.write_text(TASK.replace("name: sums", "name: others"))
    assert evaluate(other, tmp_path / "c") == 0
    assert main(["eval", "compare", str(a), str(tmp_path / "c")]) == 2
    assert "no task in common" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--model", "tiny"], "name a task"),
        (["gsm8kk", "--model", "tiny"], "gsm8k"),
        (["{task}"], "--model is missing"),
        (["{task}", "--model", "tiny", "sampling.sample=2"], "samples"),
        (["{task}", "--model", "tiny", "--data", "none.jsonl"], "none.jsonl"),
        (["{task}", "--model", "tiny", "--base-url", "http://127.0.0.1:1/v1"], "--engine openai"),
        (["{task}", "{task}", "--model", "tiny"], "named twice"),
        (["{task}", "gsm8k", "--model", "tiny", "--data", "rows.jsonl"], "that task alone"),
        (
            ["{task}", "--model", "m", "--engine", "openai", "--base-url", "http://127.0.0.1:9/v1"],
            "127.0.0.1:9",
        ),
        (["compare", "nowhere", "nor-here"], "nowhere"),
        (["--rescore", "nowhere"], "nowhere"),
    ],
)
def test_what_is_wrong_is_said_in_one_message(
    words: list[str], told: str, task: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["eval", *(word.format(task=task) for word in words)]) == 2
    error = capsys.readouterr().err
    assert told in error and error.startswith("error: ") and "Traceback" not in error


EVEN = """
def even(completions, answer, **columns):
    texts = [one[0]["content"] for one in completions]
    return [float((sum(map(ord, text)) + int(right)) % 2 == 0) for text, right in zip(texts, answer)]
"""


@pytest.mark.slow
@pytest.mark.usefixtures("one_process", "home")
def test_the_runs_own_evaluation_is_this_one(
    task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model that a run leaves, asked its held-out rows: answer for answer what the run had in memory."""
    reward, rows, folder = tmp_path / "even.py", tmp_path / "heldout.jsonl", tmp_path / "run"
    reward.write_text(EVEN)
    asked = [{"question": f"{'1 + ' * (i % 4)}{i} = ?", "answer": str(i)} for i in range(12)]
    rows.write_text("".join(json.dumps(row) + "\n" for row in asked))
    judged: list[list[Answer]] = []

    def scores(judge: Any, prompts: Any, answers: list[Answer]) -> Any:
        judged.append(answers)
        return judge_module.scores(judge, prompts, answers)

    monkeypatch.setattr(held_out, "scores", scores)
    # In bfloat16 the engine that trains and the steady one may part at a near tie.
    monkeypatch.setattr(models, "compute_type", lambda _: torch.float32)
    recipe = load_recipe(
        "tiny/tiny",
        [
            f"output={folder}",
            "seed=7",
            "train.steps=2",
            f"data.heldout={{source: {rows}}}",
            f"rewards=[{{use: {reward}}}]",
            "evaluate={every: 0, before: false, form: null, samples: 3, temperature: 1.2, max_tokens: 9}",
        ],
    )
    run(recipe)
    greedy, sampled = judged
    after = json.loads((folder / "result.json").read_text())["after"]
    told = {one["id"]: one for one in lines(folder / "samples.jsonl") if one["phase"] == "after"}
    assert [told[answer.id]["completion"] for answer in greedy] == [answer.completion for answer in greedy]
    assert len({answer.completion for answer in sampled}) > 30
    more = ("--data", str(rows), "--seed", "7", f"verifier={{use: {reward}}}", "sampling.max_tokens=9")
    for kind, metric, answers, drawn in (
        ("strict", "accuracy", greedy, ("sampling.samples=1", "sampling.temperature=0")),
        ("sampled", "avg@3", sampled, ("sampling.samples=3", "sampling.temperature=1.2")),
    ):
        out = tmp_path / kind
        command = ["eval", str(task), "--model", str(folder / "model"), "--output", str(out), *more, *drawn]
        assert main(command) == 0
        again = read_answers(out / "sums" / "answers.jsonl")
        assert sorted(again, key=str) == sorted(answers, key=str)
        found = json.loads((out / "result.json").read_text())["tasks"]["sums"]["metrics"][metric]
        assert found["value"] == after[kind]["accuracy"] not in (0.0, 1.0)
        assert (found["ci95"], found["n"]) == (after[kind]["ci95"], after[kind]["n"]) and found["n"] == 12

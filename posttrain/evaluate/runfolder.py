"""Reads a run folder as it is: finished, still running, or killed in the middle of a line.

Nothing here raises over what a file holds. A missing file is empty, a broken line is skipped and counted.
"""

from __future__ import annotations

import json
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from posttrain.evaluate.metrics import number
from posttrain.recipe_data import STAGE
from posttrain.types import PosttrainError

FILES = ("recipe.yaml", "metrics.jsonl", "samples.jsonl", "result.json", "inputs.json")
RECENT = 256  # training completions kept

Record = dict[str, Any]


@dataclass(frozen=True)
class Estimate:
    """An accuracy with its 95% interval, over n questions (n None where the file does not say)."""

    accuracy: float
    lo: float
    hi: float
    n: int | None


@dataclass
class Run:
    """What a run folder holds.

    `kind`: of the stage ("grpo", "sft", "eval", "sample", "export"); a run without stages is one of "grpo".
    `steps`: the training records of metrics.jsonl in order, one a step. `evaluations`: (step, Evaluation).
    `pairs`: held-out samples by prompt id, then by phase. `recent`: the last training samples.
    `stages`: the addresses of the stages that it took from, by name (posttrain.plan).
    """

    name: str
    kind: str = "grpo"
    recipe_text: str = ""
    recipe: Record = field(default_factory=dict)
    result: Record = field(default_factory=dict)
    steps: list[Record] = field(default_factory=list)
    evaluations: list[tuple[float, Record]] = field(default_factory=list)
    pairs: dict[str, dict[str, Record]] = field(default_factory=dict)
    recent: list[Record] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    stages: dict[str, str] = field(default_factory=dict)

    @property
    def total_steps(self) -> int | None:
        train = self.recipe.get("train")
        planned = number(train.get("steps")) if isinstance(train, dict) else None
        return None if planned is None else int(planned)

    @property
    def model(self) -> str | None:
        """The name of the model that it began with, for people: "smollm2-135m", "stage cold_start"."""
        model = self.result.get("model") or self.recipe.get("model")
        name = model.get("name") if isinstance(model, dict) else model
        if name is None:
            return None
        return f"stage {str(name).removeprefix(STAGE)}" if str(name).startswith(STAGE) else str(name)

    @property
    def done(self) -> int:
        """The last training step in metrics.jsonl; result.json's count where there are no metrics."""
        return int(self.steps[-1]["step"] if self.steps else number(self.result.get("steps")) or 0)

    @property
    def evaluated(self) -> int:
        """The step that `evaluation("after")` belongs to."""
        return self.done if self.finished or not self.evaluations else int(self.evaluations[-1][0])

    @property
    def finished(self) -> bool:
        if self.kind == "export":
            return "dtype" in self.result
        return isinstance(self.result.get("sampled" if self.kind == "sample" else "after"), dict)

    def evaluation(self, when: str) -> Record | None:
        """The one "before" or "after"; for a run without a result, the first and the last held-out evaluation
        in its metrics. A stage that only measures has one "after"."""
        found = self.result.get(when)
        if isinstance(found, dict):
            return found
        if self.kind == "eval":
            return self.evaluations[-1][1] if when == "after" and self.evaluations else None
        if when == "before" and self.evaluations and self.evaluations[0][0] == 0:
            return self.evaluations[0][1]
        if when == "after" and self.evaluations and self.evaluations[-1][0] > 0:
            return self.evaluations[-1][1]
        return None


def read_run(folder: Path) -> Run:
    """PosttrainError when `folder` is no folder of a run or a stage at all."""
    if not folder.is_dir():
        raise PosttrainError(f"{folder} is not a folder: give the folder of a run, such as runs/demo")
    if not any((folder / name).is_file() for name in FILES):
        raise PosttrainError(f"{folder} holds no run: none of {', '.join(FILES)} is there")
    run = Run(name=folder.resolve().name)
    run.recipe_text = _text(folder / "recipe.yaml", run)
    run.recipe = _parsed(run.recipe_text, "recipe.yaml", run)
    run.result = _parsed(_text(folder / "result.json", run), "result.json", run)
    inputs = _parsed(_text(folder / "inputs.json", run), "inputs.json", run)  # of a stage, from its beginning
    run.kind = next((k for k in (run.result.get("kind"), inputs.get("kind")) if isinstance(k, str)), run.kind)
    if isinstance(inputs.get("stages"), dict):
        run.stages = {name: str(address) for name, address in inputs["stages"].items()}
    if not run.recipe and isinstance(inputs.get("settings"), dict):
        run.recipe = inputs["settings"]
    run.name = str(run.result.get("name") or run.recipe.get("name") or run.name)
    _read_metrics(folder / "metrics.jsonl", run)
    _read_samples(folder / "samples.jsonl", run)
    return run


def estimate(evaluation: Record | None, kind: str) -> Estimate | None:
    """`evaluation[kind]` when it is whole; None otherwise. A missing interval is the point itself."""
    found = evaluation.get(kind) if evaluation else None
    accuracy = number(found.get("accuracy")) if isinstance(found, dict) else None
    if accuracy is None or not isinstance(found, dict):
        return None
    ci95, n = found.get("ci95"), number(found.get("n"))
    ends = [number(v) for v in ci95] if isinstance(ci95, list) and len(ci95) == 2 else [None, None]
    lo, hi = (accuracy if end is None else end for end in ends)
    return Estimate(accuracy, min(lo, accuracy), max(hi, accuracy), None if n is None else int(n))


def _text(path: Path, run: Run) -> str:
    try:
        return path.read_bytes().decode("utf-8", "replace")
    except FileNotFoundError:
        return ""
    except OSError as error:
        run.problems.append(f"{path.name} could not be read ({error.strerror}).")
        return ""


def _parsed(text: str, name: str, run: Run) -> Record:
    if not text.strip():
        return {}
    try:
        found = json.loads(text) if name.endswith(".json") else yaml.safe_load(text)
    except (ValueError, RecursionError, yaml.YAMLError):
        run.problems.append(f"{name} is incomplete or damaged and was left out.")
        return {}
    return found if isinstance(found, dict) else {}


def json_lines(path: Path, run: Run) -> Iterator[Record]:
    """The JSON objects of a .jsonl file. A last line without its newline is being written: no problem."""
    broken = 0
    try:
        with path.open("rb") as file:
            for line in file:
                try:
                    found = json.loads(line.decode("utf-8", "replace"))
                except (ValueError, RecursionError):
                    broken += line.endswith(b"\n") and bool(line.strip())
                    continue
                if isinstance(found, dict):
                    yield found
                else:
                    broken += 1
    except FileNotFoundError:
        return
    except OSError as error:
        run.problems.append(f"{path.name} could not be read ({error.strerror}).")
    if broken:
        run.problems.append(f"{broken} damaged line{'s' * (broken != 1)} of {path.name} left out.")


def _read_metrics(path: Path, run: Run) -> None:
    by_step: dict[float, Record] = {}
    heldout: dict[float, Record] = {}
    for record in json_lines(path, run):
        step = number(record.get("step"))
        if step is None:
            continue
        # A resumed run writes again the steps after its checkpoint: the later record is the one that counts.
        if any(key != "step" and key != "heldout" for key in record):
            by_step[step] = record
        if isinstance(record.get("heldout"), dict):
            heldout[step] = record["heldout"]
    run.steps = [by_step[step] for step in sorted(by_step) if step > 0]
    run.evaluations = sorted(heldout.items(), key=lambda item: item[0])


def _read_samples(path: Path, run: Run) -> None:
    recent: deque[Record] = deque(maxlen=RECENT)
    for record in json_lines(path, run):
        phase, identity = record.get("phase"), record.get("id")
        if phase in ("before", "after") and record.get("split", "heldout") == "heldout":
            run.pairs.setdefault(str(identity), {})[phase] = record
        elif phase == "train":
            recent.append(record)
    run.recent = list(recent)


def transitions(run: Run) -> Counter[str]:
    """How many held-out prompts went "wrong→right" and so on, of those judged both times."""
    return Counter(change for pair in run.pairs.values() if (change := transition(pair)) is not None)


def transition(pair: dict[str, Record]) -> str | None:
    verdicts = [pair.get(when, {}).get("strict") for when in ("before", "after")]
    if any(not isinstance(verdict, bool) for verdict in verdicts):
        return None
    return "→".join("right" if verdict else "wrong" for verdict in verdicts)

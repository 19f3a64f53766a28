"""Reads an evaluation's folder as it is: finished, still running, or killed in the middle of a line.

Nothing here raises over what a file holds. A missing file is empty, a broken line is left out and told of.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from posttrain.evaluate.metrics import number
from posttrain.evaluate.runfolder import Estimate, Record, Run, json_lines
from posttrain.types import PosttrainError

ROWS, ANSWERS, VERDICTS = "rows.jsonl", "answers.jsonl", "verdicts.jsonl"
BLIND = {"blank": "with blank pictures", "shuffled": "with others' pictures"}
SENTENCE = 2_000  # characters of a warning at most
JUDGEMENTS = ("right", "wrong", "open", "failed")


@dataclass(frozen=True)
class Sample:
    """One completion and what was said of it."""

    number: int
    """Which one of its question's samples."""
    completion: str
    tokens: int | None
    finish: str
    """stop, length or error; "" where the record does not say."""
    judged: str
    """right, wrong, open (no verdict), failed (the request gave no completion)."""
    extracted: str | None = None
    span: tuple[int, int] | None = None
    """Of the extracted answer in the completion, in characters: 0 <= start < end <= len(completion)."""
    note: str = ""
    """Why there is no verdict, or why the request failed."""
    group: int | None = None
    """Samples of a question with the same number gave equivalent answers."""


@dataclass
class Question:
    id: str
    text: str = ""
    answer: str | None = None
    samples: list[Sample] = field(default_factory=list)
    pictures: tuple[Any, ...] = ()
    """What its row holds for them (posttrain.picture.Picture.of)."""


@dataclass
class Task:
    """`result`: its part of result.json, {} before the end. `planned`: samples a question, if known."""

    name: str
    result: Record = field(default_factory=dict)
    planned: int | None = None
    questions: list[Question] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def samples(self) -> list[Sample]:
        return [sample for question in self.questions for sample in question.samples]

    @property
    def metrics(self) -> dict[str, Estimate]:
        """Every metric that is a number, the primary one first."""
        found = {name: estimate(value) for name, value in part(self.result, "metrics").items()}
        first = self.result.get("primary")
        names = sorted(found, key=lambda name: name != first)  # stable: the others keep the file's order
        return {name: e for name in names if (e := found[name]) is not None}

    @property
    def blind(self) -> dict[str, Estimate]:
        """Right without the questions' pictures, by what it is called."""
        found = part(self.result, "blind")
        named = {name: estimate(found.get(kind)) for kind, name in BLIND.items()}
        return {name: e for name, e in named.items() if e is not None}

    @property
    def warnings(self) -> list[str]:
        found = self.result.get("warnings")
        return [_clipped(str(one)) for one in found] if isinstance(found, list) else []


@dataclass
class Evaluation:
    """A folder. `result` and `asked` are result.json and eval.json, {} where they are missing."""

    name: str
    result: Record
    asked: Record
    tasks: list[Task]
    problems: list[str]

    @property
    def model(self) -> str:
        model = self.result.get("model") or self.asked.get("model") or self.name
        return str(model.get("name") or self.name) if isinstance(model, dict) else str(model)

    @property
    def engine(self) -> str:
        return str(self.result.get("engine") or self.asked.get("engine") or "")

    @property
    def state(self) -> list[str]:
        """What is missing or damaged, a sentence each; empty for a finished evaluation."""
        said = list(self.problems)
        if not self.result:
            said.insert(0, "There is no result.json: the evaluation is still going, or it was stopped.")
        for task in self.tasks:
            said += [f"{task.name}: {problem}" for problem in task.problems]
        return said


def read_evaluation(folder: Path, samples: bool = True) -> Evaluation:
    """The folder with its tasks in the order of result.json.

    samples: read the tasks' records too; without, `Task.questions` is empty.

    Raises:
        PosttrainError: it is no folder, or holds nothing of an evaluation.
    """
    if not folder.is_dir():
        raise PosttrainError(f"{folder} is not a folder: give the folder of an evaluation")
    problems: list[str] = []
    result, asked = (_json(folder / name, problems) for name in ("result.json", "eval.json"))
    done, settings = part(result, "tasks"), _settings(asked.get("tasks"))
    begun = sorted(path.parent.name for path in folder.glob(f"*/{ROWS}"))
    begun += sorted(path.parent.name for path in folder.glob(f"*/{ANSWERS}"))
    names = dict.fromkeys([*done, *settings, *begun])
    names = [name for name in names if Path(name).name == name != ".." and name.isprintable()]
    if not names:
        raise PosttrainError(f"{folder} holds no evaluation: no task in result.json or eval.json, no {ROWS}")
    tasks = [_task(folder / name, part(done, name), part(settings, name), samples) for name in names]
    return Evaluation(folder.resolve().name, result, asked, tasks, problems)


def part(record: Mapping[str, Any], key: str) -> Record:
    """`record[key]` where it is an object, else {}."""
    found = record.get(key)
    return found if isinstance(found, dict) else {}


def estimate(found: object) -> Estimate | None:
    """{"value", "ci95", "n"} as an Estimate; None without a number. A missing interval is the point."""
    value = number(found.get("value")) if isinstance(found, dict) else None
    if value is None or not isinstance(found, dict):
        return None
    ci95, n = found.get("ci95"), number(found.get("n"))
    ends = [number(v) for v in ci95] if isinstance(ci95, list) and len(ci95) == 2 else [None, None]
    lo, hi = (value if end is None else end for end in ends)
    return Estimate(value, min(lo, value), max(hi, value), None if n is None else int(n))


def _settings(wanted: object) -> Record:
    """The tasks of eval.json by name, which may be an object of settings, a list of them, or of names."""
    if isinstance(wanted, list):
        return {str(one.get("name")) if isinstance(one, dict) else str(one): one for one in wanted}
    return wanted if isinstance(wanted, dict) else {}


def _json(path: Path, problems: list[str]) -> Record:
    try:
        found = json.loads(path.read_bytes().decode("utf-8", "replace"))
    except FileNotFoundError:
        return {}
    except OSError as error:
        problems.append(f"{path.name} could not be read ({error.strerror}).")
        return {}
    except (ValueError, RecursionError):
        problems.append(f"{path.name} is incomplete or damaged and was left out.")
        return {}
    return found if isinstance(found, dict) else {}


def _task(folder: Path, result: Record, settings: Record, samples: bool) -> Task:
    planned = number(result.get("samples")) or number(settings.get("samples"))
    task = Task(folder.name, result, None if planned is None else int(planned))
    if not samples:
        return task
    questions: dict[str, Question] = {}
    for row in _lines(folder / ROWS, task):
        gold = row.get("answer")
        words = _text(row.get("question"))
        one = Question(str(row.get("id")), words, None if gold is None else _text(gold))
        one.pictures = _pictures(row)
        questions[one.id] = one
    verdicts = {_key(record): record for record in _lines(folder / VERDICTS, task)}
    answers: dict[tuple[str, int], Record] = {}
    for record in _lines(folder / ANSWERS, task):
        # A sample that failed and was drawn again has two lines. Else the first one is what was judged.
        if answers.setdefault(_key(record), record).get("finish") == "error":
            answers[_key(record)] = record
    for key, record in sorted(answers.items(), key=lambda item: item[0][1]):
        question = questions.setdefault(key[0], Question(key[0]))
        question.samples.append(_sample(key[1], record, verdicts.get(key, {})))
    task.questions = list(questions.values())
    wanted = len(questions) * (task.planned or 0)
    if not answers:
        task.problems.append("no question was answered yet.")
    elif len(answers) < wanted:
        task.problems.append(f"{len(answers):,} of {wanted:,} samples are there.")
    if answers and not verdicts:
        task.problems.append("nothing was judged yet.")
    elif left := len(answers.keys() - verdicts.keys()):
        task.problems.append(f"{left:,} samples have no verdict yet.")
    return task


def _pictures(row: Record) -> tuple[Any, ...]:
    content, beside = row.get("content"), row.get("images")
    messages = [one for one in content if isinstance(one, dict)] if isinstance(content, list) else []
    parts = [part for one in messages if isinstance(one.get("content"), list) for part in one["content"]]
    found = [part["image"] for part in parts if isinstance(part, dict) and part.get("image") is not None]
    return (*found, *(beside if isinstance(beside, list) else ()))


def _lines(path: Path, task: Task) -> Iterator[Record]:
    told = Run(task.name)
    yield from json_lines(path, told)
    task.problems += told.problems
    try:
        with path.open("rb") as file:
            if file.seek(0, 2) and file.seek(-1, 2) and file.read(1) != b"\n":
                task.problems.append(f"the last line of {path.name} is not whole: it was being written.")
    except OSError:  # missing, or told of above
        return


def _key(record: Record) -> tuple[str, int]:
    return str(record.get("id")), int(number(record.get("sample")) or 0)


def _sample(at: int, record: Record, verdict: Record) -> Sample:
    completion, tokens = _text(record.get("completion")), number(record.get("tokens"))
    finish, error, failure = (
        _text(x) for x in (record.get("finish"), record.get("error"), verdict.get("failure"))
    )
    right, extracted, group = verdict.get("right"), verdict.get("extracted"), number(verdict.get("group"))
    if finish == "error" or error:
        judged = "failed"
    else:
        judged = "open" if not isinstance(right, bool) else "right" if right else "wrong"
    return Sample(
        at,
        completion,
        None if tokens is None else int(tokens),
        finish,
        judged,
        None if extracted is None else _text(extracted),
        _span(verdict.get("span"), len(completion)),
        error or failure,
        None if group is None else int(group),
    )


def _span(found: object, length: int) -> tuple[int, int] | None:
    if not isinstance(found, list) or len(found) != 2:
        return None
    start, end = found
    if (
        not all(isinstance(x, int) and not isinstance(x, bool) for x in found)
        or not 0 <= start < end <= length
    ):
        return None
    return start, end


def _clipped(text: str) -> str:
    return text if len(text) <= SENTENCE else f"{text[:SENTENCE]}…"


def _text(value: object) -> str:
    return "" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)

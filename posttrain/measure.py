"""Runs `posttrain eval`: asks a model a task's questions, judges the answers, says how sure the number is.

A folder holds one model's evaluation; more tasks may be added to it. Of each task:

    task.yaml       the task with every default written out
    data.json       which questions these are
    rows.jsonl      the questions
    answers.jsonl   every sample, written as it arrives: what is there is never asked for again
    verdicts.jsonl  what the verifier says of each; made again from the answers by `rescore`
    blank/, shuffled/  answers and verdicts without the questions' pictures, where they were asked for

result.json and what is made of it (result.md, result.csv, lm_eval.json, report.html) tell of all tasks.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from posttrain import settings
from posttrain.evaluate.display import Display
from posttrain.files import replace_text
from posttrain.harness import compare_page, facts, page, show
from posttrain.harness.answer import Answer, Answerer, requests_for
from posttrain.harness.blind import KINDS, against, blanked, warning, without
from posttrain.harness.comparison import compare as compared
from posttrain.harness.comparison import questions_needed
from posttrain.harness.judge import Verdict, judge
from posttrain.harness.questions import load_prompts, provenance
from posttrain.harness.records import Answers, Key, read_answers, read_whole, write_whole
from posttrain.harness.task import Task, cut, load_task, template_hash
from posttrain.image_parts import read_messages, with_images
from posttrain.machine import machine
from posttrain.past import held
from posttrain.stop import Stop, Stopped
from posttrain.types import Picture, PosttrainError, Prompt, Sampling

VERSIONS = ("posttrain", "torch", "transformers", "math-verify", "reasoning-gym")
SIZES = ("0.01", "0.02", "0.05")  # differences for which a comparison says how many questions they need


@dataclass(frozen=True)
class Asked:
    """What to evaluate. `opened` makes the answerer, which is not asked for where every answer is there."""

    tasks: Sequence[Task]
    model: str
    engine: str
    opened: Callable[[], Answerer]
    seed: int = 0
    data: str | None = None
    limit: int | None = None
    workers: int = 1
    blind: bool = False
    """Ask questions that have pictures without them too (harness.blind)."""


def evaluate(asked: Asked, folder: Path) -> Path:
    """Evaluate in `folder`, or go on with what is there; -> the folder.

    Raises:
        PosttrainError: a task, a model or a server that cannot be had; the folder holds something else.
        Stopped: every answer that had arrived is kept, and called again it goes on from there.
    """
    names = [task.name for task in asked.tasks]
    if twice := {name for name in names if names.count(name) > 1}:
        raise PosttrainError(f"{', '.join(sorted(twice))}: named twice")
    if asked.data is not None and len(names) > 1:
        raise PosttrainError(f"--data {asked.data} replaces one task's questions; name that task alone")
    questions = [load_prompts(task, asked.data, asked.limit) for task in asked.tasks]
    if asked.blind and not any(prompt.pictures for prompts in questions for prompt in prompts):
        raise PosttrainError(f"--blind: {', '.join(names)} shows no pictures; leave it out")
    folder.mkdir(parents=True, exist_ok=True)
    with Stop() as stop, held(folder), Display(0, []) as display:
        began = time.monotonic()
        _begin(asked, folder)
        work: list[tuple[Task, str, Sequence[Prompt], list[Key]]] = []
        for task, prompts in zip(asked.tasks, questions, strict=True):
            _ask_for(task, prompts, asked, folder / task.name)
            for kind, some in ({"": prompts} | (without(prompts, asked.seed) if asked.blind else {})).items():
                with Answers(folder / task.name / kind / "answers.jsonl") as there:
                    keys = there.missing([prompt.id for prompt in some], task.sampling.samples)
                work.append((task, kind, some, keys))
        if any(keys for *_, keys in work):
            display.phase("loading the model")
            answerer = asked.opened()
            try:
                for task, kind, prompts, keys in work:
                    some = blanked(prompts, answerer) if kind == "blank" and keys else prompts
                    place = folder / task.name / kind
                    _answer(answerer, task, some, keys, asked.seed, place, display, stop, kind)
                _tell(folder, answerer.describe())
            finally:
                answerer.close()
                _took(folder, time.monotonic() - began)
        for task in asked.tasks:
            for kind in _kinds(folder / task.name):
                if not _is_judged(folder / task.name / kind):
                    _judge(folder / task.name, task, display, stop, asked.workers, kind)
        return write_result(folder)


def rescore(folder: Path, overrides: Sequence[str] = (), workers: int = 1) -> Path:
    """Judge the answers of an evaluation again, the tasks as they were or with `overrides` over them.

    Raises:
        PosttrainError: the folder holds no evaluation, or one that cannot be read.
        Stopped: the verdicts of the tasks that were not reached are as they were.
    """
    tasks = _tasks(folder)
    with Stop() as stop, held(folder), Display(0, []) as display:
        for name in tasks:
            task = load_task(str(folder / name / "task.yaml"), overrides)
            for kind in _kinds(folder / name):
                _judge(folder / name, task, display, stop, workers, kind)
            replace_text(folder / name / "task.yaml", settings.dump(task))
        return write_result(folder)


def compare(a: Path, b: Path, out: Path) -> dict[str, dict[str, Any]]:
    """Hold two evaluations against each other, task by task, on the questions that both were asked; writes
    the page `out`.

    Raises:
        PosttrainError: they have no task, or no question, in common.
    """
    both = [name for name in _tasks(a) if name in _tasks(b)]
    if not both:
        raise PosttrainError(f"{a} and {b} have no task in common: {_named(a)} against {_named(b)}")
    found = {}
    for name in both:
        ours, theirs = (_values(folder / name) for folder in (a, b))
        keys = [key for key in ours if key in theirs]
        if keys:
            values = [ours[key] for key in keys], [theirs[key] for key in keys]
            needed = {size: questions_needed(*values, float(size)) for size in SIZES}
            found[name] = compared(*values) | {"needed": needed}
    if not found:
        raise PosttrainError(f"{a} and {b} were asked different questions: nothing can be compared")
    compare_page.write_comparison(a, b, found, out)
    return found


def write_result(folder: Path) -> Path:
    """Write result.json and all that is made of it from the records; -> the folder."""
    about = _json(folder / "eval.json")
    tasks = {name: _result(folder / name, about) for name in _tasks(folder)}
    result = {key: about.get(key) for key in ("model", "engine", "seconds", "versions", "machine")}
    replace_text(folder / "result.json", json.dumps(result | {"tasks": tasks}, indent=1))
    show.write_exports(folder)
    page.write_page(folder)
    return folder


def _begin(asked: Asked, folder: Path) -> None:
    """eval.json: what all tasks of the folder share."""
    same = {"model": asked.model, "engine": asked.engine, "seed": asked.seed}
    path = folder / "eval.json"
    if not path.is_file():
        if any(folder.iterdir()):
            raise PosttrainError(f"{folder} holds files that are no evaluation; choose another with --output")
        versions = {name: version(name) for name in VERSIONS} | {"python": platform.python_version()}
        replace_text(
            path, json.dumps(same | {"versions": versions, "machine": machine(), "seconds": 0.0}, indent=1)
        )
        return
    then = _json(path)
    if changed := [
        f"{key}: {then.get(key)!r} then, {same[key]!r} now" for key in same if then.get(key) != same[key]
    ]:
        raise PosttrainError(
            f"{folder} holds another evaluation ({'; '.join(changed)}); choose another --output"
        )


def _ask_for(task: Task, prompts: Sequence[Prompt], asked: Asked, folder: Path) -> None:
    """A task's folder: a new one, or the one of this very task with these very questions."""
    data = provenance(task, prompts, asked.data) | {"replaced": asked.data, "limit": asked.limit}
    text = settings.dump(task)
    if (folder / "data.json").is_file():
        wrong = "other settings" if (folder / "task.yaml").read_text(encoding="utf-8") != text else ""
        if _json(folder / "data.json") != data:
            wrong = "other questions"
        if wrong:
            raise PosttrainError(
                f"{folder} was begun with {wrong}: put them back to go on, or choose another --output"
            )
        return
    folder.mkdir(exist_ok=True)
    write_whole(folder / "rows.jsonl", map(_row, prompts))
    replace_text(folder / "task.yaml", text)
    replace_text(folder / "data.json", json.dumps(data, indent=1))  # last: from here on the task is begun


def _row(prompt: Prompt) -> dict[str, Any]:
    return {
        "id": prompt.id, "question": prompt.question,
        "content": with_images(prompt.content, lambda picture: picture.cell), "answer": prompt.answer,
        "columns": prompt.columns, "images": [picture.cell for picture in prompt.beside],
    }  # fmt: skip


def _prompts(folder: Path) -> list[Prompt]:
    rows = read_whole(folder / "rows.jsonl")
    return [_read(row, f"{folder / 'rows.jsonl'}, question {row['id']}") for row in rows]


def _read(row: dict[str, Any], where: str) -> Prompt:
    content = row["content"]
    if isinstance(content, list):
        content = read_messages(content, where, None)
    beside = tuple(Picture.of(cell, where) for cell in row.get("images", ()))  # older ones have none
    return Prompt(row["id"], content, row["answer"], row["columns"], beside)


def _answer(
    answerer: Answerer,
    task: Task,
    prompts: Sequence[Prompt],
    keys: Sequence[tuple[str, int]],
    seed: int,
    folder: Path,
    display: Display,
    stop: Stop,
    kind: str = "",
) -> None:
    """Have every missing sample answered, each written down as it arrives."""
    if not keys:
        return
    total = len(prompts) * task.sampling.samples
    there = total - len(keys)

    def watch(done: int, _: int) -> None:
        display.phase(f"{task.name}: answering {kind}".rstrip(), there + done, total)
        if stop.asked:
            raise Stopped(stop.signal)

    asked = task.sampling
    sampling = Sampling(asked.max_tokens, asked.temperature, asked.top_k, asked.top_p)
    requests = requests_for(keys, {prompt.id: prompt for prompt in prompts}, seed)
    with Answers(folder / "answers.jsonl") as answers:
        watch(0, total)
        answerer.answer(requests, sampling, answers.add, watch)


def _kinds(folder: Path) -> list[str]:
    """Of a task's answers: "", and those of harness.blind.KINDS that were asked for."""
    return ["", *(kind for kind in KINDS if (folder / kind / "answers.jsonl").is_file())]


def _judge(folder: Path, task: Task, display: Display, stop: Stop, workers: int, kind: str = "") -> None:
    def watch(done: int, total: int) -> None:
        display.phase(f"{task.name}: judging", done, total)
        if stop.asked:
            raise Stopped(stop.signal)

    answers = [_ended(answer, task) for answer in _sorted(folder, kind)]
    deadline = task.verifier.deadline
    verdicts = judge(
        _prompts(folder),
        answers,
        task.verifier,
        picks=task.best_of,
        deadline=deadline,
        workers=workers,
        on_progress=watch,
    )
    write_whole(folder / kind / "verdicts.jsonl", verdicts)


def _is_judged(folder: Path) -> bool:
    """Whether no answer has come since the verdicts were written."""
    answers, verdicts = folder / "answers.jsonl", folder / "verdicts.jsonl"
    return verdicts.is_file() and verdicts.stat().st_mtime_ns >= answers.stat().st_mtime_ns


def _sorted(folder: Path, kind: str = "") -> list[Answer]:
    """The answers in the order of the questions: it is not that of their arrival."""
    place = {row["id"]: i for i, row in enumerate(read_whole(folder / "rows.jsonl"))}
    answers = [answer for answer in read_answers(folder / kind / "answers.jsonl") if answer.id in place]
    return sorted(answers, key=lambda answer: (place[answer.id], answer.sample))


def _ended(answer: Answer, task: Task) -> Answer:
    """The answer as an engine that knows the task's stop texts would have ended it."""
    text = cut(answer.completion, task.sampling.stop)
    return answer if text == answer.completion else replace(answer, completion=text, finish="stop")


def _result(folder: Path, about: dict[str, Any]) -> dict[str, Any]:
    """A task's part of result.json."""
    task, data = load_task(str(folder / "task.yaml")), _json(folder / "data.json")
    answers = [_ended(answer, task) for answer in _sorted(folder)]
    verdicts: list[Verdict] = read_whole(folder / "verdicts.jsonl")
    questions, k = facts.by_question(verdicts), task.sampling.samples
    found, metrics = facts.facts(verdicts, answers), facts.metrics(questions, k, task.primary)
    args = ", ".join(f"{key}={value}" for key, value in task.verifier.args.items())
    unseen = {
        kind: against(verdicts, read_whole(folder / kind / "verdicts.jsonl")) for kind in _kinds(folder)[1:]
    }
    unseen = {kind: one for kind, one in unseen.items() if one is not None}
    blank = unseen.get("blank")
    told = facts.warnings(
        found, questions=len(questions), of=data["rows"], data=data["replaced"], limit=data["limit"]
    )
    return {
        "questions": data["rows"],
        "samples": k,
        "primary": task.primary,
        "metrics": metrics,
        "curves": facts.curves(metrics, questions, answers, k),
        "facts": found,
        "made_by": {
            "sampling": task.sampling.model_dump(mode="json"),
            "seed": about.get("seed"),
            "template": template_hash(task),
            "data": {key: data[key] for key in ("source", "revision", "hash", "rows")},
            "verifier": f"{task.verifier.use}({args})",
            "few_shot": task.shots,
        },
        "warnings": [*told, *([said] if blank and (said := warning(blank)) else [])],
        "reported": [one.model_dump() for one in task.reported],
    } | ({"blind": unseen} if unseen else {})


def _values(folder: Path) -> dict[tuple[str, str], float]:
    """The share of right answers to each question, by its id and text."""
    text = {row["id"]: row["question"] for row in read_whole(folder / "rows.jsonl")}
    found = facts.by_question(read_whole(folder / "verdicts.jsonl"))
    return {(id, text[id]): share for id, share in zip(found, facts.shares(found), strict=True)}


def _tasks(folder: Path) -> list[str]:
    """The tasks of an evaluation whose answers were begun."""
    if not (folder / "eval.json").is_file():
        raise PosttrainError(f"{folder} holds no evaluation: there is no eval.json in it")
    return sorted(path.parent.name for path in folder.glob("*/data.json"))


def _named(folder: Path) -> str:
    return ", ".join(_tasks(folder)) or "none"


def _tell(folder: Path, described: dict[str, Any]) -> None:
    about = _json(folder / "eval.json")
    about["versions"] |= described.get("versions", {})
    replace_text(folder / "eval.json", json.dumps(about | {"answerer": described}, indent=1))


def _took(folder: Path, seconds: float) -> None:
    about = _json(folder / "eval.json")
    replace_text(folder / "eval.json", json.dumps(about | {"seconds": about["seconds"] + seconds}, indent=1))


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PosttrainError(f"{path} cannot be read: {error}") from None
    if not isinstance(found, dict):
        raise PosttrainError(f"{path} holds no mapping")
    return found

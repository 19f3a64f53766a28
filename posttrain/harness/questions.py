"""A task's rows as prompts: read, chosen, and put into the task's words, with worked examples before them."""

from __future__ import annotations

import hashlib
import json
import logging
import queue
import random
import threading
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any, NamedTuple

from posttrain import __version__, image_parts
from posttrain.data import RESERVED, as_text, column_of, ids_of, pictures_of, question_key
from posttrain.harness.task import Choices, Task
from posttrain.recipe_data import FILES, GENERATOR, HUB, MADE, SCENES, Source, columns_in, fill
from posttrain.sources import Row, read_rows
from posttrain.types import Message, Picture, PosttrainError, Prompt

log = logging.getLogger(__name__)

HUB_SECONDS = 600.0  # for a data set of the Hub to arrive: what an unreachable one gets from its own retries
DATA_INSTEAD = "`--data rows.jsonl` (or .parquet), with the same columns, replaces the task's data"
SHOTS_INSTEAD = "few_shot.data.source=rows.jsonl takes the worked examples from a file"


class Asked(NamedTuple):
    """A row in the task's words: question, right answer, all columns, made ones among them, and pictures."""

    text: str
    answer: str | None
    columns: Row
    pictures: tuple[Picture, ...] = ()


def load_prompts(task: Task, data: str | None = None, limit: int | None = None) -> list[Prompt]:
    """The task's questions, in the order of their rows.

    `data`, a .jsonl or .parquet file with the same columns, replaces the task's source. `limit` keeps the
    first questions only. An id is the row's `id` column as text where that is there and unique, else the
    row's number; neither hangs on `where` or `limit`. No question is one of the worked examples. Questions
    that repeat others stay and are told of in the log.

    Raises:
        PosttrainError: rows that cannot be read, a column that is not there, or no question left.
    """
    if limit is not None and limit < 1:
        raise PosttrainError(f"a limit of {limit} questions leaves none; choose 1 or more")
    shots = _shots(task, data)
    shown = {question_key(question) for question, _ in shots}
    source = _source(task.data, data)
    rows = _read(task, source, None if data else DATA_INSTEAD)
    prompts: list[Prompt] = []
    seen: set[str] = set()
    repeated = dropped = 0
    for id, row in zip(ids_of(rows, task.id), rows, strict=True):
        if len(prompts) == limit:
            break
        at = f"{task.name}, row {id}"
        if not _wanted(task, row, at):
            continue
        asked = _ask(task, row, id, at)
        if task.images:
            pictures = pictures_of(row, task.images, at, source, "images")
            asked = asked._replace(pictures=tuple(pictures))
        key = question_key(asked.text, asked.pictures)
        if key in shown:
            dropped += 1
            continue
        repeated += key in seen
        seen.add(key)
        prompts.append(_prompt(task, id, row, asked, shots, at))
    if dropped:
        log.warning("%s: %d questions are among its worked examples and left out", task.name, dropped)
    if repeated:
        log.warning("%s: %d of %d questions repeat others", task.name, repeated, len(prompts))
    if not prompts:
        chosen = ", ".join(f"{key}: {value}" for key, value in task.where.items())
        why = f"no row has {chosen}" if chosen else "all rows are worked examples"
        raise PosttrainError(f"{task.name}: no question is left: {why}")
    return prompts


def provenance(task: Task, prompts: Sequence[Prompt], data: str | None = None) -> dict[str, Any]:
    """Where the questions came from: {"source", "revision", "hash", "rows"}.

    The hash is of the rows that are asked, ids, answers and columns, and not of the prompt's words. The
    revision is the one that the task names, or what made the rows; null: whatever was newest.
    """
    source, revision = data or task.data.source, None
    if data is None:
        names = [name for name in (task.data.config, task.data.split) if name]
        source += f" ({', '.join(names)})" if names else ""
        revision = task.data.revision
        if task.data.source.startswith(GENERATOR):
            revision = f"reasoning-gym {version('reasoning-gym')}"
        if task.data.source.startswith(SCENES):
            revision = f"posttrain {__version__}, Pillow {version('pillow')}"
    digest = hashlib.sha256()
    for prompt in prompts:
        row = [prompt.id, prompt.answer, prompt.columns, *(picture.digest for picture in prompt.pictures)]
        digest.update(json.dumps(row, sort_keys=True, default=str).encode("utf-8", "surrogatepass") + b"\n")
    return {"source": source, "revision": revision, "hash": digest.hexdigest()[:16], "rows": len(prompts)}


def _source(source: Source, data: str | None) -> Source:
    if data is None:
        return source
    if not data.endswith(FILES):
        raise PosttrainError(f"the data {data!r} is neither a .jsonl nor a .parquet file")
    return Source(source=data)


def _read(task: Task, source: Source, instead: str | None) -> list[Row]:
    """The rows of a source; from the Hub within a deadline, because its client may wait for ever.

    `instead` is what a message says of other rows that would do.
    """
    answers: queue.SimpleQueue[list[Row] | Exception] = queue.SimpleQueue()

    def work() -> None:
        try:
            answers.put(read_rows(source, f"{task.name}: data"))
        except Exception as error:
            answers.put(error)

    if source.source.startswith(HUB):
        threading.Thread(target=work, daemon=True).start()
    else:
        work()
    try:
        answer = answers.get(timeout=HUB_SECONDS)
    except queue.Empty:
        answer = PosttrainError(f"{task.name}: {source.source} did not arrive within {HUB_SECONDS:g} s")
    if isinstance(answer, PosttrainError) and instead and not source.source.startswith(MADE):
        raise PosttrainError(f"{answer}; {instead}") from answer
    if isinstance(answer, Exception):
        raise answer
    return answer


def _wanted(task: Task, row: Row, at: str) -> bool:
    for column, value in task.where.items():
        is_value = column_of(row, column, at, f"where.{column}")
        if is_value not in (value if isinstance(value, list) else [value]):
            return False
    return True


def _shots(task: Task, data: str | None) -> list[tuple[str, str]]:
    """The worked examples, question and completion. Where the task's own source is replaced, theirs, if it
    is the same, is too."""
    few = task.few_shot
    if few is None:
        return []
    rows = list(few.rows)
    if few.data is not None:
        source = few.data
        if data is not None and source.source == task.data.source:
            source = _source(source, data)
            log.warning("%s: the first %d rows of %s are its worked examples", task.name, task.shots, data)
        rows = _read(task, source, SHOTS_INSTEAD)[: few.data.size]
    shots = []
    for number, row in enumerate(rows):
        at = f"{task.name}, example {number}"
        asked = _ask(task, row, f"few_shot {number}", at)
        shots.append((asked.text, _filled(task, few.completion, asked.columns, at, "few_shot.completion")))
    return shots


def _ask(task: Task, row: Row, id: str, at: str) -> Asked:
    columns = dict(row)
    answer = None
    if task.choices is not None:
        columns["choices"], answer = _choose(task.choices, row, id, at)
        columns["answer"] = answer
    elif task.answer is not None:
        whole = columns["answer"] = _answer(row, task.answer, at)
        answer = _after(task.answer_after, whole, at) if task.answer_after else whole
    return Asked(_filled(task, task.prompt, columns, at, "prompt").strip("\n"), answer, columns)


def _answer(row: Row, key: str, at: str) -> str | None:
    """The answer's column as text; `column.0` is an item in it, and None where it has no such item."""
    column, *path = [key] if key in row else key.split(".")
    value = column_of(row, column, at, "answer")
    for step in path:
        try:
            value = value[int(step) if isinstance(value, list) else step]
        except (LookupError, TypeError, ValueError):
            return None
    return as_text(value)


def _after(mark: str, answer: str | None, at: str) -> str:
    _, found, rest = (answer or "").rpartition(mark)
    if not found or not rest.strip():
        raise PosttrainError(f"answer_after: {at}: nothing follows {mark!r} in the answer")
    return rest.strip()


def _choose(choices: Choices, row: Row, id: str, at: str) -> tuple[str, str]:
    """The options, a line each, and the letter of the right one."""
    cells = [column_of(row, column, at, "choices.columns") for column in choices.columns]
    cells = cells[0] if len(cells) == 1 and isinstance(cells[0], list) else cells
    options = [(as_text(cell) or "").strip() for cell in cells]
    right = 0 if choices.right is None else column_of(row, choices.right, at, "choices.right")
    if not 2 <= len(options) <= 26 or not all(options):
        raise PosttrainError(f"choices.columns: {at} has {len(options)} options, or an empty one")
    if isinstance(right, bool) or not isinstance(right, int) or not 0 <= right < len(options):
        raise PosttrainError(f"choices.right: {at}: {right!r} is no number of {len(options)} options, from 0")
    order = list(range(len(options)))
    if choices.shuffle:
        random.Random(f"choices of {id}").shuffle(order)
    lines = [f"{chr(ord('A') + place)}) {options[number]}" for place, number in enumerate(order)]
    return "\n".join(lines), chr(ord("A") + order.index(right))


def _filled(task: Task, template: str, columns: Row, at: str, key: str) -> str:
    """A template with a row's columns in it. Only the question's may not be empty."""
    cells = {}
    for name in columns_in(template):
        column = task.question if name == "question" else name
        text = _shown(column_of(columns, column, at, key))
        if name == "question" and not text.strip():
            raise PosttrainError(f"{key}: {at}: column {column!r} is empty")
        cells[name] = text
    return fill(template, cells)


def _shown(value: Any) -> str:
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return "\n".join(value)
    return as_text(value) or ""


def _prompt(task: Task, id: str, row: Row, asked: Asked, shots: Sequence[tuple[str, str]], at: str) -> Prompt:
    columns = {key: value for key, value in row.items() if key not in ("answer", *RESERVED, *task.images)}
    if not task.chat:
        text = image_parts.in_text(asked.text, asked.pictures, at) if task.images else asked.text
        texts = [question + completion for question, completion in shots]
        return Prompt(id, "\n\n".join([*texts, text]), asked.answer, columns, asked.pictures)
    messages: list[Message] = [{"role": "system", "content": task.system}] if task.system else []
    for question, completion in shots:
        messages.append({"role": "user", "content": question})
        messages.append({"role": "assistant", "content": completion})
    messages.append({"role": "user", "content": asked.text})
    if task.images:
        messages = image_parts.in_messages(messages, asked.pictures, at)
    return Prompt(id, messages, asked.answer, columns)

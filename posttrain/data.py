"""Rows of data as prompts: made by reasoning-gym, read from JSONL or Parquet files, or from the Hub.

Rows keep the order of their source; the training loop draws them in an order of its own.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import logging
import random
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from posttrain.recipe import GENERATOR, HUB, Data, Source, columns_in, fill
from posttrain.types import Message, PosttrainError, Prompt
from posttrain.words import did_you_mean

log = logging.getLogger(__name__)

Row = dict[str, Any]
T = TypeVar("T")

# Rewards receive these by keyword from us, so a column of the same name cannot reach them.
RESERVED = ("prompts", "completions", "completion_ids")


def load(data: Data) -> tuple[list[Prompt], list[Prompt]]:
    """Load (train, heldout) prompts with nothing in common.

    Held-out rows are distinct, and train rows whose question is held out are dropped, whatever words their
    template puts around it. Both are logged.

    Raises:
        PosttrainError: a source that cannot be read, a column that is not there, or nothing left on a side.
    """
    train, asked = [], []
    for source, side in _train(data):
        for i, row in enumerate(read_rows(source, f"data.{side}")):
            prompt = _prompt(data, row, f"{side}-{i}", f"data.{side}, row {i}", source.prompt)
            train.append(prompt)
            asked.append(_keys(data, row, prompt, source.prompt) | _turns(prompt))
    heldout, taken = _heldout(data)
    return _same_columns(_apart(train, asked, taken)), heldout


def examples(data: Data, completion: str) -> tuple[list[Row], list[Prompt]]:
    """Load (train, heldout) for supervised fine-tuning: examples as `train.sft.sft` takes them, and prompts.

    A row's `messages`, a whole conversation, is taken as it is. Other rows are a prompt, read as `load` does,
    and the `completion` template filled with their columns; without chat, a row of both texts is ready too.
    Held-out prompts are distinct, and no example has one of them, in any turn of a conversation; what is
    dropped is logged.

    Raises:
        PosttrainError: as `load`, or a row with nothing to write.
    """
    made, asked = [], []
    unjudged = data.model_copy(update={"answer": None})  # what is to be written stands in the row
    for source, side in _train(data):
        for i, row in enumerate(read_rows(source, f"data.{side}")):
            example, keys = _example(unjudged, row, f"data.{side}, row {i}", source.prompt, completion)
            made.append(example)
            asked.append(keys)
    heldout, taken = _heldout(data)
    return _apart(made, asked, taken), heldout


def _example(data: Data, row: Row, where: str, template: str | None, completion: str) -> tuple[Row, set[str]]:
    """An example, and what the questions that it answers are known by."""
    if isinstance(row.get("messages"), list):
        messages = _messages(row["messages"], where)
        whole = Prompt("", [message for message in messages if message["role"] != "assistant"], None)
        return {"messages": messages}, {question_key(whole.question)} | _turns(whole)
    if not data.chat and all(isinstance(row.get(key), str) for key in ("prompt", "completion")):
        texts = {key: _cell(row, key, where, "data") for key in ("prompt", "completion")}
        return texts, {question_key(texts["prompt"])}
    prompt = _prompt(data, row, "", where, template)
    answer: Any = fill(completion, _cells(data, row, completion, where, "completion"))
    if isinstance(prompt.content, list):
        answer = [{"role": "assistant", "content": answer}]
    keys = _keys(data, row, prompt, template) | _turns(prompt)
    return {"prompt": prompt.content, "completion": answer}, keys


def _train(data: Data) -> list[tuple[Source, str]]:
    """The sources of rows to train on, and what a row of each is called."""
    return [(data.train, "train"), *((source, f"also.{i}") for i, source in enumerate(data.also))]


def _heldout(data: Data) -> tuple[list[Prompt], set[str]]:
    """The distinct held-out prompts, and what their questions are known by."""
    template = data.heldout.prompt
    rows = read_rows(data.heldout, "data.heldout")
    drawn = [
        _prompt(data, row, id, f"data.heldout, row {i}", template)
        for i, (id, row) in enumerate(zip(ids_of(rows), rows, strict=True))
    ]
    distinct: dict[str, Prompt] = {}
    for prompt in _same_columns(drawn):
        distinct.setdefault(question_key(prompt.question), prompt)
    if len(distinct) < len(drawn):
        log.warning(
            "dropped %d of %d held-out rows: they repeat others", len(drawn) - len(distinct), len(drawn)
        )
    known = (_keys(data, row, prompt, template) for row, prompt in zip(rows, drawn, strict=True))
    return list(distinct.values()), set().union(*known)


def _apart(rows: list[T], asked: Sequence[set[str]], taken: set[str]) -> list[T]:
    """The rows of which no question is held out."""
    kept = [row for row, keys in zip(rows, asked, strict=True) if keys.isdisjoint(taken)]
    if not kept:
        raise PosttrainError(
            f"data: all {len(rows)} train rows are among the held-out ones; "
            "make the task larger, or name other rows for one of them"
        )
    if len(kept) < len(rows):
        log.warning("dropped %d of %d train rows: they are held out", len(rows) - len(kept), len(rows))
    return kept


def _keys(data: Data, row: Row, prompt: Prompt, template: str | None) -> set[str]:
    """What a row's question is known by: the prompt, and without the system message and the template's words.

    Messages that stand in the row are known as a whole: their system message may hold what is asked about.
    """
    if isinstance(row.get("prompt"), list):
        return {question_key(prompt.question)}
    cells = _cells(data, row, template or data.prompt, "", "")
    bare = {question_key("\n".join(cells[name] for name in sorted(cells)))} if cells else set()
    return {question_key(prompt.question)} | bare | _turns(prompt)


def _turns(prompt: Prompt) -> set[str]:
    """What each of a user's messages is known by on its own: one that is answered is seen in training."""
    if isinstance(prompt.content, str):
        return set()
    users = [message for message in prompt.content if message["role"] == "user"]
    return {question_key(Prompt("", [message], None).question) for message in users}


def question_key(question: str) -> str:
    """What a question is known by: blanks and capitals aside."""
    return " ".join(question.split()).casefold()


def read_rows(source: Source, where: str) -> list[Row]:
    """The rows of a source; `where` is how messages name it. PosttrainError where it holds none."""
    rows = list(itertools.islice(_rows(source, where), source.size))
    if not rows:
        raise PosttrainError(f"{where}: {source.source} holds no rows")
    return rows


def _same_columns(prompts: list[Prompt]) -> list[Prompt]:
    """A reward gets None for a column that a row lacks, whatever rows it is called with."""
    columns = dict.fromkeys(name for prompt in prompts for name in prompt.columns)
    return [dataclasses.replace(prompt, columns=columns | prompt.columns) for prompt in prompts]


def _prompt(data: Data, row: Row, id: str, where: str, template: str | None) -> Prompt:
    ready = row.get("prompt")
    if isinstance(ready, list):  # chat messages, used as they are
        content: str | list[Message] = _messages(ready, where)
    else:
        template = template or data.prompt
        content = fill(template, _cells(data, row, template, where, "data.prompt"))
        if data.chat:
            system: list[Message] = [{"role": "system", "content": data.system}] if data.system else []
            content = [*system, {"role": "user", "content": content}]
    answer = None if data.answer is None else as_text(column_of(row, data.answer, where, "data.answer"))
    hidden = {"answer", *RESERVED, *(["prompt"] if isinstance(ready, list) else [])}
    return Prompt(id, content, answer, {k: v for k, v in row.items() if k not in hidden})


def ids_of(rows: Sequence[Row], column: str = "id") -> list[str]:
    """What questions that are asked of a model are known by: that column where every row has one of its own,
    else the rows' numbers. Samples are drawn from these, so every command has to name a row alike."""
    ids = [as_text(row.get(column)) or "" for row in rows]
    known = all(ids) and len(set(ids)) == len(ids)
    return ids if known else [str(number) for number in range(len(rows))]


def column_of(row: Row, column: str, where: str, key: str) -> Any:
    """A column of a row. PosttrainError names the row (`where`) and the setting that asks for it (`key`)."""
    if column in row:
        return row[column]
    hint = did_you_mean(column, row) or f"it has {', '.join(map(repr, row)) or 'none'}"
    raise PosttrainError(f"{key}: {where} has no column {column!r}; {hint}")


def _cells(data: Data, row: Row, template: str, where: str, key: str) -> dict[str, str]:
    """The texts that a template's {columns} stand for."""
    columns = {name: data.question if name == "question" else name for name in columns_in(template)}
    return {name: _cell(row, column, where, key) for name, column in columns.items()}


def _cell(row: Row, column: str, where: str, key: str) -> str:
    """A column's text to put into a prompt."""
    text = as_text(column_of(row, column, where, key))
    if not text or not text.strip():
        raise PosttrainError(f"{key}: {where}: column {column!r} is empty")
    return text


def as_text(value: Any) -> str | None:
    """A cell as text: text as it is, numbers as they print, anything with structure as JSON."""
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, default=str)


def _messages(messages: list[Any], where: str) -> list[Message]:
    """Chat messages of a row, checked: images are refused until an engine takes them."""
    for message in messages:
        content = message.get("content") if isinstance(message, dict) else None
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        if not isinstance(message, dict) or not isinstance(message.get("role"), str) or not parts:
            raise PosttrainError(f'{where}: a prompt message is {{"role": …, "content": …}}, not {message!r}')
        if not isinstance(parts, list) or any(
            not isinstance(p, dict) or p.get("type") != "text" or not isinstance(p.get("text"), str)
            for p in parts
        ):
            raise PosttrainError(
                f"{where}: a prompt message holds something else than text, which is not read yet"
            )
    if not messages:
        raise PosttrainError(f"{where}: the prompt has no messages")
    return messages


def _rows(source: Source, where: str) -> Iterable[Row]:
    if source.source.startswith(GENERATOR):
        return _generated(source, where)
    if source.source.startswith(HUB):
        return _hub(source, where)
    path = Path(source.source).expanduser()
    if not path.is_file():
        raise PosttrainError(f"{where}.source: no file {source.source!r} in {Path.cwd()}")
    return jsonl(path, where) if path.suffix == ".jsonl" else _parquet(path, where)


def _generated(source: Source, where: str) -> Iterator[Row]:
    import reasoning_gym
    from reasoning_gym.composite import DatasetSpec
    from reasoning_gym.factory import DATASETS

    import posttrain.instructions
    import posttrain.word_problems  # noqa: F401 - these register tasks of our own

    name = source.source.removeprefix(GENERATOR)
    if name not in DATASETS:
        hint = did_you_mean(name, DATASETS, most=3) or "see reasoning-gym's gallery for the names"
        raise PosttrainError(f"{where}.source: reasoning-gym has no task {name!r}; {hint}")
    known = [
        field.name for field in dataclasses.fields(DATASETS[name][1]) if field.name not in ("seed", "size")
    ]
    for arg in source.args:
        if arg not in known:
            hint = did_you_mean(arg, known) or f"it takes {', '.join(known)}"
            raise PosttrainError(f"{where}.args: {name} has no argument {arg!r}; {hint}")
    # Row i of reasoning-gym comes from seed + i: seeds 1 and 2 would share all rows but one, so spread them.
    # numpy, which some tasks seed, takes no more than 32 bits.
    spread = random.Random(source.seed).randrange(2**31)
    try:
        args = dict(source.args)
        if name == "composite":
            args["datasets"] = [DatasetSpec(**spec) for spec in args.get("datasets") or ()]
        made = reasoning_gym.create_dataset(name, size=source.size, seed=spread, **args)
        for i in range(len(made)):
            yield dict(made[i])
    except Exception as error:  # whatever a task's own checks raise
        said = f"{type(error).__name__}: {error}"
        raise PosttrainError(f"{where}.args: reasoning-gym's {name} cannot make rows: {said}") from error


def jsonl(path: Path, where: str) -> Iterator[Row]:
    """The rows of a JSONL file. PosttrainError names the line that is no JSON object."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            at = f"{where}: {path}:{number}"
            try:
                row = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
            except UnicodeDecodeError:
                raise PosttrainError(f"{at}: the line is not UTF-8") from None
            except (ValueError, RecursionError) as error:
                raise PosttrainError(f"{at}: the line is not JSON: {error}") from None
            if not isinstance(row, dict):
                raise PosttrainError(f"{at}: a row is an object, {{…}}, not {type(row).__name__}")
            yield row


def _parquet(path: Path, where: str) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise PosttrainError(f"{where}: {path} cannot be read as Parquet: {error}") from None


def _hub(source: Source, where: str) -> Iterator[Row]:
    import datasets

    name = source.source.removeprefix(HUB)
    try:
        rows = datasets.load_dataset(name, source.config, split=source.split, revision=source.revision)
    except Exception as error:  # the Hub's, the network's, a builder's: many classes, one meaning
        said = (str(error).strip().splitlines() or ["no reason given"])[0]
        raise PosttrainError(
            f"{where}.source: cannot get data set {name!r} (config {source.config}, split {source.split}): "
            f"{type(error).__name__}: {said}"
        ) from error
    assert isinstance(rows, datasets.Dataset), "one split was asked for"
    for row in rows:
        yield dict(row)

"""Rows of data (`posttrain.sources`) as prompts and as examples, with held-out ones kept apart.

Rows keep the order of their source; the training loop draws them in an order of its own.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

from posttrain import image_parts
from posttrain.recipe import Data, Source, columns_in, fill
from posttrain.sources import Row, folder_of, read_rows
from posttrain.types import MARK, Message, Picture, PosttrainError, Prompt, pictures_in
from posttrain.words import did_you_mean

log = logging.getLogger(__name__)

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
            prompt = _prompt(data, row, f"{side}-{i}", f"data.{side}, row {i}", source)
            train.append(prompt)
            asked.append(_keys(data, row, prompt, source) | _turns(prompt))
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
            example, keys = _example(unjudged, row, f"data.{side}, row {i}", source, completion)
            made.append(example)
            asked.append(keys)
    heldout, taken = _heldout(data)
    return _apart(made, asked, taken), heldout


def _example(data: Data, row: Row, where: str, source: Source, completion: str) -> tuple[Row, set[str]]:
    """An example, and what the questions that it answers are known by."""
    if isinstance(row.get("messages"), list):
        messages, _ = _ready(data, row, "messages", where, source)
        whole = Prompt("", [message for message in messages if message["role"] != "assistant"], None)
        return {"messages": messages}, {question_key(whole.question, whole.pictures)} | _turns(whole)
    if not data.chat and all(isinstance(row.get(key), str) for key in ("prompt", "completion")):
        texts: Row = {key: _cell(row, key, where, "data") for key in ("prompt", "completion")}
        images = _columns(data, source)
        pictures = pictures_of(row, images, where, source)
        if images:
            texts["prompt"] = image_parts.in_text(texts["prompt"], pictures, where)
        return texts | _beside(pictures), {question_key(texts["prompt"], pictures)}
    prompt = _prompt(data, row, "", where, source)
    answer: Any = fill(completion, _cells(data, row, completion, where, "completion"))
    if isinstance(prompt.content, list):
        answer = [{"role": "assistant", "content": answer}]
    keys = _keys(data, row, prompt, source) | _turns(prompt)
    return {"prompt": prompt.content, "completion": answer, **_beside(prompt.beside)}, keys


def _beside(pictures: Sequence[Picture]) -> Row:
    """What an example of raw text has beside it, a picture for each <image>; nothing where there are none."""
    return {"images": list(pictures)} if pictures else {}


def _train(data: Data) -> list[tuple[Source, str]]:
    """The sources of rows to train on, and what a row of each is called."""
    return [(data.train, "train"), *((source, f"also.{i}") for i, source in enumerate(data.also))]


def _heldout(data: Data) -> tuple[list[Prompt], set[str]]:
    """The distinct held-out prompts, and what their questions are known by."""
    source = data.heldout
    rows = read_rows(source, "data.heldout")
    drawn = [
        _prompt(data, row, id, f"data.heldout, row {i}", source)
        for i, (id, row) in enumerate(zip(ids_of(rows), rows, strict=True))
    ]
    distinct: dict[str, Prompt] = {}
    for prompt in _same_columns(drawn):
        distinct.setdefault(question_key(prompt.question, prompt.pictures), prompt)
    if len(distinct) < len(drawn):
        log.warning(
            "dropped %d of %d held-out rows: they repeat others", len(drawn) - len(distinct), len(drawn)
        )
    known = (_keys(data, row, prompt, source) for row, prompt in zip(rows, drawn, strict=True))
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


def _keys(data: Data, row: Row, prompt: Prompt, source: Source) -> set[str]:
    """What a row's question is known by: the prompt, and without the system message and the template's words.

    Messages that stand in the row are known as a whole: their system message may hold what is asked about.
    """
    whole = question_key(prompt.question, prompt.pictures)
    if isinstance(row.get("prompt"), list):
        return {whole}
    cells = _cells(data, row, source.prompt or data.prompt, "", "")
    text = "\n".join(cells[name] for name in sorted(cells))
    bare = {question_key(text, prompt.pictures)} if cells or prompt.pictures else set()
    return {whole} | bare | _turns(prompt)


def _turns(prompt: Prompt) -> set[str]:
    """What each of a user's messages is known by on its own: one that is answered is seen in training.

    It is about its own pictures, or where it has none, about all that were shown before it.
    """
    if isinstance(prompt.content, str):
        return set()
    keys, shown = set(), []
    for message in prompt.content:
        own = list(pictures_in([message]))
        shown += own
        if message["role"] == "user":
            keys.add(question_key(Prompt("", [message], None).question, own or shown))
    return keys


def question_key(question: str, pictures: Iterable[Picture] = ()) -> str:
    """What a question is known by: its words, blanks and capitals aside, and its pictures' bytes, if any.

    Where among the words a picture stands makes no difference.
    """
    digests = [picture.digest for picture in pictures]
    words = question.replace(MARK, " ") if digests else question
    return "\n".join([" ".join(words.split()).casefold(), *digests])


def _same_columns(prompts: list[Prompt]) -> list[Prompt]:
    """A reward gets None for a column that a row lacks, whatever rows it is called with."""
    columns = dict.fromkeys(name for prompt in prompts for name in prompt.columns)
    return [dataclasses.replace(prompt, columns=columns | prompt.columns) for prompt in prompts]


def _prompt(data: Data, row: Row, id: str, where: str, source: Source) -> Prompt:
    pictures: list[Picture] = []
    if isinstance(row.get("prompt"), list):
        content, images = _ready(data, row, "prompt", where, source)
        hidden = {"prompt", *images}
    else:
        template, images = source.prompt or data.prompt, _columns(data, source)
        content = fill(template, _cells(data, row, template, where, "data.prompt"))
        pictures = pictures_of(row, images, where, source)
        hidden = {*images}
        if data.chat:
            system: list[Message] = [{"role": "system", "content": data.system}] if data.system else []
            content = [*system, {"role": "user", "content": content}]
            content = image_parts.in_messages(content, pictures, where) if images else content
        elif images:
            content = image_parts.in_text(content, pictures, where)
    answer = None if data.answer is None else as_text(column_of(row, data.answer, where, "data.answer"))
    columns = {k: v for k, v in row.items() if k not in {"answer", *RESERVED, *hidden}}
    return Prompt(id, content, answer, columns, () if data.chat else tuple(pictures))


def _ready(
    data: Data, row: Row, key: str, where: str, source: Source
) -> tuple[list[Message], tuple[str, ...]]:
    """The chat messages that a row holds, and the columns that their pictures came from."""
    messages = image_parts.read_messages(row[key], where, folder_of(source))
    images = _columns(data, source)
    if image_parts.places(messages):  # where nobody says otherwise, TRL's names
        images = images or tuple(name for name in ("images", "image") if name in row)
    elif image_parts.has_pictures(messages):
        images = ()
    if images or image_parts.has_pictures(messages):
        pictures = pictures_of(row, images, where, source)
        messages = image_parts.in_messages(messages, pictures, where)
    return messages, images


def _columns(data: Data, source: Source) -> tuple[str, ...]:
    """The columns of a source's pictures."""
    return data.images if source.images is None else source.images


def pictures_of(
    row: Row, images: Sequence[str], where: str, source: Source, key: str = "data.images"
) -> list[Picture]:
    """The pictures of a row's columns, in order. PosttrainError names the row and what is wrong with it."""
    cells = [(name, column_of(row, name, where, key)) for name in images]
    folder = folder_of(source)
    return [
        picture
        for name, cell in cells
        for picture in image_parts.cells_as_pictures(cell, f"{where}, column {name!r}", folder)
    ]


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

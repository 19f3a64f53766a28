"""The records of a task that is evaluated: answers as they arrive, and what is written whole.

answers.jsonl holds a line a sample, in the order of arrival, and is only ever added to. A kill at any moment
costs at most the line that was being written: it is cut off when the file is opened again, and its sample is
drawn again.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from posttrain.files import replace_text
from posttrain.harness.answer import Answer
from posttrain.types import PosttrainError

log = logging.getLogger(__name__)

Key = tuple[str, int]  # (question's id, sample)


class Answers:
    """answers.jsonl, open to be added to; a context manager. Iterating gives the answers that are there.

    A line that is no answer is passed over with a warning, so its sample counts as missing. Of two lines for
    one sample the first counts, with a warning, except that an answer takes the place of an error.
    """

    def __init__(self, path: Path):
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file: BinaryIO = path.open("a+b", buffering=0)
        self._size = _cut(self._file, path)
        self._answers = {answer.key: answer for answer in read_answers(path)}

    def __enter__(self) -> Answers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()

    def __iter__(self) -> Iterator[Answer]:
        return iter(self._answers.values())

    def __len__(self) -> int:
        return len(self._answers)

    def add(self, answer: Answer) -> None:
        """Write an answer down; it is the system's when this returns, and a kill of this process keeps it.

        Raises:
            ValueError: the sample has an answer already.
            OSError: the disk is full; no part of the line stays.
        """
        old = self._answers.get(answer.key)
        if old is not None and old.finish != "error":
            raise ValueError(f"sample {answer.sample} of {answer.id!r} is there already")
        left = line = _line(asdict(answer))
        try:
            while left:
                left = left[self._file.write(left) :]
        except OSError:
            self._file.truncate(self._size)
            raise
        self._size += len(line)
        self._answers[answer.key] = answer

    def missing(self, ids: Sequence[str], samples: int, *, failed: bool = True) -> list[Key]:
        """Which (id, sample) are still to be drawn, in the order of the ids.

        Args:
            failed: those whose request failed count as missing.

        Raises:
            PosttrainError: two questions have one id.
        """
        if len(set(ids)) < len(ids):
            twice = next(id for i, id in enumerate(ids) if id in ids[:i])
            raise PosttrainError(
                f"two questions have the id {twice!r}: their answers could not be told apart"
            )
        there = {key for key, answer in self._answers.items() if not (failed and answer.finish == "error")}
        return [(id, k) for id in ids for k in range(samples) if (id, k) not in there]


def read_answers(path: Path) -> list[Answer]:
    """The answers of a file, which stays as it is; empty where there is none. As `Answers` reads them."""
    answers: dict[Key, Answer] = {}
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return []
    with file:
        for number, line in enumerate(file, 1):
            answer = _answer(line)
            if answer is None:
                torn = "" if line.endswith(b"\n") else " (a kill cut it off)"
                log.warning("%s, line %d is no answer%s: it is left out", path, number, torn)
                continue
            old = answers.get(answer.key)
            if old is None or old.finish == "error":
                answers[answer.key] = answer
            elif answer.finish != "error":
                of = f"sample {answer.sample} of {answer.id!r}"
                log.warning("%s, line %d repeats %s: the first counts", path, number, of)
    return list(answers.values())


def write_whole(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """Write a .jsonl file (rows, verdicts) beside its place and rename it there."""
    replace_text(path, b"".join(_line(record) for record in records).decode())


def read_whole(path: Path) -> list[dict[str, Any]]:
    """
    Raises:
        PosttrainError: the file is missing, or a line is no JSON object.
    """
    records = []
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                record = _parsed(line)
                if not isinstance(record, dict):
                    raise PosttrainError(f"{path}, line {number} is damaged: make the file again")
                records.append(record)
    except FileNotFoundError:
        raise PosttrainError(f"{path} is missing") from None
    return records


def _cut(file: BinaryIO, path: Path) -> int:
    """End a file of lines with a whole line; -> its size. What follows the last line break was being written:
    it is cut off, unless it lacks nothing but the line break."""
    size, last = 0, b""
    with path.open("rb") as lines:  # `file` has no buffer, and would be read byte by byte
        for last in lines:
            size += len(last)
    if not last or last.endswith(b"\n"):
        return size
    if _answer(last) is not None:
        return size + file.write(b"\n")  # the file is open to be added to: this goes to its end
    log.warning("%s ends in half a line, which a kill cut off: that sample is drawn again", path)
    file.truncate(size - len(last))
    return size - len(last)


def _line(record: dict[str, Any]) -> bytes:
    """A record as one line. Half a character (a lone surrogate, which has no UTF-8) is written as an escape,
    so that what is read back is what was written."""
    try:
        return json.dumps(record, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:
        return json.dumps(record).encode() + b"\n"


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):  # half a line, bytes that are no UTF-8, depth that no writer made
        return None


def _answer(line: bytes) -> Answer | None:
    match _parsed(line):
        case {
            "id": str(id),
            "sample": int(sample),
            "completion": str(completion),
            "tokens": int() | None as tokens,
            "finish": "stop" | "length" | "error" as finish,
            "error": str() | None as error,
        } if sample >= 0 and not isinstance(sample, bool):
            return Answer(id, sample, completion, tokens, finish, error)
    return None

"""Shards: whole, or not taken for whole; written beside their place."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from posttrain import shards
from posttrain.types import PosttrainError

END = {"first": 2, "prompts": 2, "shards": 1}
TWO = [{"index": 2, "text": "да\u2028\r\n"}, {"index": 3, "text": ""}]


def jsonl(*records: object) -> bytes:
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = shards.path_of(tmp_path, 123456)
    shards.write(path, [*TWO, END])
    assert shards.read(path) == (TWO, END)
    assert [file.name for file in tmp_path.iterdir()] == ["123456.jsonl"]


@pytest.mark.parametrize(
    "damaged",
    [
        b"",
        b"\n\n",
        b"\xff\xfe",
        jsonl(*TWO, END)[:-3],
        jsonl(*TWO),
        jsonl(END),
        jsonl(TWO[1], END),
        jsonl(*reversed(TWO), END),
        jsonl(*TWO, 5, END),
        jsonl(*TWO, [END]),
        jsonl(*TWO, {"first": 2}),
        jsonl(*TWO, END | {"first": None}),
        b"[" * 100_000,
    ],
)
def test_what_is_damaged_is_removed(damaged: bytes, tmp_path: Path) -> None:
    path = shards.path_of(tmp_path, 0)
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match="^damaged"):
        shards.read(path)
    with pytest.raises(PosttrainError, match="00000.jsonl is damaged"):
        next(shards.lines_of(tmp_path))
    assert not shards.is_there(path, END)
    assert not path.exists()
    assert not shards.is_there(path, END)  # and one that is missing is no trouble


def test_writing_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    path = shards.path_of(tmp_path, 0)
    shards.write(path, [*TWO, END])

    def records() -> Iterator[dict[str, int]]:
        yield {"index": 2}
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        shards.write(path, records())
    assert shards.is_there(path, END)

"""Many prompts in files of a few each, so that a kill loses the file that was being written and no other.

A shard is a .jsonl file: a line a prompt, with its place among all prompts as "index". The last line says
what it is a shard of: "first" (index), "prompts" (how many), "shards" (of all), and what the writer adds.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from posttrain.types import PosttrainError

Line = dict[str, Any]

log = logging.getLogger(__name__)


def path_of(folder: Path, number: int) -> Path:
    return folder / f"{number:05d}.jsonl"


def write(path: Path, records: Iterable[Line]) -> None:
    """Write beside the place, under a name that a killed try left too, and rename."""
    aside = path.with_name(f".{path.name}.aside")
    with aside.open("wb") as file:
        for record in records:
            text = json.dumps(_finite(record), ensure_ascii=False, default=str)
            file.write(text.encode("utf-8", "replace") + b"\n")
    aside.replace(path)


def _finite(value: Any) -> Any:
    """NaN and infinity, which a Parquet column may hold and JSON does not have, as null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _finite(inner) for key, inner in value.items()}
    return [_finite(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def read(path: Path) -> tuple[list[Line], Line]:
    """A shard's prompts and its last line. ValueError: it is damaged."""
    try:
        *lines, end = (json.loads(line) for line in path.read_bytes().splitlines())
        if [line["index"] for line in lines] == list(range(end["first"], end["first"] + end["prompts"])):
            return lines, end
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"damaged ({type(error).__name__}: {error})") from None
    raise ValueError("damaged (lines are missing)")


def is_there(path: Path, end: Line) -> bool:
    """Whether the shard is there and whole; one that is damaged, or of other settings, is removed."""
    try:
        trouble = None if read(path)[1] == end else "of other settings"
    except FileNotFoundError:
        return False
    except ValueError as error:
        trouble = str(error)
    if trouble:
        log.warning("%s is %s: it is drawn again", path, trouble)
        path.unlink()
    return not trouble


def lines_of(folder: Path) -> Iterator[Line]:
    """Every prompt's line, in order; one shard in memory at a time."""
    number, shards = 0, 1
    while number < shards:
        path = path_of(folder, number)
        try:
            lines, end = read(path)
        except FileNotFoundError:
            raise PosttrainError(f"{path} is missing: go on drawing with --resume") from None
        except ValueError as error:
            raise PosttrainError(f"{path} is {error}: draw it again with --resume") from None
        number, shards = number + 1, end["shards"]
        yield from lines

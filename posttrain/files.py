"""Writing files so that a kill at any moment loses nothing that was there."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from posttrain.types import PosttrainError


def is_there(folder: Path) -> None:
    """Raise PosttrainError where there is no such folder of a run."""
    if not folder.is_dir():
        raise PosttrainError(f"no folder {folder}; name the folder of a run, such as runs/demo")


@contextmanager
def written_aside(folder: Path) -> Iterator[Path]:
    """Give a temporary folder beside `folder` to write into; it takes that name when the block ends well.

    What `folder` held before is moved away first and deleted last: a kill leaves the new one whole, or the
    old one under its own name or with `.old` behind it.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    aside.chmod(0o755)  # mkdtemp's 0700 would stay with the finished folder
    old = folder.with_name(folder.name + ".old")
    try:
        yield aside
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            folder.rename(old)
        aside.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def replace_text(path: Path, text: str) -> None:
    """Write a text file beside its place and rename it there."""
    replace_bytes(path, text.encode("utf-8"))


def replace_bytes(path: Path, data: bytes) -> None:
    """Write a file beside its place and rename it there."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_bytes(data)
    aside.replace(path)


def sweep(folder: Path) -> None:
    """Remove what a kill left half-written in a folder that no other process writes to: `written_aside`'s
    folders, and the files beside their place."""
    for left in folder.glob(".*"):
        if left.is_dir() and re.fullmatch(r"\..+-[a-z0-9_]{8}", left.name):
            shutil.rmtree(left, ignore_errors=True)
        elif left.is_file() and re.fullmatch(r"\..+\.\d+", left.name):
            left.unlink(missing_ok=True)


def append(path: Path, records: Sequence[dict[str, Any]]) -> None:
    """Add records to a .jsonl file, whole lines in one write; first end a line that a kill cut off."""
    lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    with path.open("a+b") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                lines = "\n" + lines
        file.write(lines.encode("utf-8", "replace"))

"""What the folder of an interrupted run holds, and whether the run can go on as if nothing had happened.

What its numbers hang on is compared with what it was started with: the recipe, the rows, the files of a
user's own rewards. Records that were written after the checkpoint are cut off; they are made again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from posttrain import content
from posttrain.files import replace_text
from posttrain.recipe import Recipe, load_recipe
from posttrain.rewards import Spec, locate
from posttrain.types import Picture, PosttrainError, Prompt

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

log = logging.getLogger(__name__)

RECORDS = ("metrics.jsonl", "samples.jsonl")
Row = dict[str, Any]


def finished(recipe: Recipe) -> bool:
    """Whether the run of this very recipe has been made to its end."""
    folder = Path(recipe.output)
    if "after" not in (result_of(folder) or {}) or not (folder / "recipe.yaml").is_file():
        return False
    return load_recipe(str(folder / "recipe.yaml")) == recipe


def result_of(folder: Path) -> dict[str, Any] | None:
    try:
        return json.loads((folder / "result.json").read_text())
    except FileNotFoundError:
        return None


def before(folder: Path, recipe: Recipe, resume: bool) -> dict[str, Any] | None:
    """The result so far of the run in `folder`, None where there is none.

    Raises:
        PosttrainError: the folder holds a run and resume was not asked for, or one of another recipe.
    """
    if not (folder / "recipe.yaml").is_file():
        if folder.is_dir() and any(folder.iterdir()):
            raise PosttrainError(f"{folder} holds files that are no run; choose another with output=FOLDER")
        return None
    if not resume:
        raise PosttrainError(
            f"{folder} holds a run already: --resume goes on with it, output=OTHER starts beside it"
        )
    then = load_recipe(str(folder / "recipe.yaml"))
    if then != recipe:
        raise PosttrainError(
            f"{folder} holds a run of another recipe ({_difference(then, recipe)}); "
            "resume with what it was started with, or start beside it with output=OTHER"
        )
    return result_of(folder)


def _difference(before: Recipe, now: Recipe) -> str:
    """The first few keys in which two recipes differ, with both values."""
    a, b = _flat(before.model_dump()), _flat(now.model_dump())
    keys = [key for key in sorted(a.keys() | b.keys()) if a.get(key) != b.get(key)]
    told = ", ".join(f"{key}: {a.get(key)!r} then, {b.get(key)!r} now" for key in keys[:3])
    return told + (f", and {len(keys) - 3} more" if len(keys) > 3 else "")


def _flat(value: Any, at: str = "") -> dict[str, Any]:
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, (list, tuple))
        else None
    )
    if items is None:
        return {at: value}
    return {k: v for key, inner in items for k, v in _flat(inner, f"{at}.{key}" if at else str(key)).items()}


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keep other processes from running in `folder`; the system lets go of it however this one ends.

    Raises:
        PosttrainError: another holds it.
    """
    if fcntl is None:
        yield
        return
    place = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(place, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(place)
        raise PosttrainError(
            f"another process is running in {folder}: wait for it, or end it and use --resume"
        ) from None
    except OSError:
        pass  # a file system without locks
    try:
        yield
    finally:
        os.close(place)


def with_inputs(
    folder: str | Path,
    past: dict[str, Any] | None,
    train: Sequence[Prompt] | Sequence[Row],
    heldout: Sequence[Prompt],
    rewards: Sequence[Spec],
) -> dict[str, Any]:
    """The result so far, `past`, with what the run reads; a new run's holds that alone.

    Raises:
        PosttrainError: the run read something else when it was begun.
    """
    inputs = _fingerprint(train, heldout, rewards)
    if past is None:
        return {"inputs": inputs}
    _refuse_changes(folder, past, inputs)
    return past


def _fingerprint(
    train: Sequence[Prompt] | Sequence[Row], heldout: Sequence[Prompt], rewards: Sequence[Spec]
) -> dict[str, str]:
    """What a run reads beside its recipe and its model, with a short hash each: rows, own rewards' files."""
    found = {f"data.{side}": _rows(rows) for side, rows in (("train", train), ("heldout", heldout))}
    for place, reward in enumerate(rewards):
        source = locate(reward.use, reward.args)
        if source.kind == "file" and not Path(source.place).is_relative_to(content.root()):
            digest = hashlib.sha256(Path(source.place).read_bytes()).hexdigest()
            found[f"rewards.{place} ({reward.use})"] = digest[:12]
    return found


def _rows(rows: Sequence[Prompt] | Sequence[Row]) -> str:
    digest = hashlib.sha256()
    for row in rows:
        told = row
        if isinstance(row, Prompt):
            told = [row.id, row.content, row.answer, row.columns, *row.beside]
        text = json.dumps(told, ensure_ascii=True, sort_keys=True, default=_told)
        digest.update(text.encode() + b"\n")
    return f"{len(rows)} rows, {digest.hexdigest()[:12]}"


def _told(value: Any) -> str:
    return value.digest if isinstance(value, Picture) else str(value)


def _refuse_changes(folder: str | Path, past: dict[str, Any], inputs: dict[str, str]) -> None:
    then = past.get("inputs", {})
    changed = [
        f"{key}: {then.get(key, 'not there')} then, {inputs.get(key, 'not there')} now"
        for key in sorted(then.keys() | inputs.keys())
        if then.get(key) != inputs.get(key)
    ]
    if changed:
        raise PosttrainError(
            f"{folder} was started with something else ({'; '.join(changed)}); "
            "put it back to resume, or start beside it with output=OTHER"
        )


def lengths(folder: Path) -> dict[str, int]:
    """Bytes in each file of records now; `rewind` takes them back to that."""
    return {name: (folder / name).stat().st_size for name in RECORDS if (folder / name).exists()}


def rewind(folder: Path, records: dict[str, int]) -> None:
    """Cut off what was written to the files of records after `lengths` said `records`."""
    for name, there in lengths(folder).items():
        wanted = records.get(name, 0)
        if there > wanted:
            os.truncate(folder / name, wanted)
        elif there < wanted:
            log.warning("%s has lost records that were there when the run was saved", folder / name)


def forget_updates(folder: Path, records: dict[str, int], step: int) -> None:
    """Keep what `lengths` said `records` for, and of what was written since, the updates up to `step`."""
    metrics = folder / "metrics.jsonl"
    written = metrics.read_bytes() if metrics.exists() else b""
    known = records.get("metrics.jsonl", 0)
    rewind(folder, records)
    made = [line for line in written[known:].splitlines(True) if line.endswith(b"\n")]
    kept = [line for line in made if "heldout" not in (one := json.loads(line)) and one["step"] <= step]
    if kept:
        replace_text(metrics, (written[:known] + b"".join(kept)).decode("utf-8"))

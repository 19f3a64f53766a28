"""Rows from where a recipe says: made by reasoning-gym, drawn, read from files or folders, from the Hub."""

from __future__ import annotations

import dataclasses
import itertools
import json
import random
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from posttrain import scenes
from posttrain.recipe_data import FILES, FOLDER, GENERATOR, HUB, SCENES, Source
from posttrain.types import PosttrainError
from posttrain.words import did_you_mean

Row = dict[str, Any]

METADATA = "metadata.jsonl"  # of a folder of images: a row an image, its file under `file_name`


def read_rows(source: Source, where: str) -> list[Row]:
    """The rows of a source; `where` is how messages name it. PosttrainError where it holds none."""
    rows = list(itertools.islice(_rows(source, where), source.size))
    if not rows:
        raise PosttrainError(f"{where}: {source.source} holds no rows")
    return rows


def folder_of(source: Source) -> Path | None:
    """Where relative paths in a source's rows begin; None where its rows name no files."""
    return Path(source.source).expanduser().parent if source.source.endswith(FILES) else None


def _rows(source: Source, where: str) -> Iterable[Row]:
    if source.source.startswith(GENERATOR):
        return _generated(source, where)
    if source.source.startswith(SCENES):
        return _drawn(source, where)
    if source.source.startswith(HUB):
        return _hub(source, where)
    if source.source.startswith(FOLDER):
        return _folder(Path(source.source.removeprefix(FOLDER)).expanduser(), where)
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


def _drawn(source: Source, where: str) -> Iterator[Row]:
    name = source.source.removeprefix(SCENES)
    assert source.size is not None and source.seed is not None, "the recipe's reader asks for both"
    try:
        for index in range(source.size):
            yield scenes.make(name, index, source.seed, source.args)
    except PosttrainError as error:
        raise PosttrainError(f"{where}: {error}") from None


def _folder(folder: Path, where: str) -> Iterator[Row]:
    """The layout of datasets' imagefolder: images, and metadata.jsonl with a row for each."""
    path = folder / METADATA
    if not path.is_file():
        raise PosttrainError(
            f"{where}.source: no file {path}; a folder of images has one, with a row "
            '{"file_name": "0001.png", "question": …, "answer": …} an image'
        )
    for number, row in enumerate(jsonl(path, where)):
        name = row.pop("file_name", None)
        if not isinstance(name, str) or "image" in row:
            wrong = "has a column 'image', which file_name gives" if name else "has no file_name"
            raise PosttrainError(f"{where}: {path}, row {number}: {wrong}")
        yield {"image": str(folder / name), **row}


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
    encoded = datasets.Image(
        decode=False
    )  # bytes as they are in the data set, and decoded when they are used
    for column, feature in rows.features.items():
        if isinstance(feature, datasets.Image):
            rows = rows.cast_column(column, encoded)
        elif isinstance(feature, datasets.List) and isinstance(feature.feature, datasets.Image):
            rows = rows.cast_column(column, datasets.List(encoded))
    for row in rows:
        yield dict(row)

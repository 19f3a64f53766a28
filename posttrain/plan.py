"""Which stages of a recipe have to run: each one's folder is named by all that its output depends on.

A stage's folder is OUTPUT/NAME-ADDRESS. The address is a hash of its inputs: its settings, the addresses of
the stages it takes from, the content of the local files it names, and posttrain's version. So a change runs
again exactly what it reaches, and taking it back finds the earlier results. No torch here.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from posttrain import __version__
from posttrain.files import replace_text
from posttrain.recipe import Stage
from posttrain.recipe_data import FILES, FOLDER
from posttrain.stages import Staged, kind_of, references, sources
from posttrain.types import PosttrainError
from posttrain.words import did_you_mean

MODEL, ROWS = "model", "rows.jsonl"  # what a stage gives, in its folder
# What changes no result: where it goes, who is told, how long things may take, what is kept on the way.
IRRELEVANT = (
    ("name",),
    ("output",),
    ("trackers",),
    ("reward_deadline",),
    ("reward_workers",),
    ("train", "keep"),
    ("train", "checkpoint_every"),
)
MISSING = (
    "missing"  # in place of the hash of a file that is not there; whoever reads the file says what to do
)
_FOLDER = re.compile(r"(.+)-([0-9a-f]{8})")

State = Literal["done", "begun", "new"]


@dataclass(frozen=True)
class Planned:
    """A stage and whether it has to run."""

    stage: Stage
    """With the stage's folder as its output."""
    folder: Path
    state: State
    """done: nothing to do; begun: go on in the folder; new: start with an empty one."""
    why: str
    """For people: what differs from the last time, or what is missing; "" where there is nothing to say."""
    inputs: dict[str, Any]
    """What the address is the hash of."""


def plan(staged: Staged, start: str | None = None, until: str | None = None) -> list[Planned]:
    """What to do for each stage, in their order; reads files and writes none.

    Args:
        start: `--from`: this stage and all after it run again, whatever is there.
        until: `--until`: the last stage to plan.

    Raises:
        PosttrainError: one of the two names no stage, or they are in the wrong order.
    """
    names = [stage.name for stage in staged.stages]
    first = len(names) if start is None else _place(names, start, "--from")
    last = len(names) - 1 if until is None else _place(names, until, "--until")
    if start is not None and first > last:
        raise PosttrainError(f"--from {start} comes after --until {until}: nothing would run")
    output = Path(staged.output)
    addresses: dict[str, str] = {}
    content = functools.cache(_content)  # a base model that several stages name is read once a plan
    planned = []
    for i, stage in enumerate(staged.stages[: last + 1]):
        inputs = inputs_of(stage, addresses, content)
        addresses[stage.name] = address(inputs)
        folder = output / f"{stage.name}-{addresses[stage.name]}"
        state, why = _state(folder)
        if state == "done" and i >= first:
            state, why = "new", f"asked for by --from {start}"
        elif state == "new" and not why:
            why = _changes(_last_finished(output, stage.name), inputs)
        planned.append(Planned(stage.model_copy(update={"output": str(folder)}), folder, state, why, inputs))
    return planned


def resolved(stage: Stage, folders: Mapping[str, Path]) -> Stage:
    """The stage with the folders of earlier stages in the places of their names."""
    data = stage.model_dump()
    for loc, what, name in references(stage):
        *sections, key = loc
        inner: Any = data
        for section in sections:
            inner = inner[section]
        inner[key] = str(folders[name] / {"model": MODEL, "rows": ROWS}[what])
    return type(stage).model_validate(data)


def begin(planned: Planned) -> None:
    """Make a stage's folder ready: a new one empty, with inputs.json; one begun as it was left.

    An earlier result in the folder of a stage that runs again is moved to FOLDER.old until `finish`.
    """
    folder = planned.folder
    if planned.state == "new" and folder.exists():
        shutil.rmtree(_old(folder), ignore_errors=True)
        folder.rename(_old(folder))
    folder.mkdir(parents=True, exist_ok=True)
    replace_text(folder / "inputs.json", json.dumps(planned.inputs, ensure_ascii=False, indent=1) + "\n")


def finish(planned: Planned, outputs: Iterable[str | Path]) -> None:
    """Write done.json: from now on the stage is done, as long as its outputs are there with their sizes.

    Args:
        outputs: files, or folders for all files in them, relative to the stage's folder.

    Raises:
        PosttrainError: one of them is not there, or is an empty folder.
    """
    sizes: dict[str, int] = {}
    for name in outputs:
        files = _files(planned.folder / name)
        if not files:
            raise PosttrainError(f"stage {planned.stage.name} ended without its {name} in {planned.folder}")
        sizes |= {path.relative_to(planned.folder).as_posix(): path.stat().st_size for path in files}
    replace_text(planned.folder / "done.json", json.dumps({"outputs": sizes}, indent=1) + "\n")
    shutil.rmtree(_old(planned.folder), ignore_errors=True)


def unused(folder: Path, planned: Sequence[Planned]) -> list[Path]:
    """The folders of stages in a run's folder that the recipe, as it is now, has no stage for."""
    used = {one.folder.name for one in planned}
    return [
        path
        for path in sorted(folder.iterdir())
        if path.is_dir() and path.name not in used and _FOLDER.fullmatch(path.name)
    ]


def inputs_of(stage: Stage, addresses: Mapping[str, str], content: Callable[[Path], str]) -> dict[str, Any]:
    """All that a stage's output depends on, as plain JSON.

    Args:
        addresses: of the earlier stages. content: the hash of a local file or folder.
    """
    settings = stage.model_dump()
    for *sections, key in IRRELEVANT:
        inner = settings
        for section in sections:
            inner = inner.get(section, {})
        inner.pop(key, None)
    inputs = {
        "kind": kind_of(stage),
        "settings": settings,
        "stages": {name: addresses[name] for _, _, name in references(stage)},
        "files": {name: content(Path(name).expanduser()) for name in _local(stage)},
        "posttrain": __version__,
    }
    return json.loads(json.dumps(inputs))  # tuples are lists from here on, as they are in inputs.json


def address(inputs: dict[str, Any]) -> str:
    """Eight hexadecimal digits for a stage's inputs, whatever the order of their keys."""
    text = json.dumps(inputs, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]


def _local(stage: Stage) -> list[str]:
    """The local files and folders that a stage names: rows, rewards, a model's folder."""
    names = []
    for loc, text in sources(stage):
        if loc[-1] == "source":
            names += [text.removeprefix(FOLDER)] if text.endswith(FILES) or text.startswith(FOLDER) else []
        else:
            names += [text] if os.path.isdir(text) else []  # Path's raises for a name too long to be one
    for reward in getattr(stage, "rewards", ()):
        file = reward.use if reward.use.endswith(".py") else reward.use.rpartition(":")[0]
        names += [file] if file.endswith(".py") else []
    return names


def _files(path: Path) -> list[Path]:
    """The file itself, or all files in a folder, in the order of their names."""
    if path.is_dir():
        return sorted(p for p in path.rglob("*") if p.is_file())
    return [path] if path.is_file() else []


def _content(path: Path) -> str:
    """A hash of a file, or of all files in a folder with their names."""
    files = _files(path)
    if not files:
        return MISSING
    whole = hashlib.sha256()
    for file in files:
        try:
            with file.open("rb") as opened:
                digest = hashlib.file_digest(opened, "sha256").hexdigest()
        except OSError as error:
            raise PosttrainError(f"{file}: cannot be read: {error.strerror}") from None
        name = file.relative_to(path).as_posix()
        whole.update(f"{digest} {name}\n".encode("utf-8", "surrogateescape"))
    return whole.hexdigest()


def _place(names: Sequence[str], name: str, option: str) -> int:
    if name not in names:
        near = did_you_mean(name, names) or f"the stages are {', '.join(names)}"
        raise PosttrainError(f"{option} {name}: there is no such stage; {near}")
    return names.index(name)


def _state(folder: Path) -> tuple[State, str]:
    """What a stage's own folder tells of it."""
    if not folder.is_dir():
        return "new", ""
    if not (folder / "done.json").exists():
        return "begun", "begun and not finished"
    done = _json(folder / "done.json")
    outputs = done.get("outputs") if done else None
    if not isinstance(outputs, dict):
        return "new", "its done.json cannot be read"
    for name, size in outputs.items():
        path = folder / name
        if not path.is_file():
            return "new", f"its {name} is missing"
        if path.stat().st_size != size:
            return "new", f"its {name} has {path.stat().st_size} bytes, not the {size} that were written"
    return "done", ""


def _last_finished(output: Path, name: str) -> dict[str, Any] | None:
    """The inputs of the stage of that name that was finished last, under whatever address."""
    folders = list(output.iterdir()) if output.is_dir() else []
    matches = [(folder / "done.json", _FOLDER.fullmatch(folder.name)) for folder in folders]
    done = [path for path, match in matches if match and match[1] == name and path.is_file()]
    for path in sorted(done, key=lambda path: path.stat().st_mtime_ns, reverse=True):
        if inputs := _json(path.parent / "inputs.json"):
            return inputs
    return None


def _changes(then: dict[str, Any] | None, now: dict[str, Any]) -> str:
    """The first few differences of two stages' inputs, for people."""
    if then is None:
        return "never ran"
    a, b = _flat(then.get("settings")), _flat(now["settings"])
    told = [
        f"{key}: {_shown(a, key)} then, {_shown(b, key)} now"
        for key in a | b
        if (key in a, a.get(key)) != (key in b, b.get(key))
    ]
    before = then.get("stages") or {}
    told += [
        f"follows {name}, which changed" for name, at in now["stages"].items() if before.get(name, at) != at
    ]
    before = then.get("files") or {}
    told += [
        f"{name} {'is missing' if content == MISSING else 'changed'}"
        for name, content in now["files"].items()
        if before.get(name, content) != content
    ]
    told += [
        f"{key}: {then.get(key)} then, {now[key]} now"
        for key in ("kind", "posttrain")
        if then.get(key) != now[key]
    ]
    return ", ".join(told[:3]) + (f", and {len(told) - 3} more" if len(told) > 3 else "")


def _shown(flat: dict[str, Any], key: str) -> str:
    text = json.dumps(flat[key], ensure_ascii=False) if key in flat else "not there"
    return text if len(text) <= 60 else f"{text[:40]}… ({len(text)} characters)"


def _flat(value: Any, at: str = "") -> dict[str, Any]:
    """{"train": {"steps": 3}} -> {"train.steps": 3}; an empty mapping or list stays a value."""
    if isinstance(value, dict) and value:
        items = value.items()
    elif isinstance(value, list) and value:
        items = enumerate(value)
    else:
        return {at: value}
    return {k: v for key, inner in items for k, v in _flat(inner, f"{at}.{key}" if at else str(key)).items()}


def _json(path: Path) -> dict[str, Any] | None:
    """A JSON file's mapping; None where there is none to read."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def _old(folder: Path) -> Path:
    return folder.with_name(folder.name + ".old")

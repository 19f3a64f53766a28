"""Finds what ships beside the library: recipes/, reward/ and eval/. They are content, never imported by name.

In a checkout and in an editable install they lie in the folder above `posttrain/`; a wheel carries them in
`posttrain/_content/`.
"""

from __future__ import annotations

import ast
import difflib
from pathlib import Path
from typing import Literal, get_args

from posttrain.types import PosttrainError

Kind = Literal["recipes", "reward", "eval"]

_NOUN: dict[Kind, str] = {"recipes": "recipe", "reward": "reward", "eval": "task"}
_SUFFIX: dict[Kind, str] = {"recipes": ".yaml", "reward": ".py", "eval": ".yaml"}


def root() -> Path:
    """The folder that holds recipes/, reward/ and eval/."""
    package = Path(__file__).resolve().parent
    packed = package / "_content"
    return packed if packed.is_dir() else package.parent


def find(kind: Kind, name: str) -> Path | None:
    """The file of a shipped recipe, reward or task, or None if nothing of that name ships.

    The name is as `posttrain ls` prints it; the folder before it and the suffix after it are accepted too.

    Example: find("recipes", "r1_zero/smollm2"), find("recipes", "recipes/r1_zero/smollm2.yaml")
    """
    name = name.removeprefix(f"{kind}/").removesuffix(_SUFFIX[kind])
    return next((path for shipped, path, _ in listing(kind) if shipped == name), None)


def locate(kind: Kind, name: str) -> Path:
    """The file that a user means: a path, or the name of what ships.

    Raises PosttrainError, with the nearest names, where there is none.
    """
    path, noun = Path(name), _NOUN[kind]
    if path.is_file():
        return path
    if shipped := find(kind, name):
        return shipped
    if name and path.is_dir():
        file = path / f"{noun}{_SUFFIX[kind]}"
        raise PosttrainError(f"{name} is a folder; a {noun} is a file such as {file}")
    names = [shipped for shipped, _, _ in listing(kind)]
    wanted = name.removeprefix(f"{kind}/").removesuffix(_SUFFIX[kind])
    near = difflib.get_close_matches(wanted, names, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}?" if near else f"what ships: {', '.join(names)}"
    raise PosttrainError(f"no {noun} {name!r}: neither a file nor a shipped {noun}; {hint}")


def listing(kind: Kind) -> list[tuple[str, Path, str]]:
    """Everything of a kind that ships, by name: (name, file, first line of its description)."""
    folder, suffix = root() / kind, _SUFFIX[kind]
    found = [p for p in folder.rglob(f"*{suffix}") if p.is_file() and not p.name.startswith(("_", "."))]
    named = [(p.relative_to(folder).as_posix().removesuffix(suffix), p) for p in found]
    return [(name, path, _summary(path)) for name, path in sorted(named)]


def split(name: str) -> tuple[Kind, str] | None:
    """Split `reward/accuracy` into ("reward", "accuracy"); None where it starts with no kind of content."""
    for kind in get_args(Kind):
        if name.startswith(f"{kind}/"):
            return kind, name.removeprefix(f"{kind}/")
    return None


def _summary(path: Path) -> str:
    """The first line of a module's docstring, or of a YAML file's opening comment."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        lines = (ast.get_docstring(ast.parse(text)) or "").splitlines()
        return lines[0].strip() if lines else ""
    first = text.lstrip().partition("\n")[0]
    return first.lstrip("# ").strip() if first.startswith("#") else ""

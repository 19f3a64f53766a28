"""Strict settings: a pydantic model read from a YAML file, with errors naming file, line and key. No torch.

Knows nothing of what the settings are for: recipes and evaluation tasks are read by it alike.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from posttrain.types import PosttrainError
from posttrain.words import did_you_mean


class Section(BaseModel):
    """One mapping of a settings file: unknown keys, wrong types, NaN and infinities are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Wrong(ValueError):
    """A value that does not fit the rest of its section; by the dotted `key` the message finds its line."""

    def __init__(self, key: str, text: str):
        super().__init__(text)
        self.key = key


S = TypeVar("S", bound=Section)
Loc = tuple[str | int, ...]


class _Loader(yaml.SafeLoader):
    """YAML 1.2's plain values: 2e-5 is a number, `no` and `on` are words, 010 and 1:30 are not numbers."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.MarkedYAMLError(
                problem="aliases (*name) are not read", problem_mark=self.peek_event().start_mark
            )
        return super().compose_node(parent, index)


class _Dumper(yaml.SafeDumper):
    """Quotes what either version of YAML would take for something else than text; writes no aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_TAG = "tag:yaml.org,2002:"
_FLOAT = re.compile(r"[-+]?(\d+\.\d*|\.\d+|\d+(?=[eE]))([eE][-+]?\d+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_PLAIN = ("null", "bool", "int", "float", "str")
_Loader.yaml_implicit_resolvers = {}
for _name, _pattern, _first in (
    ("null", re.compile(r"~|null|Null|NULL|"), ["~", "n", "N", ""]),
    ("bool", re.compile(r"true|True|TRUE|false|False|FALSE"), list("tTfF")),
    ("int", re.compile(r"[-+]?(0|[1-9]\d*)"), list("-+0123456789")),
    ("float", _FLOAT, list("-+.0123456789")),
):
    _whole = re.compile(f"(?:{_pattern.pattern})$", re.ASCII)
    _Loader.add_implicit_resolver(_TAG + _name, _whole, _first)
    _Dumper.add_implicit_resolver(_TAG + _name, _whole, _first)
_Dumper.add_representer(
    str, lambda dumper, text: dumper.represent_scalar(_TAG + "str", text, style="|" if "\n" in text else None)
)


@dataclass(frozen=True)
class Values:
    """What was read and not yet validated: plain values, and where each of them was said."""

    data: dict[str, Any]
    origins: dict[Loc, str]
    """Of every key and item: "recipe.yaml:7" or "override train.steps=5"."""
    shown: str
    """The file, as messages name it."""

    def origin(self, loc: Loc) -> str:
        """Where a key was said; for one that was not, where the nearest key around it was."""
        return next(
            (self.origins[loc[:n]] for n in range(len(loc), -1, -1) if loc[:n] in self.origins), self.shown
        )


KindAt = Callable[[Any, Loc], tuple[type[Section] | None, Loc]]
"""Of all values and a location in them: the class that holds there, and the location inside of it."""


def load(kind: type[S], path: Path, overrides: Sequence[str] = ()) -> S:
    """Read settings from a file, with `key.sub=value` overrides laid over them.

    Raises:
        PosttrainError: one line for each thing that is wrong, with file, line, key and the nearest right key.
    """
    return validate(kind, read(path, overrides, lambda _, loc: (kind, loc)))


def read(path: Path, overrides: Sequence[str], kind_at: KindAt) -> Values:
    """The values of a file with overrides laid over them, and where each was said; no key is judged yet.

    Args:
        kind_at: tells which class reads an override's key, because a key that takes text takes it unquoted.

    Raises:
        PosttrainError: no YAML mapping, or an override that fits nowhere.
    """
    here = Path.cwd()
    shown = str(path.relative_to(here) if path.is_relative_to(here) else path)
    data, lines = _parse(_read(path, shown), shown)
    if data is None:
        raise PosttrainError(f"{shown}: the file is empty")
    if not isinstance(data, dict):
        raise PosttrainError(f"{shown}: expected a mapping (key: value, a line each), not {_what(data)}")
    origins = {loc: f"{shown}:{line}" for loc, line in lines.items()}
    for override in overrides:
        _override(data, override, origins, kind_at)
    return Values(data, origins, shown)


def validate(kind: type[S], values: Values, under: Loc = ()) -> S:
    """Read values as a section; `under` is what messages put before their keys.

    Raises:
        PosttrainError: one line for each thing that is wrong, with file, line, key and the nearest right key.
    """
    try:
        return kind.model_validate(values.data)
    except ValidationError as error:
        wrong = [_explain(kind, item, values, under) for item in error.errors()]
        more = [f"… and {len(wrong) - 10} more"] if len(wrong) > 10 else []
        raise PosttrainError("\n".join(wrong[:10] + more)) from None


def dump(settings: Section) -> str:
    """The settings as YAML with every default written out; `load` reads them back as equal ones."""
    return to_yaml(settings.model_dump())


def to_yaml(data: dict[str, Any]) -> str:
    """Plain values as YAML that either version of YAML reads alike, keys in their order."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


def _read(path: Path, shown: str) -> str:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise PosttrainError(f"{shown}: cannot be read: {error.strerror}") from None
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise PosttrainError(f"{shown}:{line}: the file is not UTF-8; save it as UTF-8 text") from None


def _parse(text: str, shown: str) -> tuple[Any, dict[Loc, int]]:
    """YAML text as plain values, with the line of every key and item."""
    lines: dict[Loc, int] = {}
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        return (None if node is None else _value(loader, node, (), lines)), lines
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise PosttrainError(
            f"{shown}:{mark.line + 1 if mark else 1}: {error.problem or error.context}"
        ) from None
    except (yaml.YAMLError, ValueError) as error:  # a control character; a number of thousands of digits
        raise PosttrainError(f"{shown}: {str(error).splitlines()[0]}") from None
    except RecursionError:
        raise PosttrainError(f"{shown}: nested too deeply to read") from None


def _value(loader: _Loader, node: yaml.Node, loc: Loc, lines: dict[Loc, int]) -> Any:
    lines.setdefault(loc, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode) and node.tag == _TAG + "map":
        mapping: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key, at = _value(loader, key_node, (), {}), key_node.start_mark
            if not isinstance(key, str):
                raise yaml.MarkedYAMLError(problem=f"a key is a word, not {_what(key)}", problem_mark=at)
            here = (*loc, key)
            if key in mapping:
                raise yaml.MarkedYAMLError(
                    problem=f"{dotted(here)} is here twice, first in line {lines[here]}", problem_mark=at
                )
            lines[here] = at.line + 1
            mapping[key] = _value(loader, value_node, here, lines)
        return mapping
    if isinstance(node, yaml.SequenceNode) and node.tag == _TAG + "seq":
        return [_value(loader, item, (*loc, i), lines) for i, item in enumerate(node.value)]
    if isinstance(node, yaml.ScalarNode) and node.tag.removeprefix(_TAG) in _PLAIN:
        return loader.construct_object(node)
    raise yaml.MarkedYAMLError(problem=f"the tag {node.tag} is not read", problem_mark=node.start_mark)


def _override(data: Any, override: str, origins: dict[Loc, str], kind_at: KindAt) -> None:
    """Lay one `key.sub=value` over the values read from the file."""
    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise PosttrainError(
            f"override {override!r}: expected key=value, such as train.steps=5 or rewards.0.weight=2"
        )
    where = f"override {override}"
    whole, loc = data, ()
    for part, deeper in zip(parts, [*parts[1:], None], strict=True):
        step: Any = part
        if isinstance(data, list):
            step = _index(data, part, f"{where}: {dotted(loc)}")
        elif not isinstance(data, dict):
            raise PosttrainError(f"{where}: {dotted(loc)} is {_what(data)}, it has no {part!r} inside")
        loc = (*loc, step)
        if deeper is None:
            data[step] = _override_value(*kind_at(whole, loc), text, where)
            for old in [old for old in origins if old[: len(loc)] == loc]:
                del origins[old]  # the lines of what was replaced
        elif isinstance(data, dict) and data.get(step) is None:
            data[step] = {}
        data = data[step]
        origins.setdefault(loc, where)


def _index(items: list[Any], part: str, what: str) -> int:
    """Which item of a list an override means: by its number, or by what its key `name` says."""
    if part in map(str, range(len(items))):
        return int(part)
    names = [item.get("name") if isinstance(item, dict) else None for item in items]
    if part in names:
        return names.index(part)
    has = f"items 0 to {len(items) - 1}" if items else "no items"
    told = [name for name in names if isinstance(name, str)]
    has += f" ({', '.join(told)})" if told else ""
    raise PosttrainError(f"{what} has {has}, not {part!r}{did_you_mean(part, told, '; did you mean')}")


def _override_value(kind: type[Section] | None, loc: Loc, text: str, where: str) -> Any:
    """The value as YAML; for a key that takes text, the text as it is: braces and colons need no quotes."""
    section = section_at(kind, loc[:-1])
    field = section.model_fields.get(str(loc[-1])) if section else None
    takes_text = field is not None and _is_text(field.annotation)
    try:
        value, _ = _parse(text, where)
    except PosttrainError:
        if not takes_text:
            raise
        value = text
    return text if takes_text and value is not None and not isinstance(value, str) else value


def _is_text(annotation: Any) -> bool:
    """Whether an annotation is str, a bounded str, or either of them `| None`."""
    if get_origin(annotation) in (Union, UnionType):
        return any(map(_is_text, get_args(annotation)))
    return annotation is str or (hasattr(annotation, "__metadata__") and annotation.__origin__ is str)


def section_at(kind: type[Section] | None, loc: Loc) -> type[Section] | None:
    """The class of the section at a location, or None inside free-form args or at an unknown key."""
    section = kind
    for part in loc:
        if isinstance(part, int):
            continue  # an item of rewards: the list's section is already the item's class
        field = section.model_fields.get(part) if section else None
        inner = [field.annotation, *get_args(field.annotation)] if field else []
        section = next((t for t in inner if isinstance(t, type) and issubclass(t, Section)), None)
    return section


def _explain(kind: type[Section], error: Any, values: Values, under: Loc) -> str:
    """One line for one of pydantic's errors."""
    loc: Loc = error["loc"]
    cause = error.get("ctx", {}).get("error")
    if isinstance(cause, Wrong):
        loc = (*loc, *cause.key.split("."))
    if error["type"] == "extra_forbidden":
        text = f"no such key; {_nearest(kind, loc, under)}"
    elif error["type"] in ("missing", "too_short", "string_too_short"):
        text = "is missing" if error["type"] == "missing" else "is empty"
    elif cause is not None:
        text = str(cause)
    else:
        got = repr(error["input"])
        got = got if len(got) <= 60 else got[:57] + "…"
        said = "should be a mapping" if error["type"] == "model_type" else error["msg"]
        text = f"{said.replace('Input should', 'should')}, not {got}"
    return f"{values.origin(loc)}: {dotted((*under, *loc))}: {text}"


def _nearest(kind: type[Section], loc: Loc, under: Loc) -> str:
    """What an unknown key may have meant: a key spelt like it, or the same key of another section."""
    section, key = section_at(kind, loc[:-1]), str(loc[-1])
    names = list(section.model_fields) if section else []
    if near := difflib.get_close_matches(key, names, n=1):
        return f"did you mean {dotted((*under, *loc[:-1], near[0]))}?"
    elsewhere: list[Loc] = [
        (s, key) for s in kind.model_fields if (c := section_at(kind, (s,))) and key in c.model_fields
    ]
    if key in kind.model_fields:
        elsewhere.insert(0, (key,))
    if elsewhere:
        return f"did you mean {' or '.join(dotted((*under, *e)) for e in elsewhere)}?"
    return f"the keys here are {', '.join(names)}"


def dotted(loc: Loc) -> str:
    """A location as it is written in overrides and messages: ("rewards", 0, "use") -> "rewards.0.use"."""
    return ".".join(map(str, loc)) or "the file"


def _what(value: Any) -> str:
    names = {dict: "a mapping", list: "a list", str: "text", bool: "true or false", type(None): "empty"}
    return names.get(type(value), "a number")

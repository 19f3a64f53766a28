"""A recipe of stages: what each one does, and what it takes from earlier ones, in one YAML file.

    name: r1
    model: {name: smollm2-135m}            # shared: for every stage that reads it and says nothing itself
    stages:
      - {name: first, kind: grpo, ...}
      - {name: second, kind: grpo, model: {name: stage:first}, ...}

A stage takes from earlier ones only, so they run in their order and never in a circle. No torch here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from posttrain import settings
from posttrain.kinds import KINDS
from posttrain.recipe import STAGE, Model, Recipe, Source, Stage, locate
from posttrain.settings import Loc, Section, Values, dotted
from posttrain.types import PosttrainError
from posttrain.words import did_you_mean

_HEAD = ("name", "output", "stages")  # of the recipe itself; every other key at the top is shared
_NAME = re.compile(r"[^\W\d][\w-]{0,63}")  # no dot and no digit first: overrides address stages by name


@dataclass(frozen=True)
class Staged:
    """A recipe of stages, in their order."""

    name: str
    output: str
    """The folder that holds a folder for each stage."""
    stages: tuple[Stage, ...]

    @property
    def single(self) -> Stage | None:
        """The stage of a recipe without `stages:`; any other lies in a folder within the recipe's."""
        only = self.stages[0]
        return only if only.output == self.output else None


def load_stages(path_or_name: str, overrides: Sequence[str] = ()) -> Staged:
    """Read a recipe of stages, or a recipe without `stages:` as the one stage that it is.

    Args:
        overrides: `key.sub=value`; of one stage: `stages.NAME.key.sub=value`.

    Raises:
        PosttrainError: one line for each thing that is wrong, with file, line, key and the nearest right one.
    """
    values = settings.read(locate(path_or_name), overrides, _kind_at)
    if "stages" not in values.data:
        recipe = settings.validate(Recipe, values)
        _check_references([recipe], [values], [()])
        return Staged(recipe.name, recipe.output, (recipe,))
    said = {key: values.data[key] for key in ("name", "output") if key in values.data}
    head = settings.validate(Stage, replace(values, data=said))
    kinds = _kinds(values)
    _check_shared(values, kinds)
    stages, parts = [], []
    wrong: dict[str, str] = {}  # what is wrong in a shared value is said of the first stage that takes it
    for i, kind in enumerate(kinds):
        stage = values.data["stages"][i]
        part = _merged(values, i, kind)
        part.data["output"] = f"{head.output}/{stage['name']}"
        try:
            stages.append(settings.validate(kind, part, ("stages", stage["name"])))
            parts.append(part)
        except PosttrainError as error:
            for line in str(error).splitlines():
                wrong.setdefault(line.replace(f"stages.{stage['name']}.", ""), line)
    if wrong:
        raise PosttrainError("\n".join(wrong.values()))
    _check_references(stages, parts, [("stages", stage.name) for stage in stages])
    return Staged(head.name, head.output, tuple(stages))


def dump(staged: Staged) -> str:
    """The recipe as YAML with every default written out; `load_stages` reads it back to an equal one."""
    if staged.single is not None:
        return settings.dump(staged.single)
    stages = [
        {"name": stage.name, "kind": kind_of(stage)} | stage.model_dump(exclude={"name", "output"})
        for stage in staged.stages
    ]
    return settings.to_yaml({"name": staged.name, "output": staged.output, "stages": stages})


def kind_of(stage: Stage) -> str:
    """What the recipe calls a stage's class: "grpo"."""
    return next(name for name, kind in KINDS.items() if type(stage) is kind)


def references(stage: Stage) -> list[tuple[Loc, str, str]]:
    """What a stage takes from earlier ones: (where it says so, "model" or "rows", the earlier one's name).

    Example: [(("model", "name"), "model", "cold_start")]
    """
    return [
        (loc, "model" if isinstance(section, Model) else "rows", text.removeprefix(STAGE))
        for loc, section, text in _named(stage, ())
        if text.startswith(STAGE)
    ]


def sources(stage: Stage) -> list[tuple[Loc, str]]:
    """Every model and every source of rows that a stage names, with where it says so."""
    return [(loc, text) for loc, _, text in _named(stage, ())]


def _named(section: Section, loc: Loc) -> Iterator[tuple[Loc, Section, str]]:
    if isinstance(section, Model):
        yield (*loc, "name"), section, section.name
    elif isinstance(section, Source):
        yield (*loc, "source"), section, section.source
    for key in type(section).model_fields:
        value = getattr(section, key)
        for at, inner in enumerate(value) if isinstance(value, tuple) else [(None, value)]:
            if isinstance(inner, Section):
                yield from _named(inner, (*loc, key) if at is None else (*loc, key, at))


def _kind_at(data: Any, loc: Loc) -> tuple[type[Section] | None, Loc]:
    """The class that reads a location: a stage's own, or for a shared key the first kind that has it."""
    if "stages" not in data:
        return Recipe, loc
    if loc[0] == "stages":
        stage = data["stages"][loc[1]] if len(loc) > 2 else None
        name = stage.get("kind") if isinstance(stage, dict) else None
        return (KINDS.get(name) if isinstance(name, str) else None), loc[2:]
    return next((kind for kind in KINDS.values() if loc[0] in kind.model_fields), None), loc


def _kinds(values: Values) -> list[type[Stage]]:
    """Each stage's class; refuses what is no list of named stages of known kinds."""
    items = values.data["stages"]
    if not isinstance(items, list) or not items:
        raise PosttrainError(
            f"{values.origin(('stages',))}: stages: should be a list of stages: each after a dash, "
            "with name and kind"
        )
    wrong, kinds, first = [], [], {}
    for i, stage in enumerate(items):
        at: Loc = ("stages", i)
        if not isinstance(stage, dict):
            wrong.append(f"{values.origin(at)}: {dotted(at)}: should be a mapping with name and kind")
            continue
        name, kind = stage.get("name"), stage.get("kind")
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            text = (
                "is missing"
                if name is None
                else f"names a folder: letters, digits, _ and -, a letter first, unlike {name!r}"
            )
            wrong.append(f"{values.origin((*at, 'name'))}: {dotted((*at, 'name'))}: {text}")
        elif name in first:
            wrong.append(
                f"{values.origin((*at, 'name'))}: {dotted((*at, 'name'))}: {name!r} is "
                f"{dotted(first[name])} too; stages need names of their own"
            )
        else:
            first[name] = at
        if isinstance(kind, str) and kind in KINDS:
            kinds.append(KINDS[kind])
        else:
            text = "is missing" if kind is None else f"no kind {kind!r}"
            near = did_you_mean(kind, KINDS) or f"the kinds are {', '.join(KINDS)}"
            wrong.append(f"{values.origin((*at, 'kind'))}: {dotted((*at, 'kind'))}: {text}; {near}")
        if "output" in stage:
            wrong.append(
                f"{values.origin((*at, 'output'))}: {dotted((*at, 'output'))}: "
                "a stage's folder lies in the recipe's output; leave it out"
            )
    if wrong:
        raise PosttrainError("\n".join(wrong))
    return kinds


def _keys(kind: type[Section], key: str) -> set[str] | None:
    """The keys inside a class's section; None where the key takes a plain value."""
    section = settings.section_at(kind, (key,))
    return set(section.model_fields) if section else None


def _shared(values: Values) -> Iterator[tuple[str, ...]]:
    """The places of shared values: (key,) or, one level deep, (section, key)."""
    for key, value in values.data.items():
        if key not in _HEAD:
            yield from [(key, inner) for inner in value] if isinstance(value, dict) and value else [(key,)]


def _takes(kind: type[Stage], loc: tuple[str, ...]) -> bool:
    """Whether a class has a shared key; a plain value in a section's place is taken, and refused there."""
    if loc[0] not in kind.model_fields:
        return False
    inner = _keys(kind, loc[0])
    return len(loc) == 1 or inner is None or loc[1] in inner


def _says(stage: dict[str, Any], loc: tuple[str, ...]) -> bool:
    """Whether a stage itself says what is shared, or holds no section there for it to go into.

    A model that an earlier stage gives has what eyes it has: it gets no others for being silent about them.
    """
    if loc[0] not in stage:
        return False
    own = stage[loc[0]]
    if len(loc) == 1 or not isinstance(own, dict) or loc[1] in own:
        return True
    return loc == ("model", "vision") and str(own.get("name")).startswith(STAGE)


def _check_shared(values: Values, kinds: Sequence[type[Stage]]) -> None:
    """Refuse what is shared and no stage reads, and an override that every stage's own value hides."""
    stages, wrong = values.data["stages"], {}
    for loc in _shared(values):
        takers = [stage for stage, kind in zip(stages, kinds, strict=True) if _takes(kind, loc)]
        readers = [kind for kind in kinds if loc[0] in kind.model_fields]
        if takers:
            if not values.origin(loc).startswith("override ") or any(not _says(s, loc) for s in takers):
                continue
            names = " and ".join(stage["name"] for stage in takers)
            text = f"reaches no stage, since {names} say their own; write stages.NAME.{dotted(loc)}=…"
        elif readers:
            known = set().union(*(_keys(kind, loc[0]) or set() for kind in readers))
            text = f"no stage reads it{did_you_mean(loc[-1], sorted(known), '; did you mean')}"
        else:
            loc, known = loc[:1], {*_HEAD, *(key for kind in kinds for key in kind.model_fields)}
            text = f"no stage reads it{did_you_mean(loc[0], sorted(known), '; did you mean')}"
        wrong[loc] = f"{values.origin(loc)}: {dotted(loc)}: {text}"
    if wrong:
        raise PosttrainError("\n".join(wrong.values()))


def _merged(values: Values, i: int, kind: type[Stage]) -> Values:
    """A stage's own values laid over the shared ones, each with the line where it stands."""
    own = values.data["stages"][i]
    data = {k: dict(v) if isinstance(v, dict) else v for k, v in own.items() if k != "kind"}
    origins = _moved(values.origins, ("stages", i), ())
    for loc in _shared(values):
        if not _takes(kind, loc) or _says(own, loc):
            continue
        key, value = loc[0], values.data[loc[0]]
        if len(loc) == 1:
            data[key] = value
        else:
            data.setdefault(key, {})[loc[1]] = value[loc[1]]
            origins.setdefault((key,), values.origin((key,)))
        origins |= _moved(values.origins, loc, loc)
    return Values(data, origins, values.shown)


def _moved(origins: dict[Loc, str], old: Loc, new: Loc) -> dict[Loc, str]:
    """The origins of everything at and below `old`, as if it stood at `new`."""
    return {(*new, *loc[len(old) :]): at for loc, at in origins.items() if loc[: len(old)] == old}


def _check_references(stages: Sequence[Stage], parts: Sequence[Values], under: Sequence[Loc]) -> None:
    """Refuse `stage:NAME` that is no earlier stage, or one that does not give what is wanted."""
    wrong: dict[str, None] = {}  # once each: heldout names its source through train
    names = [stage.name for stage in stages]
    for i, stage in enumerate(stages):
        for loc, wanted, name in references(stage):
            able = [s.name for s in stages[:i] if s.gives == wanted]
            if name in able:
                continue
            if name in names[:i]:
                kind = kind_of(stages[names.index(name)])
                text = f"{name!r} is a stage of kind {kind}, which gives no {wanted}"
            elif name in names[i:] and under[i]:
                text = (
                    "is the stage itself"
                    if name == stage.name
                    else f"{name!r} comes later; a stage takes from earlier ones: put it first"
                )
            else:
                text = f"there is no earlier stage {name!r}{did_you_mean(name, able, '; did you mean')}"
            wrong[f"{parts[i].origin(loc)}: {dotted((*under[i], *loc))}: {text}"] = None
    if wrong:
        raise PosttrainError("\n".join(wrong))

"""Answers made of parts: sets, tuples, lists, matrices, and ranges (intervals, their unions, inequalities).

A text is taken apart here and its parts are compared by the caller's rule. A set is no tuple: order counts in
tuples, vectors and matrices, and not in sets, nor in a bare list such as "2 and 3".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple

from posttrain.verify.numbers import read_number
from posttrain.verify.spelling import is_math

Kind = Literal["set", "tuple", "bracket", "list"]

_MOST = 200  # parts of an answer that are looked at
_OPEN, _CLOSE = "([{", ")]}"
_TOKEN = re.compile(r"\\[A-Za-z]+|\\.|.", re.DOTALL)
_COMMA = re.compile(r"\s*[,;]\s*(?:(?:and|or)\s+)?|\s+(?:and|or)\s+")
_GROUP = re.compile(r"\d{3}(?!\d)")
_INFINITY = re.compile(r"([+-]?)\s*(?:\\infty|oo|inf|infinity)", re.IGNORECASE)
_VARIABLE = r"(?:[A-Za-z]|\\[a-z]{2,7})(?:_\{?\w{1,3}\}?)?"
_ASSIGNED = re.compile(rf"({_VARIABLE})\s*=\s*([^=]+)")
_MEMBER = re.compile(rf"({_VARIABLE})\s*(?:\\in|in)\b\s*(.+)", re.DOTALL)
_BUILDER = re.compile(
    rf"\\?\{{\s*({_VARIABLE})\s*(?:\\in\s*\\mathbb\s*\{{?R\}}?)?\s*(?:\\mid|\\vert|\||:)\s*(.+?)\\?\}}"
)
_CONDITION = re.compile(r"\\mid|\\vert|\||:|\\in")
_RELATION = re.compile(r"(\\le(?![A-Za-z])|\\ge(?![A-Za-z])|\\ne(?![A-Za-z])|<|>)")
_MATRIX = re.compile(
    r"[(\[]?\s*\\begin\{([pbB]?|small)(?:matrix|array)\}(?:\{[lcr|]*\})?(.*?)"
    r"\\end\{\1(?:matrix|array)\}\s*[)\]]?",
    re.DOTALL,
)


class Parts(NamedTuple):
    """The parts of "{1, 2}", "(1, 2)", "[1, 2]" or "1, 2"."""

    kind: Kind
    items: tuple[str, ...]


class Range(NamedTuple):
    """The numbers between two, each given as text; `-\\infty` and `\\infty` for none."""

    low: str
    low_open: bool
    high: str
    high_open: bool


class Ranges(NamedTuple):
    """A union of ranges and the variable that it is said of ("" for an interval)."""

    variable: str
    ranges: tuple[Range, ...]


class Undecided(Exception):
    """Raised by the caller's comparison of two parts. The text says why it does not know."""


Same = Callable[[str, str], bool]


def same_shape(ours: str, theirs: str, same: Same) -> tuple[bool, str] | None:
    """(whether an answer is the gold one, the rule), or None where the gold answer has no parts.

    `same` compares two parts; where it raises Undecided and nothing else decides, so does this.
    """
    if (rows := read_matrix(theirs)) is not None:
        mine = read_matrix(ours)
        return mine is not None and _same_rows(mine, rows, same), "matrix"
    gold_parts, gold_ranges = read_parts(theirs), read_ranges(theirs)
    if gold_parts is None and gold_ranges is None:
        return None
    parts, ranges = read_parts(ours), read_ranges(ours)
    # "(1, 2)" is a pair as well as an interval: as a pair it is compared with a list too.
    endless = "\\infty" in theirs and gold_ranges and ranges
    if gold_parts and parts and not endless:
        return _same_parts(parts, gold_parts, same), "parts"
    if gold_ranges and ranges:
        return _same_ranges(ranges, gold_ranges, same), "interval"
    if gold_parts and gold_parts.kind == "set" and len(gold_parts.items) == 1:
        return same(ours, gold_parts.items[0]), "parts"
    if gold_ranges and _RELATION.search(ours):
        return None  # 2x > 4
    return False, "interval" if gold_ranges else "parts"


def read_matrix(text: str) -> list[list[str]] | None:
    """The rows of a matrix: \\begin{pmatrix}…, or [[1, 2], [3, 4]]. A determinant's bars make none."""
    if match := _MATRIX.fullmatch(text):
        rows = [row for row in match[2].split("\\cr") if row.strip() and row.strip() != "\\hline"]
        return [[cell.strip() for cell in row.split("&")] for row in rows[:_MOST]]
    outer = read_parts(text) if text[:1] == "[" else None
    if outer is None or outer.kind != "bracket":
        return None
    inner = [read_parts(item) for item in outer.items]
    if not all(row and row.kind == "bracket" for row in inner):
        return None
    return [list(row.items) for row in inner if row]


def read_parts(text: str) -> Parts | None:
    """A normalised text as a set, tuple, bracketed or bare list; None where it is one thing.

    A bare list is one of formulas and numbers, "2 and 3"; words, "salt and pepper", are text. \\pm 3 is a
    list of two.
    """
    body, kind = text, "list"
    if assigned := _ASSIGNED.fullmatch(text):
        if "\\pm" in text or "," not in text:
            body = assigned[2]
    elif member := _MEMBER.fullmatch(text):
        body = member[2]
    for start, end, name in (
        ("\\{", "\\}", "set"),
        ("{", "}", "set"),
        ("\\langle", "\\rangle", "tuple"),
        ("(", ")", "tuple"),
        ("[", "]", "bracket"),
    ):
        if body.startswith(start) and body.endswith(end) and len(body) >= len(start) + len(end):
            inside = body[len(start) : -len(end)]
            if _balanced(inside):
                body, kind = inside.strip(), name
                break
    if body is text and kind == "list" and not re.search(r"[,;]|\\pm|\b(?:and|or)\b", body):
        return None
    items = _expand(_split(body))
    if kind == "list":
        if len(items) < 2 or not all(read_number(item) or is_math(item) for item in items):
            return None
        if _RELATION.search(body):
            return None
    elif len(items) < 2 and kind != "set":
        return None
    if kind == "set" and _CONDITION.search(body):
        return None
    return Parts(kind, tuple(items))  # pyright: ignore[reportArgumentType]


def _expand(items: Sequence[str]) -> list[str]:
    """Each item with a \\pm as the two that it stands for."""
    found: list[str] = []
    for item in items:
        if "\\pm" in item:
            for upper, lower in (("+", "-"), ("-", "+")):
                one = re.sub(r"\\pm(?![A-Za-z])", upper, item)
                one = re.sub(r"\\mp(?![A-Za-z])", lower, one)
                found.append(re.sub(r"\s+", " ", one).strip().removeprefix("+").strip())
        elif item:
            found.append(item)
    return found[:_MOST]


def _balanced(text: str) -> bool:
    """Whether the brackets in a text close what they open; half-open intervals, [1, 2), are balanced."""
    depth = 0
    for token in _TOKEN.findall(text):
        bare = token[-1] if token in ("\\{", "\\}") else token
        depth += (bare in _OPEN) - (bare in _CLOSE)
        if depth < 0:
            return False
    return depth == 0


def _top(text: str) -> Iterator[int]:
    """The places in a text that no bracket is around."""
    depth = place = 0
    for token in _TOKEN.findall(text):
        bare = token[-1] if token in ("\\{", "\\}") else token
        if bare in _OPEN:
            depth += 1
        elif bare in _CLOSE:
            depth -= 1
        elif depth == 0:
            yield from range(place, place + len(token))
        place += len(token)


def _split(text: str, pattern: re.Pattern[str] = _COMMA) -> list[str]:
    """Split where no bracket is around. "1,234, 5" and "1,234 and 5" hold two numbers."""
    outside = set(_top(text))
    cuts = [match for match in pattern.finditer(text) if outside.issuperset(range(*match.span()))]
    if any(match[0] != "," for match in cuts):
        cuts = [match for match in cuts if match[0] != "," or not _GROUP.match(text, match.end())]
    items, start = [], 0
    for match in cuts[:_MOST]:
        items.append(text[start : match.start()].strip())
        start = match.end()
    return [*items, text[start:].strip()]


def read_ranges(text: str) -> Ranges | None:
    """Intervals and their unions, and inequalities in one variable, in either order; None for all else."""
    if member := _MEMBER.fullmatch(text):
        within = read_ranges(member[2])
        return Ranges(member[1], within.ranges) if within else None
    if builder := _BUILDER.fullmatch(text):
        return read_ranges(builder[2].strip())
    if re.fullmatch(r"\\mathbb\s*\{?R\}?|all real numbers", text):
        return Ranges("", (Range("-\\infty", True, "\\infty", True),))
    pieces = _split(text, re.compile(r"\s*(?:\\cup(?![A-Za-z])|∪|\bU\b|\bor\b)\s*"))
    found: list[Range] = []
    variables = set()
    for piece in pieces[:_MOST]:
        one = _interval(piece) or _inequality(piece)
        if one is None:
            return None
        variables.add(one.variable)
        found += one.ranges
    return Ranges(variables.pop(), tuple(found)) if len(variables) == 1 else None


def _interval(text: str) -> Ranges | None:
    if len(text) < 3 or text[0] not in "([]" or text[-1] not in ")][" or not _balanced(text[1:-1]):
        return None
    bounds = _split(text[1:-1], re.compile(r"\s*[,;]\s*"))
    if len(bounds) != 2 or not all(bounds):
        return None
    low, high = map(_bound, bounds)
    return Ranges("", (Range(low, text[0] != "[", high, text[-1] != "]"),))


def _bound(text: str) -> str:
    match = _INFINITY.fullmatch(text)
    if match is None:
        return text
    return "-\\infty" if match[1] == "-" else "\\infty"


def _inequality(text: str) -> Ranges | None:
    joined = _split(text, re.compile(r"\s*(?:\band\b|,)\s*"))
    if len(joined) == 2:
        halves = [_inequality(half) for half in joined]
        return _between(*halves) if all(halves) else None
    pieces = [piece.strip() for piece in _RELATION.split(text)]
    if len(pieces) == 5:
        left, first, middle, second, right = pieces
        if not re.fullmatch(_VARIABLE, middle) or _way(first) == 0 or _way(first) != _way(second):
            return None
        if _way(first) > 0:  # 2 > x > 1
            left, first, second, right = right, second, first, left
        low, high = _bound(left), _bound(right)
        return Ranges(middle, (Range(low, first in "<>", high, second in "<>"),))
    if len(pieces) != 3:
        return None
    left, relation, right = pieces
    way, strict = _way(relation), relation in "<>"
    if re.fullmatch(_VARIABLE, right) and not re.fullmatch(_VARIABLE, left):
        left, right, way = right, left, -way
    if not re.fullmatch(_VARIABLE, left) or not right:
        return None
    bound = _bound(right)
    below = Range("-\\infty", True, bound, strict or way == 0)
    above = Range(bound, strict or way == 0, "\\infty", True)
    return Ranges(left, (below,) if way < 0 else (above,) if way > 0 else (below, above))


def _way(relation: str) -> int:
    """-1 for < and ≤, 1 for > and ≥, 0 for ≠."""
    return {"<": -1, "\\le": -1, ">": 1, "\\ge": 1}.get(relation, 0)


def _between(first: Ranges | None, second: Ranges | None) -> Ranges | None:
    """x > 1 and x < 3: what lies between. None for two ranges that are no such pair."""
    if first is None or second is None or first.variable != second.variable:
        return None
    if len(first.ranges) != 1 or len(second.ranges) != 1:
        return None
    lower, upper = first.ranges[0], second.ranges[0]
    if lower.high != "\\infty":
        lower, upper = upper, lower
    if lower.high != "\\infty" or upper.low != "-\\infty" or "\\infty" in (lower.low, upper.high):
        return None
    return Ranges(first.variable, (Range(lower.low, lower.low_open, upper.high, upper.high_open),))


def _same_parts(ours: Parts, theirs: Parts, same: Same) -> bool:
    if theirs.kind == "set":
        if ours.kind not in ("set", "list"):
            return False
        if ours.kind == "list":
            return _match(ours.items, theirs.items, same)
        # What stands in a set twice counts once.
        return _match(ours.items, theirs.items, same, once=False) and _match(
            theirs.items, ours.items, lambda a, b: same(b, a), once=False
        )
    if theirs.kind == "list":
        named = [assigned[1] if (assigned := _ASSIGNED.fullmatch(item)) else "" for item in theirs.items]
        if "" not in named and len(set(named)) > 1 and not any("=" in item for item in ours.items):
            return ours.kind != "set" and _each(ours.items, theirs.items, same)  # 1, 2 for x = 1, y = 2
        if ours.kind in ("set", "list"):
            return _match(ours.items, theirs.items, same)
        return ours.kind == "tuple" and _each(ours.items, theirs.items, same)
    # Two numbers in brackets may be an interval: (1, 2) is not [1, 2].
    alike = ours.kind == theirs.kind or (len(theirs.items) > 2 and ours.kind != "set")
    bare = ours.kind == "list" and theirs.kind == "tuple"
    return (alike or bare) and _each(ours.items, theirs.items, same)


def _same_rows(ours: list[list[str]], theirs: list[list[str]], same: Same) -> bool:
    if [len(row) for row in ours] != [len(row) for row in theirs]:
        return False
    return _each([cell for row in ours for cell in row], [cell for row in theirs for cell in row], same)


def _same_ranges(ours: Ranges, theirs: Ranges, same: Same) -> bool:
    if ours.variable and theirs.variable and ours.variable != theirs.variable:
        return False

    def bound(a: str, b: str) -> bool:
        return a == b if "\\infty" in (a[-6:], b[-6:]) else same(a, b)

    def one(a: Range, b: Range) -> bool:
        # An infinite end is open, whatever bracket stands there.
        ends = (a.low_open == b.low_open or "\\infty" in b.low) and (
            a.high_open == b.high_open or "\\infty" in b.high
        )
        return ends and bound(a.low, b.low) and bound(a.high, b.high)

    return _match(ours.ranges, theirs.ranges, one)


def _each(ours: Sequence[str], theirs: Sequence[str], same: Same) -> bool:
    """Whether all parts are the same in order. One that differs decides, whatever is undecided beside it."""
    if len(ours) != len(theirs):
        return False
    unknown = None
    for a, b in zip(ours, theirs, strict=True):
        try:
            if not same(a, b):
                return False
        except Undecided as error:
            unknown = error
    if unknown:
        raise unknown
    return True


def _match(ours: Sequence, theirs: Sequence, same: Callable[..., bool], once: bool = True) -> bool:
    """Whether each of our parts is one of theirs, in any order; `once`: and each of theirs is one of ours.

    A part that differs from all of them decides, whatever is undecided beside it.
    """
    if once and len(ours) != len(theirs):
        return False
    left, unknown = list(theirs), None
    for part in ours:
        doubt = None
        for other in left:
            try:
                if same(part, other):
                    if once:
                        left.remove(other)
                    break
            except Undecided as error:
                doubt = error
        else:
            if doubt is None:
                return False
            unknown = doubt
    if unknown:
        raise unknown
    return True

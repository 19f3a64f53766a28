"""Read JSON that stands in a model's text. One pass over the text, with a bound on size and depth.

What Python reads beyond JSON is refused: NaN, Infinity, and numbers too large for a float (unless exact ones
are asked for). So nothing read here is infinite.
"""

from __future__ import annotations

import json
import math
import re
from decimal import Decimal
from typing import Any

from posttrain.words import after_reasoning

LONGEST = 20_000  # characters of a value; of a longer text only the end is searched
DEPTH = 50  # brackets in brackets
_TRIES = 8  # bracketed stretches looked at, from the end

_MARK = re.compile(r'[\[\]{}"\n]|\\.')
_FENCE = re.compile(r"```[A-Za-z0-9]*[ \t]*\n(.*)```", re.DOTALL)
_PAIRS = {"]": "[", "}": "{"}


def last_json(text: str) -> Any:
    """The last JSON value in a text: the text as a whole, else its last object or array that is JSON.

    What stands before the last "</think>" is reasoning and not searched. A stretch in brackets that is no
    JSON is passed over, and what lies within a larger value is part of that.

    Example: last_json('See [1]: ```json\\n{"a": [2]}\\n```') -> {"a": [2]}
    Raises ValueError where there is none.
    """
    text = after_reasoning(text)
    try:
        return whole_json(text)
    except ValueError:
        pass
    text = text[-LONGEST:]
    for start, end in reversed(_stretches(text)[-_TRIES:]):
        try:
            return _loads(text[start:end])
        except ValueError:
            continue
    raise ValueError("no JSON in the text")


def whole_json(text: str, exact: bool = False) -> Any:
    """A text as one JSON value, in a code fence or bare. Raises ValueError where it is anything else.

    exact: for comparing. Fractions are Decimals, of any size, and a key that stands twice is refused.
    """
    text = text.strip()
    fence = _FENCE.fullmatch(text)
    return _loads(fence[1] if fence else text, exact)


def _loads(text: str, exact: bool = False) -> Any:
    if len(text) > LONGEST:
        raise ValueError("too long")
    depth = deepest = 0
    for bracket in re.findall(r"[\[\]{}]", text):  # those in strings too: a bound, no grammar
        depth += 1 if bracket in "[{" else -1
        deepest = max(deepest, depth)
    if deepest > DEPTH:
        raise ValueError("too deep")
    if exact:
        return json.loads(text, parse_float=_decimal, parse_constant=_refuse, object_pairs_hook=_single)
    return json.loads(text, parse_float=_finite, parse_int=_integer, parse_constant=_refuse)


def _decimal(text: str) -> Decimal:
    try:
        return Decimal(text)
    except ArithmeticError:  # an exponent of more digits than it keeps
        raise ValueError("too large") from None


def _single(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice")
    return found


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("too large")
    return value


def _integer(text: str) -> int:
    if len(text) > 300:  # more digits than a float holds; a float is what it will be compared as
        raise ValueError("too large")
    return int(text)


def _refuse(text: str) -> Any:
    raise ValueError(f"{text} is not JSON")


def _stretches(text: str) -> list[tuple[int, int]]:
    """The outermost stretches in balanced brackets, in order. Brackets in JSON strings do not count.

    A bracket that is never closed, as in prose, encloses nothing.
    """
    opened: list[tuple[str, int]] = []
    found: list[tuple[int, int]] = []
    quoted = False
    for match in _MARK.finditer(text):
        mark = match[0]
        if quoted:
            if mark == "\n":  # no JSON string holds one: it was prose
                opened, quoted = [], False
            elif mark == '"':
                quoted = False
        elif mark == '"':
            quoted = bool(opened)
        elif mark in "[{":
            opened.append((mark, match.start()))
        elif mark in "]}":
            if opened and opened[-1][0] == _PAIRS[mark]:
                start = opened.pop()[1]
                while found and found[-1][0] > start:
                    found.pop()
                found.append((start, match.end()))
            else:
                opened = []
    return found

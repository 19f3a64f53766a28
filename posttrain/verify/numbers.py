"""Plain numbers: fractions, decimals, percents, units, thousands separators, and digits in another base.

A number has to be worked out: "3 + 4", "2^3" and, for 4, "8/2" are none; a policy would otherwise learn to
hand the question back as its answer.
"""

from __future__ import annotations

import math
import re
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

from posttrain.verify.units import read_unit, same_name

_DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d{1,3}(?: \d{3})+(?![\d/])|\d+)"
_DECIMAL = rf"(?:{_DIGITS}(?:\.\d*)?|\.\d+)(?:e[+-]?\d{{1,3}}|\\times10\^\{{?[+-]?\d{{1,3}}\}}?)?"
_PLAIN = re.compile(
    r"(?P<sign>[+-]?)\s*(?P<currency>[$€£¥₹]?)\s*(?P<sign2>[+-]?)"
    rf"(?:\\frac\{{\s*(?P<sign3>-?)\s*(?P<top>{_DECIMAL})\s*\}}\s*\{{\s*(?P<sign4>-?)\s*(?P<bottom>{_DECIMAL})\s*\}}"
    r"|(?:(?P<whole>\d{1,9})(?:\s+|(?=\\)))(?:\\frac\{(?P<mixed_top>\d{1,9})\}\{(?P<mixed_bottom>\d{1,9})\}"
    r"|(?P<mixed_top2>\d{1,9})/(?P<mixed_bottom2>\d{1,9}))"
    rf"|(?P<over>{_DECIMAL})\s*/\s*(?P<under>{_DECIMAL})"
    rf"|(?P<number>{_DECIMAL}))"
    r"\s*(?P<percent>%|percent\b)?\s*(?P<unit>.*)",
    re.IGNORECASE | re.DOTALL,
)
_UNIT = re.compile(
    r"[^\W\d_][^\W\d_.\-]*\.?(?:\^?\{?[23]\}?)?(?:[ /.\-]+[^\W\d_]+){0,4}\.?(?:\^?\{?[23]\}?)?"
    r"|°[CF]?|[€£¥₹¢]"
)
_CURRENCY = {"$": "dollar", "€": "euro", "£": "pound", "¥": "yen", "₹": "rupee"}
_SCALE = {
    "hundred": 10**2,
    "thousand": 10**3,
    "million": 10**6,
    "billion": 10**9,
    "trillion": 10**12,
    "dozen": 12,
}
# Words after a number that change it or stand for an operation: no unit.
_NO_UNIT = re.compile(
    r"\b(?:and|or|not|to|by|over|less|more|half|plus|minus|times|squared|cubed|factorial|base"
    r"|pi|sqrt|log|ln|sin|cos|tan|mod)\b",
    re.IGNORECASE,
)
# The only single Latin letters that are units; others are variables.
_LETTER_UNITS = frozenset("mgshLlJNWVAKCF")

_BASES = {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10}
_BASES |= {"twelve": 12, "sixteen": 16}
_BASE = rf"(\d{{1,2}}|{'|'.join(_BASES)})"
_BASED = re.compile(
    r"(?:(\w*\d\w*)|\(\s*(\w*\d\w*)\s*\)|(\w{2,}))\s*"
    rf"(?:_\s*\{{?\s*{_BASE}\s*\}}?|[,(]?\s*(?:in )?base[ -]?{_BASE}\s*\)?)",
    re.ASCII,
)


_REPEATING = re.compile(r"(-?)(\d{0,9})\.(\d{0,9})\\(?:overline|bar)\s*\{(\d{1,9})\}")


class Number(NamedTuple):
    """A plain number as written: its value, whether a percent sign stood behind it, its unit ("" for none).

    `reduced` is False for a fraction not in lowest terms, such as 8/2. `size` is the unit's among those
    of its name: 1000 for km.
    """

    value: Fraction
    percent: bool
    unit: str
    reduced: bool
    size: Fraction = Fraction(1)


@lru_cache(maxsize=4096)
def read_number(text: str) -> Number | None:
    """A normalised text as a plain number, or None where it is anything else or larger than anyone means."""
    if repeating := _REPEATING.fullmatch(text):
        return Number(_repeating(*repeating.groups()), False, "", True)
    match = _PLAIN.fullmatch(text) if len(text) <= 1000 else None
    if match is None or (match["sign"] and match["sign2"]):
        return None
    unit = _unit_of(match)
    if unit is None:
        return None
    name, size, scale = unit
    part = match.groupdict()
    tops = part["mixed_top"] or part["mixed_top2"] or part["top"] or part["over"] or part["number"]
    bottoms = part["mixed_bottom"] or part["mixed_bottom2"] or part["bottom"] or part["under"] or "1"
    top, bottom = _decimal(tops), _decimal(bottoms)
    if bottom == 0:
        return None
    whole = int(part["whole"] or 0)
    sign = (-1) ** match.group("sign", "sign2", "sign3", "sign4").count("-")
    percent = bool(match["percent"])
    integers = top.denominator == bottom.denominator == 1
    reduced = bottoms == "1" or (integers and bottom != 1 and math.gcd(int(top), int(bottom)) == 1)
    value = sign * (whole + top / bottom) * scale / (100 if percent else 1)
    return Number(value, percent, name, reduced, size)


def _repeating(sign: str, whole: str, fixed: str, again: str) -> Fraction:
    """0.1\\overline{6} as a fraction: ("", "0", "1", "6") is 1/6."""
    value = Fraction(int(f"{whole}{fixed}" or 0)) + Fraction(int(again), 10 ** len(again) - 1)
    return value / 10 ** len(fixed) * (-1 if sign else 1)


def _decimal(text: str) -> Fraction:
    text = text.replace(",", "").replace(" ", "").lower()
    text = re.sub(r"\\times10\^\{?([+-]?\d+)\}?", r"e\1", text)
    mantissa, _, exponent = text.partition("e")
    return Fraction(mantissa.rstrip(".")) * Fraction(10) ** int(exponent or 0)


def _unit_of(match: re.Match[str]) -> tuple[str, Fraction, int] | None:
    """(unit, its size, scale) of the words behind a number: 3 million dollars have 10⁶. None: no unit."""
    unit, scale = match["unit"].strip(), 1
    words = unit.split(" ", 1)
    if words[0].lower() in _SCALE:
        scale, unit = _SCALE[words[0].lower()], words[1].strip() if len(words) > 1 else ""
    currency = _CURRENCY.get(match["currency"], "")
    if not unit:
        return *read_unit(currency), scale
    if unit != "$" and not (_UNIT.fullmatch(unit) and (unit[0].isalpha() or not unit[0].isalnum())):
        return None  # nor is a superscript: 12² is not 12
    if re.fullmatch(r"[A-Za-z](\^.*)?", unit):  # 5 m, but not 5x
        spaced = match.string[: match.start("unit")].endswith(" ")
        if not spaced or unit[0] not in _LETTER_UNITS:
            return None
    words = re.findall(r"[^\W\d_]+", unit.lower())
    if _NO_UNIT.search(unit) or not _SCALE.keys().isdisjoint(words):
        return None
    return *read_unit(currency or _CURRENCY.get(unit, unit)), scale


def same_number(number: Number, target: Number) -> bool:
    """Whether a number is the gold one. A unit counts only where both name one."""
    if number.unit and target.unit:
        if not same_name(number.unit, target.unit):
            return False
        if number.size != target.size:  # 500 cm for 5 m
            number = number._replace(value=number.value * number.size / target.size)
    if target.reduced and not number.reduced:
        return False
    if target.value.denominator == 1 and not target.percent and not number.percent:
        return number.value == target.value
    if _close(number.value, target.value):
        return True
    # "50%" for a question whose gold answer is a bare 50, and 50 where it is 50%.
    if number.percent and not target.percent:
        return _close(number.value * 100, target.value)
    return target.percent and not number.percent and _close(number.value, target.value * 100)


def _close(a: Fraction, b: Fraction) -> bool:
    distance = abs(a - b)
    return distance == 0 or (distance <= Fraction(1, 2 * 10**6) and distance <= abs(b) / 10**5)


def read_based(text: str) -> tuple[str, int] | None:
    """(digits, base) of "1010_2", "(1010)_{2}", "1010 (base 2)" or "FF base sixteen"; None for all else."""
    match = _BASED.fullmatch(text) if len(text) <= 200 else None
    if match is None:
        return None
    digits, name = match[1] or match[2] or match[3], match[4] or match[5]
    base = _BASES.get(name) or int(name)
    if not 2 <= base <= 36 or any(char == "_" or int(char, 36) >= base for char in digits):
        return None
    return digits.lower().lstrip("0") or "0", base


def same_based(ours: str, theirs: str) -> bool | None:
    """Whether the digits are the gold ones, where either names its base; None where neither does.

    The base is part of the question: an answer may leave it out, but not answer in another one.
    """
    mine, gold = read_based(ours), read_based(theirs)
    if mine is None and gold is None:
        return None
    if mine and gold:
        return mine == gold
    bare = (ours if gold else theirs).lower().replace(" ", "").lstrip("0") or "0"
    named = gold or mine
    return named is not None and bare == named[0]

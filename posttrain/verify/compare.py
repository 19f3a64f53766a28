"""Is an answer equal to the gold answer? Three rules, the cheapest first.

1. text: the same after normalisation ("$\\text{Paris}$." and "paris").
2. number: where the gold answer is a plain number, the answer must be one too, and equal: exactly, or to six
   decimals where the gold answer is no whole number. Thousands separators, a currency, a percent sign and a
   unit that the gold answer does not name are read over. The number has to be worked out: "3 + 4", "2^3" and,
   for 4, "8/2" are refused; a policy would otherwise learn to hand the question back as its answer.
3. math: other formulas (roots, intervals, tuples, equations) are compared by math-verify, imported only then.
"""

from __future__ import annotations

import math
import re
import threading
import unicodedata
from fractions import Fraction
from functools import lru_cache
from typing import Literal, NamedTuple

Rule = Literal["text", "number", "math", "different", "missing"]

_LONGEST_MATH = 300  # characters of a formula handed to computer algebra
_MATH_SECONDS = 3  # math-verify's own limit, by SIGALRM; the caller's deadline stands behind it
_LARGEST_POWER = 100_000  # bound on the product of all exponents in a formula

_DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)"
_DECIMAL = rf"(?:{_DIGITS}(?:\.\d*)?|\.\d+)(?:e[+-]?\d{{1,3}}|\\times10\^\{{?[+-]?\d{{1,3}}\}}?)?"
_PLAIN = re.compile(
    r"(?P<sign>[+-]?)\s*(?P<currency>[$€£¥₹]?)\s*(?P<sign2>[+-]?)"
    rf"(?:\\frac\{{(?P<top>{_DECIMAL})\}}\{{(?P<bottom>{_DECIMAL})\}}"
    r"|(?:(?P<whole>\d{1,9})(?:\s+|(?=\\)))(?:\\frac\{(?P<mixed_top>\d{1,9})\}\{(?P<mixed_bottom>\d{1,9})\}"
    r"|(?P<mixed_top2>\d{1,9})/(?P<mixed_bottom2>\d{1,9}))"
    rf"|(?P<over>{_DECIMAL})\s*/\s*(?P<under>{_DECIMAL})"
    rf"|(?P<number>{_DECIMAL}))"
    r"\s*(?P<percent>%|percent\b)?\s*(?P<unit>.*)",
    re.IGNORECASE | re.DOTALL,
)
_UNIT = re.compile(r"[^\W\d_][^\W\d_.\-]*(?:[ /.\-]+[^\W\d_]+){0,4}\.?(?:\^?\{?[23²³]\}?)?|°[CF]?|[€£¥₹]")
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
    r"\b(?:and|or|not|to|by|over|less|more|half|plus|minus|times|squared|cubed|factorial"
    r"|pi|sqrt|log|ln|sin|cos|tan|mod)\b",
    re.IGNORECASE,
)
# The only single Latin letters that are units; others are variables.
_LETTER_UNITS = frozenset("mgshLlJNWVAKCF")


class Number(NamedTuple):
    """A plain number as written: its value, whether a percent sign stood behind it, its unit ("" for none).

    `reduced` is False for a fraction not in lowest terms, such as 8/2.
    """

    value: Fraction
    percent: bool
    unit: str
    reduced: bool


def equal(candidate: str, gold: str) -> bool:
    """Whether a bare answer (no sentence around it) equals the gold answer. See this file's rules.

    Never raises for odd text. The third rule may be slow: call it where it can be killed.
    """
    return compare(candidate, gold)[0]


def compare(candidate: str, gold: str) -> tuple[bool, Rule]:
    """`equal`, with the rule that decided."""
    if len(candidate) > max(1000, 2 * len(gold)):
        return False, "different"
    ours, theirs = normalise(candidate), normalise(gold)
    if not ours or not theirs:
        return False, "different"
    if _same_text(ours, theirs):
        return True, "text"
    target = read_number(theirs)
    if target is not None:
        number = read_number(ours) or read_number(ours.rpartition("=")[2].strip())
        return (True, "number") if number and _same_number(number, target) else (False, "different")
    if _same_math(ours, theirs):
        return True, "math"
    return False, "different"


def normalise(text: str) -> str:
    """One spelling: ASCII digits and signs, no LaTeX wrapping or spacing, no full stop, no emphasis."""
    text = "".join(map(_plain_character, text)).strip()
    text = re.sub(r"(?<=\d)(?:\{,\}|\\[,!]|[\u00a0\u2009\u202f])\s*(?=\d{3})", ",", text)
    text = re.sub(r"\\(?:text|textbf|mathrm|mathbf|mbox)\s*\{([^{}]*)\}", r"\1", text)
    text = re.sub(
        r"\\(?:left|right|displaystyle|[,!;: ])|\\\(|\\\)|\\\[|\\\]|(?<!\d)\*\*|\*\*(?!\d)|`|~", " ", text
    )
    text = re.sub(r"\\([$%#&])", r"\1", text)
    text = re.sub(r"\\[dtc]frac", r"\\frac", text)
    text = re.sub(r"\\frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}", text)
    text = re.sub(r"\^\s*\{?\s*\\(?:circ|degree)\s*\}?", "°", text)
    text = re.sub(r"\s*(?:\\times|\\cdot|×|·)\s*10\s*\^", r"\\times10^", text)
    text = re.sub(r"\s+", " ", text).strip()
    if len(text) > 1 and text[0] == "$" and text[-1] == "$":
        text = text.strip("$ ")
    return text.rstrip(".").strip()


@lru_cache(maxsize=4096)
def _plain_character(char: str) -> str:
    if char.isascii():
        return char
    if char.isdecimal():  # ٤, ४, ４ … but not ⁴ or ④, which would change the number
        return str(unicodedata.decimal(char))
    form = unicodedata.normalize("NFKC", char)
    kind = unicodedata.decomposition(char)
    if kind.startswith("<fraction>"):
        return " " + form.replace("\u2044", "/")
    if char in "−–﹣－":
        return "-"
    if kind.startswith("<wide>"):
        return form
    return char


def _same_text(ours: str, theirs: str) -> bool:
    def key(text: str) -> str:
        letter = re.fullmatch(r"\(?([A-Za-z])[).]?", text)  # a choice: (B), B) or B
        text = letter[1] if letter else text
        return re.sub(r"\s+", "", text) if re.search(r"\d", text) is None else text.strip()

    # Capitals tell formulas apart (V is not v), but not words.
    ours, theirs = key(ours), key(theirs)
    return ours == theirs or (len(ours) > 1 and not _is_math(theirs) and ours.casefold() == theirs.casefold())


@lru_cache(maxsize=4096)
def read_number(text: str) -> Number | None:
    """A normalised text as a plain number, or None where it is anything else or larger than anyone means."""
    match = _PLAIN.fullmatch(text) if len(text) <= 1000 else None
    if match is None or (match["sign"] and match["sign2"]):
        return None
    unit = _read_unit(match)
    if unit is None:
        return None
    name, scale = unit
    part = match.groupdict()
    tops = part["mixed_top"] or part["mixed_top2"] or part["top"] or part["over"] or part["number"]
    bottoms = part["mixed_bottom"] or part["mixed_bottom2"] or part["bottom"] or part["under"] or "1"
    top, bottom = _decimal(tops), _decimal(bottoms)
    if bottom == 0:
        return None
    whole = int(part["whole"] or 0)
    sign = -1 if "-" in (match["sign"], match["sign2"]) else 1
    percent = bool(match["percent"])
    integers = top.denominator == bottom.denominator == 1
    reduced = bottoms == "1" or (integers and bottom != 1 and math.gcd(int(top), int(bottom)) == 1)
    value = sign * (whole + top / bottom) * scale / (100 if percent else 1)
    return Number(value, percent, name, reduced)


def _decimal(text: str) -> Fraction:
    text = text.replace(",", "").lower()
    text = re.sub(r"\\times10\^\{?([+-]?\d+)\}?", r"e\1", text)
    mantissa, _, exponent = text.partition("e")
    return Fraction(mantissa.rstrip(".")) * Fraction(10) ** int(exponent or 0)


def _read_unit(match: re.Match[str]) -> tuple[str, int] | None:
    """(unit, scale) of the words behind a number: ("dollar", 10⁶) for "3 million dollars". None: no unit."""
    unit, scale = match["unit"].strip(), 1
    words = unit.split(" ", 1)
    if words[0].lower() in _SCALE:
        scale, unit = _SCALE[words[0].lower()], words[1].strip() if len(words) > 1 else ""
    currency = _CURRENCY.get(match["currency"], "")
    if not unit:
        return currency, scale
    if unit != "$" and not (_UNIT.fullmatch(unit) and (unit[0].isalpha() or not unit[0].isalnum())):
        return None  # nor is a superscript: 12² is not 12
    if re.fullmatch(r"[A-Za-z](\^.*)?", unit):  # 5 m, but not 5x
        spaced = match.string[: match.start("unit")].endswith(" ")
        if not spaced or unit[0] not in _LETTER_UNITS:
            return None
    words = re.findall(r"[^\W\d_]+", unit.lower())
    if _NO_UNIT.search(unit) or not _SCALE.keys().isdisjoint(words):
        return None
    name = _CURRENCY.get(unit, " ".join(word.removesuffix("s") for word in words) or unit)
    return currency or name, scale


def _same_number(number: Number, target: Number) -> bool:
    if number.unit and target.unit and number.unit != target.unit:
        return False
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


def _is_math(text: str) -> bool:
    """Whether a text is a formula. Words are not: to computer algebra they are products, listen = silent."""
    if re.search(r"[^\W\d_]{3,}", re.sub(r"\\[A-Za-z]+", " ", text)):
        return False
    return len(text) == 1 or re.search(r"[\d\\^_+*/=<>|()\[\],-]", text) is not None


def _same_math(ours: str, theirs: str) -> bool:
    if not (_is_math(ours) and _is_math(theirs) and _is_safe(ours) and _is_safe(theirs)):
        return False
    import math_verify  # seconds and 60 MB: only for what the first two rules cannot decide

    # SIGALRM works in the main thread alone; elsewhere only the caller's deadline guards.
    seconds = _MATH_SECONDS if threading.current_thread() is threading.main_thread() else None
    config = [math_verify.LatexExtractionConfig()]  # never ExprExtractionConfig: it evaluates text as Python

    def parse(text: str) -> list:
        return math_verify.parse(f"${text}$", config, fallback_mode="no_fallback", parsing_timeout=seconds)  # pyright: ignore

    try:
        gold = parse(theirs)
        answer = parse(ours) if gold else []
        return bool(answer) and math_verify.verify(gold, answer, timeout_seconds=seconds)
    except (ArithmeticError, ValueError, TypeError, RecursionError, MemoryError):
        return False


def _is_safe(text: str) -> bool:
    """Refuse what computer algebra could take forever over: towers of powers, factorials, many digits."""
    if len(text) > _LONGEST_MATH or "$" in text or re.search(r"\d{60}", text):
        return False
    depth = 0
    for brace in re.findall(r"(?<!\\)[{}]", text):
        depth += 1 if brace == "{" else -1
        if not 0 <= depth <= 12:
            return False
    if depth or re.search(r"\d{4,}\s*!|[!)}]\s*!", text):
        return False
    power = 1
    for exponent in re.findall(
        r"\^\s*(\{(?:[^{}]|\{[^{}]*\})*\}|\(.*?\)|\\[A-Za-z]+\s*\{?|[+-]?\d+|.)", text
    ):
        if exponent.endswith("{") or re.search(r"[\d)}]\s*\^", exponent):
            return False
        for digits in re.findall(r"\d+", exponent):
            power *= max(1, int(digits))
    return power <= _LARGEST_POWER

"""Is an answer equal to the gold answer? The gold answer says by which rule; the cheapest is tried first.

1. text: the same after normalisation ("$\\text{Paris}$." and "paris").
2. json, choice, date: where the gold answer is a JSON object or array, a letter, a date or a time of day.
3. number: where the gold answer is a plain number, the answer must be one too, and equal: exactly, or to six
   decimals where the gold answer is no whole number. Thousands separators, a currency, a percent sign and a
   unit that the gold answer does not name are read over. The number has to be worked out: "3 + 4", "2^3" and,
   for 4, "8/2" are refused; a policy would otherwise learn to hand the question back as its answer.
4. parts, interval, matrix: sets, tuples, lists, ranges and matrices, part by part, by these same rules.
5. math: other formulas (roots, equations, powers) are compared by math-verify, imported only then.

What no rule may decide (too long, not safe for computer algebra, out of time) is "undecided", which is not
correct, with the reason.
"""

from __future__ import annotations

import re
import time
from fractions import Fraction
from functools import lru_cache
from typing import Literal, NamedTuple

from posttrain.verify.choices import Choice, gold_choice, lists_choices, picked
from posttrain.verify.dates import read_moment, same_moment
from posttrain.verify.json_values import read_json, same_json
from posttrain.verify.numbers import Number, read_number, same_based, same_number
from posttrain.verify.shapes import Undecided, same_shape
from posttrain.verify.spelling import is_math, normalise, same_text
from posttrain.verify.units import read_unit

Rule = Literal[
    "text", "json", "choice", "date", "number", "parts", "interval", "matrix", "math",
    "different", "undecided", "missing",
]  # fmt: skip

LONGEST = 1000  # characters of an answer; or twice the gold answer's
_DEEPEST = 4  # parts in parts
_CACHED = 1000  # characters of a pair that is remembered
_SECONDS = 2.0  # of processor time after which no more parts of an answer are looked at
OUT_OF_TIME = "the comparison ran out of time"

_ASSIGNED = re.compile(r"((?:[A-Za-z]|\\[a-z]{2,7})(?:_\{?\w{1,3}\}?)?)\s*=\s*([^=]+)")
_FLIPPED = re.compile(r"([^=]+?)\s*=\s*((?:[A-Za-z]|\\[a-z]{2,7})(?:_\{?\w{1,3}\}?)?)")
_BRACKETED = re.compile(r"(-?)\s*[({]([^(){}]*)[)}]")  # (5), -(1/2)
_LAST_EQUAL = re.compile(r"=|\\approx(?![A-Za-z])|≈|\\equiv(?![A-Za-z])")
_POWER = r"(?:\^\{?[23]\}?)?"
_UNIT = re.compile(
    rf"(.+?)\s+((?:(?:square|sq\.?|cubic) )?[A-Za-z]{{2,}}{_POWER}(?:(?:/| per )[A-Za-z]+{_POWER})?)"
)
_LETTER_UNIT = re.compile(rf"(.+?)\s+([mgshLJNWV]{_POWER})")
_SEVERAL = re.compile(r"\b(?:or|and)\b|;|,(?!\d{3})")
# A sentence around a number: "there are 5 apples". Words that turn its sense are in none.
_LEAD = re.compile(
    r"(?:[A-Za-z][A-Za-z ,']{0,80}?\b(?:is|are|equals|was|were|has|have|had|gets|gives|costs|makes|be)"
    r"(?: exactly| equal to)?|(?:the )?(?:final |correct )?(?:answer|result|solution|total|sum))\s*:?\s+",
    re.IGNORECASE,
)
_TURNS = re.compile(
    r"\b(?:not|never|no|nor|none|\w+n't|except|half|twice|double|less|more|least|most|over|under|or|if|square|"
    r"sum|without)\b",
    re.IGNORECASE,
)


class Decision(NamedTuple):
    """Whether an answer is the gold one, the rule that decided, and why none did ("" where one did)."""

    correct: bool
    rule: Rule
    reason: str = ""


class _Stopped(Exception):
    pass


DIFFERENT = Decision(False, "different")


def equal(candidate: str, gold: str) -> bool:
    """Whether a bare answer (no sentence around it) equals the gold answer. See this file's rules.

    Never raises for odd text. The last rule may be slow: call it where it can be killed.
    """
    return compare(candidate, gold).correct


def compare(candidate: str, gold: str) -> Decision:
    """`equal`, with the rule that decided or the reason why none did."""
    if len(candidate) > max(LONGEST, 2 * len(gold)):
        return Decision(False, "undecided", "the answer is too long")
    if len(candidate) + len(gold) > _CACHED:
        return _compare(candidate, gold)
    return _remembered(candidate, gold)


def _compare(candidate: str, gold: str) -> Decision:
    value = read_json(gold) if gold[:1] in "[{`" else None
    if value is not None:
        mine = read_json(candidate)
        if mine is not None and same_json(mine, value):
            return Decision(True, "json")
        if isinstance(value, dict):
            return DIFFERENT
    ours, theirs = normalise(candidate), normalise(gold)
    if not ours or not theirs:
        return DIFFERENT
    return _decide(ours, theirs, 0)


_remembered = lru_cache(maxsize=4096)(_compare)  # many of a prompt's completions give the same answer


def _decide(ours: str, theirs: str, depth: int) -> Decision:
    """Compare two normalised texts; `depth` counts the parts that they are in."""
    if same_text(ours, theirs):
        return Decision(True, "text")
    choice = gold_choice(theirs) if depth == 0 else None
    if choice is not None and (decision := _by_choice(ours, choice)) is not None:
        return decision
    moment = read_moment(theirs)
    if moment is not None:
        mine = read_moment(ours)
        return Decision(True, "date") if mine and same_moment(mine, moment) else DIFFERENT
    if (based := same_based(ours, theirs)) is not None:
        return Decision(True, "number") if based else DIFFERENT
    if (target := _target(theirs)) is not None:
        return Decision(True, "number") if _is_number(ours, target) else DIFFERENT
    if depth < _DEEPEST and (decision := _by_shape(ours, theirs, depth)) is not None:
        return decision
    (ours, unit), (theirs, gold_unit) = _without_units(ours, theirs)
    if not is_math(ours) or not is_math(theirs) or (unit and gold_unit and unit != gold_unit):
        return DIFFERENT
    if _other_case(ours, theirs):
        return DIFFERENT
    if same_text(ours, theirs):
        return Decision(True, "text")
    from posttrain.verify.algebra import same_formula

    same = same_formula(ours, theirs)
    if isinstance(same, str):
        return Decision(False, "undecided", same)
    return Decision(True, "math") if same else DIFFERENT


def _by_choice(ours: str, gold: Choice) -> Decision | None:
    mine = picked(ours)
    if mine is not None:
        if mine.letter != gold.letter:
            return DIFFERENT
        # The right letter beside another choice's text is two answers.
        same = not (mine.text and gold.text) or _decide(normalise(mine.text), normalise(gold.text), 1).correct
        return Decision(True, "choice") if same else DIFFERENT
    if not gold.text:
        formula = gold.letter in ours and len(ours) > 1 and is_math(ours) and not lists_choices(ours)
        return None if formula else DIFFERENT  # V = IR, where V is no choice
    decision = _decide(ours, normalise(gold.text), 1)
    return Decision(True, "choice") if decision.correct else decision


class _Target(NamedTuple):
    number: Number
    variable: str  # "" where the gold answer names none


def _target(theirs: str) -> _Target | None:
    """The plain number that a gold answer is: "5", or "x = 5"."""
    if (number := read_number(theirs)) is not None:
        return _Target(number, "")
    assigned = _ASSIGNED.fullmatch(theirs)
    number = read_number(assigned[2].strip()) if assigned else None
    return _Target(number, assigned[1]) if assigned and number else None


def _is_number(ours: str, target: _Target) -> bool:
    if bracketed := _BRACKETED.fullmatch(ours):
        ours = bracketed[1] + bracketed[2].strip()
    number = read_number(ours)
    if number is None and (assigned := _ASSIGNED.fullmatch(ours) or _FLIPPED.fullmatch(ours)):
        flipped = read_number(assigned[2].strip()) is None
        variable, value = (assigned[2], assigned[1]) if flipped else (assigned[1], assigned[2])
        if target.variable and variable != target.variable:
            return False
        number = read_number(value.strip())
    if number is None and not _SEVERAL.search(ours):
        number = read_number(_LAST_EQUAL.split(ours)[-1].strip())  # 5 + 7 = 12
    if number is None and (lead := _LEAD.match(ours)) and not _TURNS.search(lead[0]):
        number = read_number(ours[lead.end() :].strip())
    return number is not None and same_number(number, target.number)


_Measured = tuple[str, tuple[str, Fraction] | None]


def _without_units(ours: str, theirs: str) -> tuple[_Measured, _Measured]:
    """Two formulas, each with the unit behind it: 2\\sqrt{3} cm. None where there is none that we know.

    A lone m is a unit only where the other formula has one: it may be a variable.
    """
    mine, gold = _without_unit(ours, _UNIT), _without_unit(theirs, _UNIT)
    if mine[1] and not gold[1]:
        gold = _without_unit(theirs, _LETTER_UNIT)
    elif gold[1] and not mine[1]:
        mine = _without_unit(ours, _LETTER_UNIT)
    return mine, gold


def _without_unit(formula: str, pattern: re.Pattern[str]) -> _Measured:
    match = pattern.fullmatch(formula)
    unit = read_unit(match[2]) if match else ("", Fraction(1))
    return (match[1], unit) if match and "^" in unit[0] else (formula, None)


def _other_case(ours: str, theirs: str) -> bool:
    """Whether two formulas have the same letters but for their case, which math-verify reads over."""
    mine, gold = (set(re.findall(r"[A-Za-z]", re.sub(r"\\[A-Za-z]+", " ", text))) for text in (ours, theirs))
    return mine != gold and {letter.lower() for letter in mine} == {letter.lower() for letter in gold}


def _by_shape(ours: str, theirs: str, depth: int) -> Decision | None:
    started = time.process_time()

    def same(a: str, b: str) -> bool:
        if time.process_time() - started > _SECONDS:
            raise _Stopped  # many parts, each slow
        decision = _decide(a, b, depth + 1)
        if decision.rule == "undecided":
            raise Undecided(decision.reason)
        return decision.correct

    try:
        found = same_shape(ours, theirs, same)
    except Undecided as error:
        return Decision(False, "undecided", str(error))
    except _Stopped:
        return Decision(False, "undecided", OUT_OF_TIME)
    if found is None:
        return None
    correct, rule = found
    return Decision(True, rule) if correct else DIFFERENT  # pyright: ignore[reportArgumentType]

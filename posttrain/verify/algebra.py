"""Formulas by computer algebra: math-verify, behind our own guards and a limit on processor time.

sympy takes forever over small texts: towers of powers, factorials of factorials, sums of a million terms.
What looks like one is refused, and what runs too long is stopped; both are "undecided", with the reason.
math-verify is imported at the first formula, or by `load_algebra` before it (a third of a second to one, and
40 MB), and never with its ExprExtractionConfig, which evaluates text as Python.
"""

from __future__ import annotations

import logging
import re
import signal
import threading
from collections.abc import Callable
from functools import lru_cache
from typing import Any, TypeVar

LONGEST = 300  # characters of a formula handed to computer algebra
SECONDS = 1.0  # of processor time for one formula's parsing, and for one comparison

_DEEPEST = 12  # braces in braces
_LARGEST_POWER = 100_000  # bound on the product of all exponents in a formula
_MOST_DIGITS = 20_000  # bound on the digits that a power may have
_EXPONENT = re.compile(r"\^\s*(\{(?:[^{}]|\{[^{}]*\})*\}|\(.*?\)|\\[A-Za-z]+\s*\{?|[+-]?\d+|.)")
_ENDLESS = re.compile(r"\\(sum|prod|i{0,3}int|oint|lim|limsup|liminf|binom|bigcup|bigcap)(?![A-Za-z])")
_Result = TypeVar("_Result")

TOO_LONG = "the formula is too long"
UNSAFE = "the formula is not safe for computer algebra"
UNREADABLE = "the formula could not be read"
OUT_OF_TIME = "computer algebra ran out of time"
OUT_OF_MEMORY = "computer algebra ran out of memory"


class _OutOfTime(BaseException):  # no Exception: sympy catches those
    pass


def same_formula(ours: str, theirs: str) -> bool | str:
    """Whether two normalised formulas are equal, or why that is undecided.

    May be slow: call it where it can be killed.
    """
    reason = unsafe(theirs) or unsafe(ours)
    if (
        reason is None
        and (found := set(_ENDLESS.findall(ours)))
        and not found <= set(_ENDLESS.findall(theirs))
    ):
        reason = UNSAFE
    if reason is not None:
        return reason
    gold = _parsed(theirs)
    if isinstance(gold, str):
        return gold
    answer = _parsed(ours)
    if isinstance(answer, str):
        return answer
    import math_verify

    return _limited(lambda: math_verify.verify(gold, answer, timeout_seconds=None))


@lru_cache(maxsize=2048)
def _parsed(text: str) -> list[Any] | str:
    """math-verify's reading of a formula, or why there is none. A gold answer is read once."""
    import math_verify

    config = configuration()
    latex = text.replace("\\cr ", "\\\\ ")
    found = _limited(
        lambda: math_verify.parse(f"${latex}$", config, fallback_mode="no_fallback", parsing_timeout=None)  # pyright: ignore[reportArgumentType]
    )
    return found or UNREADABLE


@lru_cache(maxsize=1)
def configuration() -> list[Any]:
    """How math-verify is to read a formula. The first call loads it, with sympy and its grammar."""
    import math_verify

    logging.getLogger("math_verify").setLevel(logging.ERROR)  # we set the limit ourselves
    config = [math_verify.LatexExtractionConfig()]
    # Its grammar is built at the first formula: not on that formula's time.
    math_verify.parse(r"$\frac{1}{x}+\sqrt{2}$", config, fallback_mode="no_fallback", parsing_timeout=None)  # pyright: ignore[reportArgumentType]
    return config


def _limited(work: Callable[[], _Result]) -> _Result | str:
    """What `work` returns, or why it returned nothing.

    The limit counts this process's processor time, so that a busy machine turns no right answer into an
    undecided one. It needs the main thread; elsewhere, and inside of one long call into C, the caller's
    deadline alone stands guard.
    """
    armed = threading.current_thread() is threading.main_thread() and hasattr(signal, "setitimer")

    def expire(*_: object) -> None:
        if armed:
            raise _OutOfTime

    before = signal.signal(signal.SIGVTALRM, expire) if armed else None
    try:
        if armed:
            # Again every tenth of a second: a bare `except:` on the way may have eaten the first.
            signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS, 0.1)
        try:
            return work()
        finally:
            armed_before, armed = armed, False
            if armed_before:
                signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    except _OutOfTime:
        return OUT_OF_TIME
    except (MemoryError, OverflowError, RecursionError):
        return OUT_OF_MEMORY
    except Exception:  # sympy raises all kinds, on odd formulas
        return UNREADABLE
    finally:
        armed = False
        if before is not None:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
            signal.signal(signal.SIGVTALRM, before)


def unsafe(text: str) -> str | None:
    """Why a formula is kept from computer algebra, or None: its length, depth, powers, factorials, digits."""
    if len(text) > LONGEST:
        return TOO_LONG
    depth = 0
    for brace in re.findall(r"(?<!\\)[{}]", text):
        depth += 1 if brace == "{" else -1
        if depth < 0:
            return UNREADABLE
        if depth > _DEEPEST:
            return UNSAFE
    if depth or "$" in text:
        return UNREADABLE
    if text.count("(") + text.count("[") > 3 * _DEEPEST:
        return UNSAFE
    if re.search(r"\d{60}|\d{4,}\s*!|[!)}\]]\s*!|!\s*\^", text) or re.search(r"[*]{2}", text):
        return UNSAFE
    power = 1
    for exponent in _EXPONENT.findall(text):
        if exponent.endswith("{") or re.search(r"[\d)}]\s*\^|!", exponent):
            return UNSAFE
        for digits in re.findall(r"\d+", exponent):
            power *= max(1, int(digits))
    if re.search(r"[)}\]]\s*\^\s*\{?\s*[+-]?\d{3,}", text) and re.search(
        r"[A-Za-z]", re.sub(r"\\[A-Za-z]+", "", text)
    ):
        return UNSAFE  # (x + y)^{9999}, which may be multiplied out
    longest = max(map(len, re.findall(r"\d+", text)), default=1)
    return UNSAFE if power > _LARGEST_POWER or (power > 1 and power * longest > _MOST_DIGITS) else None

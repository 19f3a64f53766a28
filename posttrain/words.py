"""A text's words, in any script and without a dictionary; what follows its reasoning; the nearest name."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import Any

# Scripts without spaces between words, for a character class: Thai and Lao, Myanmar, Khmer, kana, Han.
UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"
    "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)  # fmt: skip
_WORD = re.compile(rf"[{UNSPACED}]|[^\s{UNSPACED}]+")


def words(text: str) -> list[str]:
    """What stands between spaces, marks included; in scripts without spaces, each character.

    Example: words("用 GPU, yes.") -> ["用", "GPU,", "yes."]
    """
    return _WORD.findall(text)


def after_reasoning(text: str) -> str:
    """What follows the last "</think>"; the whole text where there is none."""
    return text.rpartition("</think>")[2]


def did_you_mean(
    given: Any, names: Iterable[str], start: str = "did you mean", most: int = 1, cutoff: float = 0.6
) -> str:
    """A question for a message: which of the names is spelt like what was given; "" where none is.

    Args:
        given: what is none of the names, as written; it may be no string.
        start: how the question begins, with what parts it from the message: "; did you mean".
        most: names at most, the most alike first. cutoff: how alike (difflib's ratio, 0 to 1).

    Example: did_you_mean("boxd", ["boxed", "any"]) -> "did you mean 'boxed'?"
    """
    near = difflib.get_close_matches(str(given), list(names), most, cutoff)
    return f"{start} {' or '.join(map(repr, near))}?" if near else ""

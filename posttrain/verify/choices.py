"""Choices: which letter of a multiple-choice question a text picks."""

from __future__ import annotations

import re
from typing import NamedTuple

_MARKED = re.compile(
    r"(?:\(([A-Za-z])\)|([A-Z])\s*[).:]"
    r"|([A-Z]),? (?:-|because\b|since\b|is (?:the )?(?:correct|right|best|answer)\b))\s*(.*)",
    re.DOTALL,
)
_BARE = re.compile(r"\(?\s*([A-Za-z])\s*[).]?")
_STATED = re.compile(
    r"\b(?:(?:answer|option|choice)s?(?:\s+(?:is|would be|must be))?|it is|it's|choose|pick|select)\s*:?\s*"
    r"(?:(?:option|choice|letter)\s*)?(\(?[A-Z]\b\)?)",
    re.IGNORECASE,
)
_OTHERS = re.compile(r"(?:\(([A-J])\)|\b([A-J])[).:](?=\s|$))")
_SEVERAL = re.compile(r"^[\s)]*(?:,|/|&|\bor\b|\band\b)\s*\(?[A-Z]\b", re.IGNORECASE)
_NEGATED = re.compile(r"\b(?:not|never|isn't|except|neither|nor|rule out|eliminate)\b", re.IGNORECASE)
_WRONG = re.compile(r"^[\s).]*(?:is|are|was)\s+(?:not|wrong|incorrect|false)\b", re.IGNORECASE)


class Choice(NamedTuple):
    """A letter, in capitals, and the text of the choice beside it ("" for none)."""

    letter: str
    text: str


def gold_choice(text: str) -> Choice | None:
    """A gold answer as a choice: "B", "(b)", "B) 12", "B. Paris". None for all else ("x", "E. coli")."""
    if re.fullmatch(r"[A-Z]|\([A-Za-z]\)|[A-Z][).]", text):
        return Choice(text.strip("().").upper(), "")
    match = re.fullmatch(r"(?:\(([A-Ha-h])\)|([A-H])[):]|([A-H])\.(?= ?[A-Z\d$\\]))\s*(.+)", text, re.DOTALL)
    if match is None:
        return None
    return Choice((match[1] or match[2] or match[3]).upper(), match[4].strip())


def picked(text: str) -> Choice | None:
    """The one choice that an answer picks, or None: several letters, or one that is denied, pick nothing.

    The last statement counts: "the answer is A. No, the answer is B" picks B.
    """
    if match := _BARE.fullmatch(text):
        letter = match[1]
        # V is not v; but who writes a, b, c, d or e on its own picks from a list.
        return Choice(letter.upper(), "") if letter.isupper() or "(" in text or letter in "abcde" else None
    if (match := _MARKED.match(text)) and not _STATED.search(match[4]):
        letter, rest = (match[1] or match[2] or match[3]).upper(), match[4]
        others = {(other[1] or other[2]).upper() for other in _OTHERS.finditer(rest)} - {letter}
        if others or _SEVERAL.match(text[match.end(1) if match[1] else 1 :]) or _WRONG.match(rest):
            return None
        return Choice(letter, "" if match[3] else rest.strip())
    stated = None
    for match in _STATED.finditer(text):
        stated = match
    if stated is None:
        return None
    bare, after = stated[1].strip("()"), text[stated.end() :]
    if not bare.isupper() and "(" not in stated[1]:
        return None  # "the answer is a prime"
    # "A" may be an article: "the answer is A dog".
    if bare == "A" and "(" not in stated[1] and re.match(r"\s+(?!because|since|as\b)[a-z]", after):
        return None
    sentence = re.split(r"[.!?;]\s", text[: stated.start()])[-1]
    if _NEGATED.search(sentence) or _SEVERAL.match(after) or _WRONG.match(after):
        return None
    return Choice(bare.upper(), "")


def lists_choices(text: str) -> bool:
    """Whether a text that picks nothing has choices in it all the same: "A) 10 B) 12"."""
    return _MARKED.match(text) is not None or _OTHERS.search(text) is not None

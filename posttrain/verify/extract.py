"""Find the answer in a text. Every search is linear in the text, however odd the text is.

What counts is the last complete answer outside of the reasoning: in the text after the last </think>, and not
behind a <think> that was never closed. An answer corrected by another is no answer any more; half of one
(\\boxed{7) is none. Only last_number, the lenient form, looks everywhere.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

from posttrain.types import PosttrainError
from posttrain.words import after_reasoning, did_you_mean

Form = Literal["the_answer_is", "boxed", "answer_tag", "hashes", "any", "last_number"]
FORMS: tuple[str, ...] = get_args(Form)
STRICT: tuple[Form, ...] = ("the_answer_is", "boxed", "answer_tag", "hashes")

WINDOW = 20_000  # characters at the end of a text that are searched; an answer stands at the end
LONGEST = 300  # characters in an answer given as a line; more is a story

_ANSWER_LINE = re.compile(r"[ \t>*_#-]*the\s+(?:final\s+)?answer\s+is[*_ ]*:[*_ ]*(.+)", re.IGNORECASE)
_HASHES_LINE = re.compile(r"[ \t]*####[ \t]*(.+)")
# "The answer is" within a box or a tag is read over, plain or as \text{…}.
_LEAD = re.compile(
    r"(?:\\text\s*\{\s*)?(?:(?:so|thus|hence|therefore),?\s+)?(?:(?:the|my)\s+)?(?:(?:final|correct|right)\s+)?"
    r"answer\s*(?:is\s*:?|:)\s*(?:\}\s*)?(?!not\b)(?=\S)",
    re.IGNORECASE,
)
_SENTENCE = re.compile(r"\banswer[*_ ]*(?:\s+is\b|\s*:)[*_ ]*:?[*_ ]*(?=[^\s*_:])", re.IGNORECASE)
_SENTENCE_END = re.compile(r"\n|[.!?](?=\s|\*|$)|,?\s+(?:because|since|as)\s", re.IGNORECASE)
_BRACES = re.compile(r"\\[{}]|\\boxed\s*\{|[{}]")
# A number that is no part of a word, an exponent or another number; "10-3" holds 10 and 3, "is -3" holds -3.
# Possessive (++) digits keep it linear. "1e999" is left out whole, rather than read as 1.
_NUMBER = re.compile(
    r"(?:(?<![A-Za-z_\d)\]}%])[-\u2212])?(?<![A-Za-z_\d^])(?<!\^\{)(?<!\d\.)\$?"
    r"(?:\\[dt]?frac\{\d++\}\{\d++\}"
    r"|(?:\d{1,3}(?:,\d{3})+(?!\d)|\d++)(?:\.\d++)?(?:[eE][+-]?\d{1,3}(?!\d))?(?![eE][+-]?\d)"
    r"(?:/\d++(?!\.\d|/))?"
    r"|\.\d++)(?: ?\\?%)?"
)


class Found(NamedTuple):
    """An answer and its place in the text: text[start:end] is the whole form, wrapping included."""

    answer: str
    start: int
    end: int


def text_of(completion: str | Sequence[dict[str, Any]]) -> str:
    """The text of a completion as TRL hands it over: a string, or messages [{"role", "content"}, ...].

    Of several messages, the assistant's are joined by newlines.
    """
    if isinstance(completion, str):
        return completion
    texts = [_content(message) for message in completion if message.get("role", "assistant") == "assistant"]
    return "\n".join(texts)


def _content(message: dict[str, Any]) -> str:
    content = message.get("content") or ""
    if isinstance(content, str):
        return content
    return "".join(part.get("text", "") for part in content)


def extract(text: str, form: Form) -> str | None:
    """The answer that `text` gives in `form`, or None where it gives none.

    - the_answer_is: the last line is "The answer is: N"
    - hashes: the last line is "#### N"
    - boxed: the last \\boxed{N}
    - answer_tag: the last <answer>N</answer>
    - any: whichever of these four stands last; where there is none, the last "the answer is N" or "answer: N"
    - last_number: the last number anywhere (lenient)

    Raises PosttrainError for a form that does not exist.
    """
    found = locate(text, form)
    return found.answer if found else None


def ends_in_form(text: str, form: Form) -> bool:
    """Whether the text ends with an answer in `form`, followed by punctuation at most."""
    found = locate(text, form)
    return found is not None and not text[found.end :].strip(" \t\r\n.$*)]\\")


def working(text: str) -> str:
    """The text before its final answer, whichever strict form that has; the whole text if it has none."""
    places = [found.start for form in STRICT if (found := locate(text, form))]
    return text[: min(places)] if places else text


def gold_of(answer: Any) -> str:
    """The bare gold answer: data sets give it as a number, alone, or at the end of a worked solution.

    A gold answer that is an object or a list is its JSON.
    """
    text = json.dumps(answer) if isinstance(answer, dict | list) else str(answer).strip()
    found = locate(text, "hashes") or locate(text, "boxed")
    return found.answer if found else text


def locate(text: str, form: Form) -> Found | None:
    """The final answer of `form` with its place, or None. Raises PosttrainError for an unknown form."""
    finder = _FINDERS.get(form)
    if finder is None:
        hint = did_you_mean(form, FORMS, " Did you mean")
        raise PosttrainError(f"There is no answer form {form!r}.{hint} The forms are: {', '.join(FORMS)}.")
    start, end = (0, len(text)) if form == "last_number" else outside_reasoning(text)
    offset = max(start, end - WINDOW)
    found = finder(text[offset:end])
    if found is None or (offset > start and found.start == 0):  # at the cut it may be half an answer
        return None
    answer = found.answer.strip()
    if form != "last_number":
        answer = _without_lead(answer)
    if not answer:
        return None
    return Found(answer, found.start + offset, found.end + offset)


def outside_reasoning(text: str) -> tuple[int, int]:
    """(start, end) of where a strict answer counts: after the last </think>, before an open <think>."""
    start = len(text) - len(after_reasoning(text))
    opened = text.find("<think>", start)
    return start, opened if opened >= 0 else len(text)


def _without_lead(answer: str) -> str:
    lead = _LEAD.match(answer)
    return answer[lead.end() :].strip() if lead else answer


def _last_line(text: str, pattern: re.Pattern[str]) -> Found | None:
    end = len(text.rstrip())
    start = text.rfind("\n", 0, end) + 1
    match = pattern.fullmatch(text, start, end)
    if match is None:
        return None
    answer = match[1].strip(" \t*_")
    if len(answer) > LONGEST:
        return None
    inner = _boxed(answer)
    return Found(inner.answer if inner else answer, start, end)


def _boxed(text: str) -> Found | None:
    opened: list[tuple[int, int] | None] = []  # for each open brace: (start of \boxed, start of its content)
    found = None
    for match in _BRACES.finditer(text):
        token = match[0]
        if token.startswith("\\boxed"):
            opened.append((match.start(), match.end()))
        elif token == "{":
            opened.append(None)
        elif token == "}" and opened and (box := opened.pop()):
            # A box around a box closes after it: it gives the place, the inner one the answer.
            nested = found is not None and found.start >= box[1]
            answer = found.answer if found and nested else text[box[1] : match.start()]
            found = Found(answer, box[0], match.end())
    return found


def _answer_tag(text: str) -> Found | None:
    close = text.rfind("</answer>")
    start = text.rfind("<answer>", 0, max(close, 0))
    if start < 0:
        return None
    answer = text[start + len("<answer>") : close]
    inner = _boxed(answer)
    return Found(inner.answer if inner else answer, start, close + len("</answer>"))


def _any(text: str) -> Found | None:
    places = [place for finder in _STRICT.values() if (place := finder(text)) and place.answer.strip()]
    return max(places, key=lambda place: place.end) if places else _sentence(text)


def _sentence(text: str) -> Found | None:
    last = None
    for match in _SENTENCE.finditer(text):
        last = match
    if last is None:
        return None
    stop = _SENTENCE_END.search(text, last.end())
    end = stop.start() if stop else len(text)
    answer = text[last.end() : end].strip(" \t*_")
    return Found(answer, last.start(), end) if len(answer) <= LONGEST else None


def _last_number(text: str) -> Found | None:
    last = None
    for match in _NUMBER.finditer(text):
        last = match
    return Found(last[0], last.start(), last.end()) if last else None


_STRICT = {
    "the_answer_is": lambda text: _last_line(text, _ANSWER_LINE),
    "hashes": lambda text: _last_line(text, _HASHES_LINE),
    "boxed": _boxed,
    "answer_tag": _answer_tag,
}
_FINDERS = {**_STRICT, "any": _any, "last_number": _last_number}

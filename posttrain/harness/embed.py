"""What page.js shows of the samples: lists instead of objects, because a page holds thousands of them.

    {"sides": [label, …], "tasks": [name, …], "questions": [QUESTION, …]}
    QUESTION = [task's index, id, question, answer or null, change, [[SAMPLE, …] of each side], PICTURES]
    SAMPLE = [number, completion, tokens or null, finish, judged, extracted or null, start, end, note, alike,
              cuts]

judged: an index into readback.JUDGEMENTS. start, end: of the extracted answer in the completion, -1 without;
they count UTF-16 units, as JavaScript does. alike: how many of the question's samples gave this answer.
cuts: [[place in the completion, characters left out there], …], of texts that are too long to show.
change: "" or, between two evaluations, "gained", "lost".
PICTURES: [index into "pictures", …], left out where there are none; there each is a data URI, once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from posttrain.evaluate.charts import visible
from posttrain.evaluate.thumbnails import address, small
from posttrain.harness.readback import JUDGEMENTS, Question, Sample
from posttrain.picture import Picture
from posttrain.types import PosttrainError

LONGEST = 20_000  # characters of one completion on the page
MOST = 30_000_000  # characters of all of them: a browser opens that in a second or two
LEAST = 600  # and of each, however many there are
THUMBNAILS = 500  # pictures in one page
SHORT = 4_000  # characters of a question, an answer, a reason


def limit(samples: Sequence[Sample]) -> int:
    """Characters of a completion to show, so that all of them fit the page."""
    lengths = [len(sample.completion) for sample in samples]
    allowed = LONGEST
    while allowed > LEAST and sum(min(length, allowed) for length in lengths) > MOST:
        allowed = max(LEAST, allowed * 3 // 4)
    return allowed


class Pictures:
    """The pictures of a page, each once and small; `left_out` counts those that are too many, or gone."""

    def __init__(self):
        self.addresses: list[str] = []
        self.left_out = 0
        self._known: dict[Any, int] = {}

    def of(self, one: Question) -> list[int]:
        """The places of a question's pictures in `addresses`."""
        return [place for cell in one.pictures if (place := self._place(cell, one.id)) is not None]

    def _place(self, cell: Any, id: str) -> int | None:
        try:
            picture = Picture.of(cell, id)
            place = self._known.get(picture)
            if place is None and len(self.addresses) < THUMBNAILS:
                data, kind, _ = small(picture)
                place = self._known[picture] = len(self.addresses)
                self.addresses.append(address(data, kind))
        except PosttrainError:
            place = None
        self.left_out += place is None
        return place


def question(
    task: int,
    one: Question,
    sides: Sequence[Sequence[Sample]],
    allowed: int,
    change: str = "",
    pictures: Sequence[int] = (),
) -> list[Any]:
    gold = None if one.answer is None else short(one.answer)
    shown = []
    for samples in sides:
        groups = Counter(sample.group for sample in samples if sample.group is not None)
        shown.append([_sample(sample, groups, allowed) for sample in samples])
    return [task, short(one.id), short(one.text), gold, change, shown, *([[*pictures]] if pictures else [])]


def short(text: str) -> str:
    left = len(text) - SHORT
    shown = visible(text[:SHORT].replace("\r\n", "\n"))
    return f"{shown} … {left:,} more characters" if left > 0 else shown


def _sample(sample: Sample, groups: Counter[int], allowed: int) -> list[Any]:
    text, span, cuts = shorten(sample.completion, sample.span, allowed)
    text = visible(text.replace("\r\n", " \n"))  # as many characters: the places stay
    start, end = span or (-1, -1)
    return [
        sample.number,
        text,
        sample.tokens,
        sample.finish,
        JUDGEMENTS.index(sample.judged),
        None if sample.extracted is None else short(sample.extracted),
        _units(text, start),
        _units(text, end),
        short(sample.note),
        groups[sample.group] if sample.group is not None else 0,
        [[_units(text, at), left] for at, left in cuts],
    ]


def shorten(
    text: str, span: tuple[int, int] | None, allowed: int
) -> tuple[str, tuple[int, int] | None, list[tuple[int, int]]]:
    """At most `allowed` characters: the beginning, and the part around the answer, or the end without one.

    -> the text without the rest, the answer's place in it, [(place, characters left out there)]
    """
    if len(text) <= allowed:
        return text, span, []
    head, tail = allowed // 3, allowed - allowed // 3
    stop = len(text) if span is None else min(len(text), max(span[1] + tail // 4, allowed))
    begin = max(stop - tail, head)
    cuts = [(head, begin - head), (head + stop - begin, len(text) - stop)]
    shown = text[:head] + text[begin:stop]
    if span is not None:
        start, end = (x if x <= head else x - (begin - head) for x in span)
        span = (start, end) if span[1] <= head or span[0] >= begin else None
    return shown, span, [(at, left) for at, left in cuts if left > 0]


def _units(text: str, at: int) -> int:
    """A place counted in UTF-16 units: characters beyond U+FFFF are two of them."""
    return at if at < 0 or text.isascii() else len(text[:at].encode("utf-16-le")) // 2

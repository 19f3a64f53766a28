"""The pictures of a page: each stands in it once, and is drawn wherever a sample shows it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from posttrain.evaluate.drawn import Marks, marks
from posttrain.evaluate.metrics import number
from posttrain.evaluate.runfolder import Record
from posttrain.evaluate.thumbnails import LOOKED, NAME, SIDE, kept

MOST = 80  # pictures in one page
EACH = 4  # and of one question
COARSE = 96  # pixels; a smaller picture keeps its edges when it is enlarged
WIDTH = 10_000  # pixels: no picture of a sample is larger
_DIGEST = re.compile(f"[0-9a-f]{{{NAME}}}")
KEY = '<span class="key true">right</span> <span class="key said">said</span>'


class Shown:
    """Collects what the samples of a page show.

    folders: of the runs that may hold the pictures. Without any, samples show nothing.
    """

    def __init__(self, folders: Sequence[Path] = ()):
        self.folders = folders
        self.found: dict[str, str | None] = {}
        self.boxes = self.heat = False
        self.left_out = 0

    def asked(self, record: Record) -> str:
        """A question's pictures, with the box that is right where it asks for one."""
        shown = [self._one(one, _marks(record, one, said=False)) for one in _pictures(record)[:EACH]]
        more = len(_pictures(record)) - EACH
        told = f'<span class="empty">and {more} more</span>' if more > 0 and any(shown) else ""
        return f'<div class="pictures">{"".join(shown)}{told}</div>' if any(shown) else ""

    def said(self, record: Record) -> str:
        """A completion's picture: with the boxes that it names, and with where the model looked."""
        parts = []
        for one in _pictures(record)[:EACH]:
            drawn = _marks(record, one, said=True)
            if drawn.predicted or drawn.point:
                parts.append(self._one(one, drawn))
        looked = record.get("looked")
        if isinstance(looked, str) and LOOKED.fullmatch(looked) and (data := self._data(looked)):
            self.heat = True
            parts.append(f'<img src="{data}" alt="Where the model looked" class="looked">')
        return f'<div class="pictures">{"".join(parts)}</div>' if any(parts) else ""

    def about(self) -> str:
        """What the drawings mean, and what is missing, as HTML; "" where nothing is drawn."""
        told = []
        if self.boxes:
            told.append(f"Boxes: {KEY}.")
        if self.heat:
            told.append(
                "Orange: patches that weighed most in the completion's probability (gradient × input)."
            )
        if self.left_out:
            told.append(f"Of the pictures, {MOST} are shown.")
        return f'<p class="about drawn">{" ".join(told)}</p>' if told else ""

    def definitions(self) -> str:
        """The pictures themselves, to stand in the page once."""
        symbols = "".join(
            f'<symbol id="p-{name}" viewBox="0 0 1 1" preserveAspectRatio="none">'
            f'<image href="{data}" width="1" height="1" preserveAspectRatio="none"/></symbol>'
            for name, data in self.found.items()
            if data and _DIGEST.fullmatch(name)
        )
        return f'<svg class="held" width="0" height="0" aria-hidden="true">{symbols}</svg>' if symbols else ""

    def _one(self, picture: Record, drawn: Marks) -> str:
        if not self._data(picture["digest"]):
            return ""
        width, height = picture["size"]
        scale = max(width, height) / SIDE  # pixels of the picture in one of the page
        lines = "".join(_box(box, "true") for box in drawn.true)
        lines += "".join(_box(box, "said") for box in drawn.predicted)
        if drawn.point is not None:
            x, y = drawn.point
            place = f'cx="{x:g}" cy="{y:g}" r="{4 * scale:g}"'
            lines += f'<circle class="under" {place}/><circle class="said" {place}/>'
        self.boxes |= bool(lines)
        coarse = " coarse" if max(width, height) <= COARSE else ""
        words = "The picture" + (", with boxes" if lines else "")
        return (
            f'<svg class="picture{coarse}" viewBox="0 0 {width:g} {height:g}" role="img" '
            f'aria-label="{words}" width="{width / scale:.0f}" height="{height / scale:.0f}">'
            f'<use href="#p-{picture["digest"]}" width="{width:g}" height="{height:g}"/>{lines}</svg>'
        )

    def _data(self, name: str) -> str | None:
        if name not in self.found:
            if len(self.found) >= MOST:
                self.left_out += 1
                return None
            data = (kept(folder, name) for folder in self.folders)
            self.found[name] = next((one for one in data if one), None)
        return self.found[name]


def _box(box: Sequence[float], css: str) -> str:
    x1, y1, x2, y2 = box
    place = f'x="{x1:g}" y="{y1:g}" width="{x2 - x1:g}" height="{y2 - y1:g}"'
    return f'<rect class="under" {place}/><rect class="{css}" {place}/>'


def _marks(record: Record, picture: Record, said: bool) -> Marks:
    if len(_pictures(record)) != 1:
        return Marks()
    found = marks(record, picture["size"])
    return found if said else Marks(found.true)


def _pictures(record: Record) -> list[dict[str, Any]]:
    """What a sample says of its pictures, where that can be shown: it is data, as the rest of the sample."""
    listed = record.get("pictures")
    found = []
    for one in listed if isinstance(listed, list) else []:
        digest, size = (one.get("digest"), one.get("size")) if isinstance(one, dict) else (None, None)
        ends = [number(end) for end in size] if isinstance(size, list) else []
        if isinstance(digest, str) and _DIGEST.fullmatch(digest) and len(ends) == 2:
            known = [end for end in ends if end is not None and 1 <= end <= WIDTH]
            found += [{"digest": digest, "size": tuple(known)}] if len(known) == 2 else []
    return found

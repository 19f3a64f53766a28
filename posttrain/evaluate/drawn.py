"""Boxes and points that answers name, in pixels of their picture."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from posttrain.boxes import Box, last_numbers, read_box
from posttrain.json_text import last_json
from posttrain.verify import extract
from posttrain.words import after_reasoning

MOST = 20  # boxes drawn of one answer
KEYS = ("box", "bbox", "bbox_2d")
Point = tuple[float, float]


@dataclass(frozen=True)
class Marks:
    """What to draw: the boxes that are right, and the boxes or the point that a completion names."""

    true: list[Box] = field(default_factory=list)
    predicted: list[Box] = field(default_factory=list)
    point: Point | None = None


def marks(record: dict[str, Any], size: tuple[int, int]) -> Marks:
    """Of a sample whose right answer is a box, or a list of them, within its picture; else nothing.

    The completion is read as the rewards iou, point and mean_ap read it. Numbers are pixels of the picture;
    shares of it where all of the right answer's are 0 to 1; per cent where the question has the word.
    """
    gold = _parsed(record.get("answer"))
    true = _boxes(gold)
    if not true:
        return Marks()
    width, height = _unit(true, str(record.get("prompt")), size)
    true = [_scaled(box, width, height) for box in true]
    if any(min(box) < 0 or box[2] > size[0] + 1 or box[3] > size[1] + 1 for box in true):
        return Marks()  # four numbers that mean something else
    text = str(record.get("completion") or "")
    if isinstance(gold, list) and read_box(gold) is None:
        try:
            named = _boxes(last_json(text))
        except ValueError:
            named = []
        return Marks(true, [_scaled(box, width, height) for box in named])
    said = extract(text, "answer_tag") or after_reasoning(text)
    box = read_box(last_numbers(said, 4))
    if box is not None:
        return Marks(true, [_scaled(box, width, height)])
    point = last_numbers(said, 2)
    return Marks(true, [], None if point is None else (point[0] * width, point[1] * height))


def _parsed(answer: object) -> Any:
    if not isinstance(answer, str):
        return answer
    try:
        return json.loads(answer)
    except (ValueError, RecursionError):
        return None


def _boxes(value: Any) -> list[Box]:
    """A box, or a list of them or of objects that hold one each."""
    if (one := read_box(value)) is not None:
        return [one]
    found = []
    for item in value if isinstance(value, list) else []:
        if isinstance(item, dict):
            item = next((item[key] for key in KEYS if key in item), None)
        found.append(read_box(item))
    return [box for box in found if box is not None][:MOST]


def _unit(boxes: list[Box], prompt: str, size: tuple[int, int]) -> tuple[float, float]:
    """Pixels that a box's 1 stands for, across and down."""
    if all(number <= 1 for box in boxes for number in box):
        return float(size[0]), float(size[1])
    if "percent" in prompt.lower() or "per cent" in prompt.lower():
        return size[0] / 100, size[1] / 100
    return 1.0, 1.0


def _scaled(box: Box, width: float, height: float) -> Box:
    return box[0] * width, box[1] * height, box[2] * width, box[3] * height

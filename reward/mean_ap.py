"""COCO's average precision of the named boxes, 0.0 to 1.0; None for a row without a gold answer.

The completion's last JSON value is a list of {"box": [x1, y1, x2, y2], "label": …, "score": …}; `answer` is
such a list too, or its JSON. "bbox" and "bbox_2d" are read as "box". Of equal scores, or where there are
none, the first written counts as the surest. At each threshold (0.5, 0.55, … 0.95) a box is right where it
overlaps a gold box of its label that no surer one has taken; precision is read at 101 recalls, as COCO
does.

The mean is over the labels of both lists: one that only the completion names is worth 0, so naming many
labels costs, where averages over the gold labels alone would let them pass. Nothing named is 1.0 where
there is nothing, else 0.0. Boxes follow posttrain/boxes.py (no swapped corners; one convention on both
sides). A malformed list, or more than 300 boxes, is worth 0.0.
"""

import json
import math

from posttrain.boxes import overlap, read_box
from posttrain.json_text import last_json
from posttrain.types import PosttrainError
from posttrain.verify import text_of

THRESHOLDS = [(10 + i) / 20 for i in range(10)]
RECALLS = [i / 100 for i in range(101)]
MOST = 300
KEYS = ("box", "bbox", "bbox_2d")


def mean_ap(completions, answer, **columns):
    def judge(completion, gold):
        if gold is None:
            return None
        truth = named(json.loads(gold) if isinstance(gold, str) else gold)
        try:
            return score(named(last_json(text_of(completion))), truth)
        except ValueError:
            return 0.0

    def read(completion, gold):
        try:
            return judge(completion, gold)
        except ValueError as error:
            raise PosttrainError(f"the answer {str(gold)[:80]!r} is no list of boxes: {error}") from None

    return [read(completion, gold) for completion, gold in zip(completions, answer, strict=True)]


def named(value):
    """label -> [(box, score)], the surest first. Raises ValueError where the value is no list of boxes."""
    if not isinstance(value, list) or len(value) > MOST:
        raise ValueError("not a list, or a long one")
    found: dict[str, list] = {}
    for item in value:
        if not isinstance(item, dict) or not isinstance(item.get("label"), str):
            raise ValueError("an item has no label")
        box = read_box(next((item[key] for key in KEYS if key in item), None))
        if box is None:
            raise ValueError("an item has no box")
        sure = item.get("score", 1.0)
        if isinstance(sure, bool) or not isinstance(sure, int | float) or not math.isfinite(sure):
            raise ValueError("a score is no number")
        found.setdefault(item["label"].strip().casefold(), []).append((box, sure))
    return {label: sorted(boxes, key=lambda pair: -pair[1]) for label, boxes in found.items()}


def score(found, truth):
    labels = found.keys() | truth.keys()
    if not labels:
        return 1.0
    both = found.keys() & truth.keys()
    return sum(average_precision(found[label], truth[label]) for label in both) / len(labels)


def average_precision(found, truth):
    overlaps = [[overlap(box, gold) for gold, _ in truth] for box, _ in found]
    return sum(at(threshold, overlaps, len(truth)) for threshold in THRESHOLDS) / len(THRESHOLDS)


def at(threshold, overlaps, count):
    """Average precision at one threshold; `overlaps` has a row for each named box, `count` gold ones wide."""
    free = set(range(count))
    precisions, recalls, right = [], [], 0
    for tried, row in enumerate(overlaps, start=1):
        best = max(free, key=lambda gold: row[gold], default=None)
        if best is not None and row[best] >= threshold - 1e-9:
            free.remove(best)
            right += 1
        precisions.append(right / tried)
        recalls.append(right / count)
    for i in range(len(precisions) - 2, -1, -1):  # the best precision at this recall or a higher one
        precisions[i] = max(precisions[i], precisions[i + 1])
    total, i = 0.0, 0
    for recall in RECALLS:
        while i < len(recalls) and recalls[i] < recall - 1e-9:
            i += 1
        if i == len(recalls):
            break
        total += precisions[i]
    return total / len(RECALLS)

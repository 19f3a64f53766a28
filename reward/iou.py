"""Intersection over union of the named box and the gold box, 0.0 to 1.0; None without a gold answer.

The box is the last [x1, y1, x2, y2] in <answer>…</answer>, or where there is no such tag, after the
reasoning. Both boxes are in pixels, or both in shares of the image (0 to 1), as the prompt has to say:
nothing is converted. A box with swapped corners, without area, or with anything else than four plain
numbers is worth 0.0.

`threshold` pays 1.0 from that overlap on, and 0.0 below.
"""

from posttrain.boxes import gold_box, last_numbers, overlap, read_box
from posttrain.types import PosttrainError
from posttrain.verify import extract, text_of
from posttrain.words import after_reasoning


def iou(completions, answer, threshold: float | None = None, **columns):
    if threshold is not None and not 0 < threshold <= 1:
        raise PosttrainError(f"threshold is {threshold}: choose more than 0, and at most 1")

    def judge(completion, gold):
        if gold is None:
            return None
        target = gold_box(gold)
        text = text_of(completion)
        box = read_box(last_numbers(extract(text, "answer_tag") or after_reasoning(text), 4))
        value = overlap(box, target) if box else 0.0
        return value if threshold is None else float(value >= threshold)

    return [judge(completion, gold) for completion, gold in zip(completions, answer, strict=True)]

"""1.0 where the named point lies in the gold box or on its edge, else 0.0; None without a gold answer.

The point is the last (x, y) or [x, y] in <answer>…</answer>, or where there is no such tag, after the
reasoning. The gold box is [x1, y1, x2, y2]. Both are in pixels, or both in shares of the image (0 to 1), as
the prompt has to say: nothing is converted.
"""

from posttrain.boxes import gold_box, last_numbers
from posttrain.verify import extract, text_of
from posttrain.words import after_reasoning


def point(completions, answer, **columns):
    def judge(completion, gold):
        if gold is None:
            return None
        x1, y1, x2, y2 = gold_box(gold)
        text = text_of(completion)
        found = last_numbers(extract(text, "answer_tag") or after_reasoning(text), 2)
        return 1.0 if found and x1 <= found[0] <= x2 and y1 <= found[1] <= y2 else 0.0

    return [judge(completion, gold) for completion, gold in zip(completions, answer, strict=True)]

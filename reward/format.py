"""1.0 where the completion is <think>…</think> then <answer>…</answer>, as R1's, else 0.0; never None.

Each tag once, in this order, both parts filled, and only white space around them. `soft` allows any text
before, between and after the two parts, and asks for all the rest.
"""

from posttrain.verify import text_of

TAGS = ("<think>", "</think>", "<answer>", "</answer>")


def format(completions, soft: bool = False, **columns):
    return [1.0 if is_laid_out(text_of(completion), soft) else 0.0 for completion in completions]


def is_laid_out(text, soft):
    if any(text.count(tag) != 1 for tag in TAGS):
        return False
    parts = []  # before, thought, between, answer, after
    for tag in TAGS:
        part, found, text = text.partition(tag)
        if not found:  # the tags stand in another order
            return False
        parts.append(part.strip())
    before, thought, between, answer = parts
    return bool(thought) and bool(answer) and (soft or not (before or between or text.strip()))

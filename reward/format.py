"""1.0 where the completion is <think>…</think> then <answer>…</answer>, as R1's, else 0.0; never None.

Strict: each tag once, both parts filled, only white space around them.
"""

import re

from posttrain.verify import text_of

LAYOUT = re.compile(r"\s*<think>(.*)</think>\s*<answer>(.*)</answer>\s*", re.DOTALL)
TAGS = ("<think>", "</think>", "<answer>", "</answer>")


def format(completions, **columns):
    def is_laid_out(text):
        match = LAYOUT.fullmatch(text) if all(text.count(tag) == 1 for tag in TAGS) else None
        return match is not None and bool(match[1].strip()) and bool(match[2].strip())

    return [1.0 if is_laid_out(text_of(completion)) else 0.0 for completion in completions]

"""Costs repeated n-grams: from 0.0 (none repeated) down to `max_penalty`; 0.0 for shorter texts, never None.

The penalty is `max_penalty` times the share of n-grams that stood in the text before, as in arXiv
2502.03373, which charges it to the tokens it falls on; here the whole completion bears it. Words are
compared without regard to capitals; where a script has no spaces between words (Chinese, Japanese, Thai and
others), each character counts as a word. Of a very long text the first 200,000 characters are read.
"""

from posttrain.types import PosttrainError
from posttrain.verify import text_of
from posttrain.words import words

LONGEST = 200_000


def repetition(completions, n: int = 3, max_penalty: float = -1.0, **columns):
    if n < 1:
        raise PosttrainError(f"n is {n}: it has to be at least 1")
    if max_penalty > 0:
        raise PosttrainError(f"max_penalty is {max_penalty}: a penalty is negative, or 0")

    def cost(text):
        said = words(text[:LONGEST].casefold())
        total = len(said) - n + 1
        if total < 1:
            return 0.0
        distinct = len(set(zip(*(said[i:] for i in range(n)), strict=False)))
        return (1 - distinct / total) * max_penalty if distinct < total else 0.0

    return [cost(text_of(completion)) for completion in completions]

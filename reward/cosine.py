"""Right answers earn less when long, wrong ones lose less: -10.0 to 2.0; None without a gold answer.

The cosine length scaling of arXiv 2502.03373, section 4.2, with its values: a right answer earns
`correct_at_0` for no tokens and `correct_at_max` at `max_tokens`, a wrong one `wrong_at_0` and
`wrong_at_max`, and between the two the reward follows half a cosine wave. A completion of `max_tokens` or
more was cut off: `exceed`, right or wrong. Lengths are in tokens, as the limit is; correctness is asked for
in the answer's `form`, as in accuracy.

A wrong answer has to cost more when it is short, or giving up at once is the cheapest way to be wrong:
values the other way round are refused.
"""

import math

from posttrain.types import PosttrainError
from posttrain.verify import Form, load_algebra, text_of, verify

load_algebra()  # formulas are compared: not on the first call's time


def cosine(
    completions,
    completion_ids,
    answer,
    max_tokens: int,
    form: Form = "the_answer_is",
    correct_at_0: float = 2.0,
    correct_at_max: float = 1.0,
    wrong_at_0: float = -10.0,
    wrong_at_max: float = 0.0,
    exceed: float = -10.0,
    **columns,
):
    if max_tokens < 1:
        raise PosttrainError(f"max_tokens is {max_tokens}: it has to be at least 1")
    if wrong_at_0 > wrong_at_max:
        raise PosttrainError(
            f"wrong_at_0 ({wrong_at_0}) is above wrong_at_max ({wrong_at_max}): "
            "short wrong answers would cost least"
        )

    def pay(completion, ids, gold):
        if gold is None:
            return None
        if len(ids) >= max_tokens:
            return float(exceed)
        right = verify(text_of(completion), gold, form).correct
        start, end = (correct_at_0, correct_at_max) if right else (wrong_at_0, wrong_at_max)
        return end + (start - end) * (1 + math.cos(math.pi * len(ids) / max_tokens)) / 2

    return [pay(*row) for row in zip(completions, completion_ids, answer, strict=True)]

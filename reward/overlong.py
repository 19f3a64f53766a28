"""Costs completions that run into the limit: from 0.0 down to -1.0 at `max_tokens`, as DAPO shapes it.

A completion of at most `max_tokens` - `buffer` tokens costs nothing; over that the cost rises evenly
(arXiv 2503.14476, eq. 13). Without it a model that is paid for its steps may learn to add steps until it is
cut off, and then no completion of a group is ever better for having ended.
"""

from posttrain.types import PosttrainError


def overlong(completions, completion_ids, max_tokens: int, buffer: int, **columns):
    if not 0 < buffer <= max_tokens:
        raise PosttrainError(f"buffer is {buffer}: choose 1 to max_tokens ({max_tokens})")
    free = max_tokens - buffer
    return [-min(1.0, max(0, len(ids) - free) / buffer) for ids in completion_ids]

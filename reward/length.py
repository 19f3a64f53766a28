"""Short right answers are worth more than long ones: from -0.5 to 0.5; None for a row without a gold answer.

The length reward of Kimi k1.5 (arXiv 2501.12599, section 2.3.3). Among the completions of one prompt,
lambda = 0.5 - (tokens - fewest) / (most - fewest); a right answer gets lambda, a wrong one min(0, lambda): it
never gains by being short. 0.0 where all completions of a prompt are of one length, as one alone is.
Rows belong together where their prompts are the same. Add it to accuracy with a small weight, and not at the
start of a run: it slows learning down before answers are right.
"""

import json

from posttrain.verify import Form, text_of, verify


def length(completions, prompts, completion_ids, answer, form: Form = "the_answer_is", **columns):
    keys = [json.dumps(prompt, sort_keys=True, default=str) for prompt in prompts]
    lengths: dict[str, list[int]] = {}
    for key, ids in zip(keys, completion_ids, strict=True):
        lengths.setdefault(key, []).append(len(ids))

    def pay(completion, key, ids, gold):
        if gold is None:
            return None
        fewest, most = min(lengths[key]), max(lengths[key])
        if fewest == most:
            return 0.0
        value = 0.5 - (len(ids) - fewest) / (most - fewest)
        return value if value < 0 or verify(text_of(completion), gold, form).correct else 0.0

    return [pay(*row) for row in zip(completions, keys, completion_ids, answer, strict=True)]

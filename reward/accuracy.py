"""1.0 where the answer is right and in the asked-for form, else 0.0; None for a row without a gold answer.

`form` says how the answer has to be given: the_answer_is (a last line "The answer is: N"), boxed
(\\boxed{N}), answer_tag (<answer>N</answer>), hashes (a last line "#### N") or last_number (the last
number anywhere).
"""

from posttrain.verify import Form, text_of, verify


def accuracy(completions, answer, form: Form = "the_answer_is", **columns):
    def judge(completion, gold):
        if gold is None:
            return None
        return 1.0 if verify(text_of(completion), gold, form).correct else 0.0

    return [judge(completion, gold) for completion, gold in zip(completions, answer, strict=True)]

"""1.0 where the answer is right and in the asked-for form, else 0.0; None for a row without a gold answer.

`form` says how the answer has to be given: the_answer_is (a last line "The answer is: N"), boxed
(\\boxed{N}), answer_tag (<answer>N</answer>), hashes (a last line "#### N"), any (of these, the one that
stands last) or last_number (the last number anywhere). `loose` is paid where the last number anywhere is
right but the form is not: a model that does not know the form yet is told all the same when it is right.
"""

from posttrain.verify import Form, load_algebra, text_of, verify

load_algebra()  # formulas are compared: not on the first call's time


def accuracy(completions, answer, form: Form = "the_answer_is", loose: float = 0.0, **columns):
    def judge(completion, gold):
        if gold is None:
            return None
        text = text_of(completion)
        if verify(text, gold, form).correct:
            return 1.0
        return loose if loose and verify(text, gold, "last_number").correct else 0.0

    return [judge(completion, gold) for completion, gold in zip(completions, answer, strict=True)]

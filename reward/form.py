"""1.0 where the completion ends with an answer in the asked-for form, right or wrong, else 0.0; never None.

Worth a little beside accuracy: a model that never hits the form never learns that its answers count.
"""

from posttrain.verify import Form, ends_in_form, text_of


def form(completions, form: Form = "the_answer_is", **columns):
    return [1.0 if ends_in_form(text_of(completion), form) else 0.0 for completion in completions]

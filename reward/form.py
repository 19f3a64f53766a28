"""1.0 where the completion ends with an answer in the asked-for form, right or wrong, else 0.0; never None.

Worth a little beside accuracy: a model that never hits the form never learns that its answers count. Paid
for the form alone, a small model may learn to answer at once and drop its working; `worked` pays only where a
step that holds, such as "3 + 4 = 7", stands before the answer.
"""

from posttrain.verify import Form, ends_in_form, text_of
from posttrain.verify.equations import has_step


def form(completions, form: Form = "the_answer_is", worked: bool = False, **columns):
    def pays(text):
        return ends_in_form(text, form) and (not worked or has_step(text))

    return [float(pays(text_of(completion))) for completion in completions]

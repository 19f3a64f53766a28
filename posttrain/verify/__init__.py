"""What is an answer, and is it right. No torch, and no sympy until an answer is not a plain number.

`verify` is what rewards and evaluation share; its parts are usable alone.
Comparing formulas runs a computer-algebra system on text that a model wrote: call `verify` and `equal` where
they can be killed (`posttrain.rewards` does).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from posttrain.verify.compare import Rule, compare, equal
from posttrain.verify.equations import has_step
from posttrain.verify.extract import FORMS, Form, ends_in_form, extract, gold_of, text_of, working

__all__ = [
    "FORMS",
    "Form",
    "Verdict",
    "ends_in_form",
    "equal",
    "extract",
    "gold_of",
    "has_step",
    "load_algebra",
    "text_of",
    "verify",
    "working",
]


@dataclass(frozen=True)
class Verdict:
    """Whether a completion is right, what was read from it, and which rule decided.

    `extracted` is None, and `rule` is "missing", when the text does not answer in the asked-for form.
    Where no rule may decide, `rule` is "undecided", `reason` says why, and `correct` is False.
    """

    correct: bool
    extracted: str | None
    rule: Rule
    reason: str = ""


def load_algebra() -> None:
    """Load computer algebra now, in a third of a second to one, and not when the first formula comes.

    A reward that compares formulas calls this as it is imported: its deadline counts calls alone.
    """
    from posttrain.verify.algebra import configuration

    configuration()


def verify(text: str, gold: Any, form: Form) -> Verdict:
    """Judge a completion's text: its answer, given in `form`, against the gold answer.

    `gold` may be a number, an answer ("12"), or a whole solution that ends in "#### 12" or holds \\boxed{12}.

    Example: verify("2 + 2 = 4\\nThe answer is: 4", "4", "the_answer_is") -> Verdict(True, "4", "number")
    """
    extracted = extract(text, form)
    if extracted is None:
        return Verdict(False, None, "missing")
    correct, rule, reason = compare(extracted, gold_of(gold))
    return Verdict(correct, extracted, rule, reason)

"""Pays for worked steps that hold: from 0.0 (none) to 1.0 (`want` or more, all of them right); never None.

A step is an equation before the final answer, such as "3 + 4 = 7". The reward is the share of the steps
that hold, times min(1, how many hold / `want`). A step written twice counts once, and "7 + 0 = 7" is
none.

`ground` leaves out steps made of numbers from nowhere: each number in a step must stand in the prompt or
be the result of an earlier step that holds. It suits sums, where all numbers are given; not word
problems, which also need the 60 minutes of an hour.
"""

from posttrain.verify import text_of, working
from posttrain.verify.equations import equations, numbers


def steps(completions, prompts=None, want: int = 1, ground: bool = False, **columns):
    def pay(completion, prompt):
        found = equations(working(text_of(completion)))
        if ground:
            found = grounded(found, numbers(question_of(prompt)))
        hold = sum(equation.holds for equation in found)
        return hold / len(found) * min(1.0, hold / want) if found else 0.0

    return [pay(*row) for row in zip(completions, prompts or [""] * len(completions), strict=True)]


def grounded(found, known):
    kept = []
    for equation in found:
        if all(operand in known for operand in equation.operands):
            kept.append(equation)
            if equation.holds:
                known = known | {abs(equation.stated)}
    return kept


def question_of(prompt):
    if isinstance(prompt, str):
        return prompt
    return "\n".join(
        text_of([{**message, "role": "assistant"}]) for message in prompt if message["role"] == "user"
    )

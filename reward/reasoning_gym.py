"""What reasoning-gym's own scorer gives the answer, 0.0 to 1.0; None for rows of none of its tasks.

The task is the one that a row's `metadata` names as "source_dataset", as rows made by reasoning-gym do; the
scorer runs with the task's default settings. The answer is looked for in `form`, as in accuracy. Many
scorers pay a little for wrong answers, and for long ones that hold the right one: `strict` pays only what
earns full marks.

Rows that do not name their task get it from the argument `task`. A scorer that fails on an odd answer has
found it wrong. Not-a-number and infinity, which some scorers give full marks, are wrong too.

Refused are tasks whose scorer runs the answer as Python (`eval`, sympy's parser), tasks whose scorer gives
wrong answers full marks, and rows whose own fields a scorer would run and that are more than numbers.
"""

import re
from functools import lru_cache

from posttrain.types import PosttrainError
from posttrain.verify import Form, extract, text_of
from posttrain.words import did_you_mean

LONGEST = 5000  # characters of an answer
# Read from reasoning-gym 0.1.25.
RUNS_THE_ANSWER = {
    "binary_matrix", "countdown", "intermediate_integration", "n_queens", "polynomial_multiplication",
    "puzzle24", "simple_integration", "spiral_matrix", "string_insertion",
}  # fmt: skip
TAKES_WRONG_ANSWERS = {
    "coin_flip",  # the share of equal digits in the shorter number: "0" is right for 0.3125
    "game_of_life_halting",  # bool("False") is True: every answer
}
# Rows that come from elsewhere could hold anything in these.
RUNS_THE_ROW = {
    "bitwise_arithmetic": lambda entry: entry["metadata"].get("problem"),
    "number_sorting": lambda entry: entry["answer"],
}
NUMBERS = re.compile(r"(?:0[xX][\da-fA-F]++|\d++(?:\.\d++)?|[\s\[\](),'\"+\-&|^~]|\*(?!\*)|<<|>>)*+")
NOT_FINITE = re.compile(r"(?<![a-z])(?:nan|inf|infinity)[ij]?(?![a-z])", re.IGNORECASE)
EXPONENT = re.compile(r"[\s\d.,_+-]*[eE][+-]?\d{4,}\s*")


def reasoning_gym(
    completions,
    answer,
    metadata=None,
    form: Form = "answer_tag",
    strict: bool = False,
    task: str | None = None,
    **columns,
):
    rows = metadata if metadata is not None else [None] * len(completions)
    questions = columns.get("question") or [None] * len(completions)

    def judge(completion, gold, about, question):
        about = about if isinstance(about, dict) else {}
        name = about.get("source_dataset", task)
        if name is None:
            return None
        if name == "polynomial_equations" and not gold:  # no solution: it takes every text without a number
            return None
        entry = {"question": question, "answer": gold, "metadata": about}
        score = scorer(name)
        refuse(name, entry)
        said = extract(text_of(completion), form)
        if said is None or len(said) > LONGEST or NOT_FINITE.search(said) or endless(name, said):
            return 0.0
        try:
            value = float(score(said, entry))  # pyright: ignore[reportCallIssue] - annotated as taking none
        except Exception:  # whatever a scorer trips over in what a model wrote
            return 0.0
        if not 0 <= value <= 1:  # one errs far above 1 where the right answer is negative; NaN
            return 0.0
        return float(value == 1) if strict else value

    return [judge(*row) for row in zip(completions, answer, rows, questions, strict=True)]


@lru_cache(maxsize=64)
def scorer(task):

    from reasoning_gym.factory import DATASETS, get_score_answer_fn

    import posttrain.word_problems  # noqa: F401 - registers a task of our own

    if task in RUNS_THE_ANSWER:
        raise PosttrainError(
            f"reasoning-gym's scorer of {task} runs the answer as Python, which is what a model wrote. "
            "Use the reward 'accuracy' for it."
        )
    if task in TAKES_WRONG_ANSWERS:
        raise PosttrainError(
            f"reasoning-gym's scorer of {task} gives wrong answers full marks. "
            "Use the reward 'accuracy' for it."
        )
    if task not in DATASETS:
        hint = did_you_mean(task, DATASETS, "; did you mean")
        raise PosttrainError(f"reasoning-gym has no task {task!r}{hint}")
    return get_score_answer_fn(task)


def endless(task, said):
    """Whether a scorer would take minutes, or fill the memory with a number written out."""
    return (
        EXPONENT.fullmatch(said)
        or (task == "rubiks_cube" and re.search(r"\d{4}", said))  # a turn, a million times
        or (task == "propositional_logic" and len(said) > 200)  # its parser's time grows fast
    )


def refuse(task, entry):
    field = RUNS_THE_ROW.get(task, lambda entry: "")(entry)
    if not isinstance(field, str) or not NUMBERS.fullmatch(field):
        raise PosttrainError(
            f"reasoning-gym's scorer of {task} runs a field of the row as Python, "
            f"and this one is more than numbers: {str(field)[:80]!r}"
        )

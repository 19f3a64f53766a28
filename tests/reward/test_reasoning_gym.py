"""reasoning-gym's own scorers: gold answers score full, odd ones do not, and none runs what a model wrote."""

import ast
import inspect
import json

import pytest

from posttrain.types import PosttrainError

TASKS = [
    "basic_arithmetic", "chain_sum", "complex_arithmetic", "letter_counting", "number_sorting",
    "propositional_logic", "rubiks_cube", "shortest_path", "bitwise_arithmetic", "posttrain_word_problems",
]  # fmt: skip


def row(task, seed=3):
    from reasoning_gym import create_dataset

    import posttrain.word_problems  # noqa: F401

    return create_dataset(task, size=1, seed=seed)[0]


def pay(reward, said, made, **args):
    text = f"<think>so</think><answer>{said}</answer>"
    columns = {"answer": [made["answer"]], "metadata": [made["metadata"]], "question": [made["question"]]}
    return reward([text], **columns, **args)[0]


@pytest.mark.parametrize("task", TASKS)
def test_gold_answers_score_full_and_odd_ones_do_not(reward, task):
    made = row(task)
    about = made["metadata"]  # some rows only hold an example
    gold = made["answer"] or about.get("example_answer") or about.get("example_correct_answer")
    args = {"task": task}
    assert pay(reward, gold, made, **args) == 1.0
    assert pay(reward, gold, made, strict=True, **args) == 1.0
    odd = [
        "{", made["question"][:4000], "NaN", "1e999999999", "9" * 4000, "(" * 4000, "\x00", "R99999999999",
        "1/0", "¬" * 4000,
    ]  # fmt: skip
    for said in odd:
        assert 0.0 <= pay(reward, said, made, **args) < 1.0
        assert pay(reward, said, made, strict=True, **args) == 0.0
    assert pay(reward, "", made, **args) == 0.0
    assert pay(reward, "9" * 10**5, made, **args) == 0.0


@pytest.mark.parametrize("task", ["complex_arithmetic", "number_sorting"])
def test_what_is_no_number_is_not_right(reward, task):
    """reasoning-gym's own scorers give full marks for some of these."""
    made = row(task)
    count = made["answer"].count(",") + 1
    for nan in ("NaN", "nan", "nan + nanj", "infinity", "-inf"):
        said = nan if task == "complex_arithmetic" else "[" + ", ".join([nan] * count) + "]"
        assert pay(reward, said, made) == 0.0


def test_rows_that_went_through_json(reward):
    made = json.loads(json.dumps(row("shortest_path")))
    assert pay(reward, made["answer"], made) == 1.0


def test_a_little_for_an_answer_that_holds_the_right_one_unless_strict(reward):
    made = row("letter_counting")
    said = f"it is {made['answer']} or not"
    assert 0.0 < pay(reward, said, made) < 1.0
    assert pay(reward, said, made, strict=True) == 0.0


def test_a_score_out_of_its_range_is_none(reward):
    """The scorer divides by the right answer, which is -1 where there is no such day."""
    about = {"source_dataset": "calendar_arithmetic", "task": "recurring_event_day"}
    columns = {"answer": ["-1"] * 3, "metadata": [about] * 3}
    texts = [f"<answer>{said}</answer>" for said in ("-1", "5", "0")]
    assert reward(texts, **columns) == [1.0, 0.0, 0.0]


def test_equations_without_a_solution_are_not_scored(reward):
    """The scorer would take every text without a number."""
    about = {"source_dataset": "polynomial_equations"}
    assert reward(["<answer>who knows</answer>"], answer=[""], metadata=[about]) == [None]
    assert reward(["<answer>2.0, -1</answer>"], answer=["-1.0, 2.0"], metadata=[about]) == [1.0]


def test_form_and_rows_of_no_task(reward):
    made = row("chain_sum")
    text = f"work\nThe answer is: {made['answer']}"
    columns = {"answer": [made["answer"]], "metadata": [made["metadata"]]}
    assert reward([text], form="the_answer_is", **columns) == [1.0]
    assert reward([text], **columns) == [0.0]
    assert reward(["x", "x"], answer=["4", "4"], metadata=[None, {"level": 1}]) == [None, None]
    assert reward(["x"], answer=["4"]) == [None]


def runs_text(module):
    """Whether a module calls something that runs a text as Python."""
    calls = [
        node.func for node in ast.walk(ast.parse(inspect.getsource(module))) if isinstance(node, ast.Call)
    ]
    names = {call.id for call in calls if isinstance(call, ast.Name)}
    attributes = {call.attr for call in calls if isinstance(call, ast.Attribute)}
    return bool(
        names & {"eval", "exec", "sympify", "parse_expr"} or attributes & {"parse_expr", "sympify", "S"}
    )


def test_every_scorer_that_runs_a_text_is_known(reward):
    """A new release of reasoning-gym may add one."""
    from reasoning_gym.factory import DATASETS

    found = {name for name, (task, _) in DATASETS.items() if runs_text(inspect.getmodule(task))}
    # These run a text where they make a row. propositional_logic's parse_expr is its own and runs nothing.
    found -= {"basic_arithmetic", "codeio", "propositional_logic"}
    known = reward.__globals__
    assert found == known["RUNS_THE_ANSWER"] | known["RUNS_THE_ROW"].keys()


@pytest.mark.parametrize("task", ["binary_matrix", "countdown", "n_queens", "puzzle24", "simple_integration"])
def test_scorers_that_run_the_answer_are_refused(reward, task, tmp_path):
    mark = tmp_path / "mark"
    said = f"__import__('pathlib').Path({str(mark)!r}).touch()"
    with pytest.raises(PosttrainError, match="runs the answer as Python"):
        reward([f"<answer>{said}</answer>"], answer=["1"], metadata=[{"source_dataset": task}])
    assert not mark.exists()


@pytest.mark.parametrize(
    ("task", "gold", "metadata"),
    [
        ("number_sorting", "[__import__('os').getpid()]", {"direction": "ascending"}),
        ("bitwise_arithmetic", "0x1", {"problem": "__import__('os').getpid()"}),
        ("bitwise_arithmetic", "0x1", {"problem": "9 ** 9"}),
        ("bitwise_arithmetic", "0x1", {"problem": "1" * 10**5 + "x"}),
        ("bitwise_arithmetic", "0x1", {}),
    ],
)
def test_rows_that_a_scorer_would_run_are_refused(reward, task, gold, metadata):
    with pytest.raises(PosttrainError, match="more than numbers"):
        reward(["<answer>1</answer>"], answer=[gold], metadata=[{"source_dataset": task, **metadata}])


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("game_of_life_halting", "full marks"),
        ("coin_flip", "full marks"),
        ("chain_sums", "mean 'chain_sum'"),
    ],
)
def test_other_refusals(reward, task, message):
    with pytest.raises(PosttrainError, match=message):
        reward(["<answer>1</answer>"], answer=["1"], metadata=[{"source_dataset": task}])

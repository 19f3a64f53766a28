"""Our own reasoning-gym task: its answers are right, its rows depend on the seed alone."""

import re
import runpy

import pytest
import reasoning_gym

from posttrain import content, word_problems
from posttrain.verify.equations import equations

GAIN = r"(?:finds|buys|gets|wins) (\d+) more"
LOSS = r"(?:gives|loses|sells) (\d+) |trades away (\d+) "
BAGS = r"(?:buys (\d+) bags with|gets (\d+) boxes of) (\d+) "


def make(seed: int = 0, size: int = 300, **args):
    return list(reasoning_gym.create_dataset(word_problems.NAME, seed=seed, size=size, **args))


def reward(name: str):
    path = content.find("reward", name)
    assert path is not None
    return runpy.run_path(str(path))[name]


def solve(question: str) -> int:
    """Read the sentences again, one at a time, and keep count."""
    start, *events, _ = question.split(". ")
    (total,) = map(int, re.findall(r"\d+", start))
    for event in events:
        if bags := re.search(BAGS, event):
            total += int(bags[1] or bags[2]) * int(bags[3])
        elif gain := re.search(GAIN, event):
            total += int(gain[1])
        else:
            loss = re.search(LOSS, event)
            assert loss, event
            total -= int(loss[1] or loss[2])
        assert total >= 0
    return total


@pytest.mark.parametrize("args", [{}, {"bags": False, "max_number": 2}, {"min_events": 1, "max_events": 6}])
def test_the_answer_is_what_the_sentences_say(args):
    for row in make(**args):
        assert str(solve(row["question"])) == row["answer"]


def test_rows_depend_on_the_seed_and_their_place():
    assert make(seed=3, size=50) == make(seed=3, size=80)[:50]
    questions = {row["question"] for row in make(seed=3)}
    assert len(questions) > 290 and len(questions & {row["question"] for row in make(seed=4)}) < 5


@pytest.mark.parametrize("args", [{"min_events": 0}, {"min_events": 3, "max_events": 2}, {"max_number": 1}])
def test_impossible_arguments_are_refused(args):
    with pytest.raises(ValueError, match="must be at least|needs 1 <="):
        make(**args)


# -- traces

SHAPES = [
    {},
    {"bags": False, "max_number": 9, "min_events": 1, "max_events": 2},
    {"min_events": 1, "max_events": 1},
    {"max_number": 2, "max_events": 6},
]


def test_the_trace_is_no_part_of_the_draws():
    """The rows that runs were made from stay as they are."""
    (row,) = make(seed=5, size=1)
    assert row["question"] == (
        "Vera has 8 stones. Vera gets 10 more stones from a friend. Vera gets 2 boxes of 5 stones each. "
        "Vera wins 14 more stones. How many stones does Vera have now?"
    )
    assert row["answer"] == "42" and row["metadata"] == {"source_index": 0, "events": 3}
    assert row["trace"] == (
        "Vera starts with 8 stones. Vera gets 10 more from a friend, which gives 8 + 10 = 18. Now Vera gets "
        "2 boxes of 5 each, which gives 2 * 5 = 10, and 18 + 10 = 28. Next Vera wins 14 more, which gives "
        "28 + 14 = 42. So Vera has 42 stones now."
    )


@pytest.mark.parametrize("args", SHAPES)
def test_a_trace_follows_the_sentences_to_the_answer(args):
    """Each sentence of the question has one in the trace, whose last number is what is there after it."""
    for row in make(size=1000, **args):
        told, thought = row["question"].split(". ")[:-1], row["trace"].removesuffix(".").split(". ")
        assert len(thought) == len(told) + 1
        for i, sentence in enumerate(thought[:-1]):
            there = solve(". ".join([*told[: i + 1], "How many?"]))
            assert re.findall(r"\d+", sentence)[-1] == str(there), row["trace"]
        assert re.findall(r"\d+", thought[-1]) == [row["answer"]]
        # A reader of our own, beside the rewards' below.
        for left, sign, right, result in re.findall(r"(\d+) ([-+*]) (\d+) = (\d+)", row["trace"]):
            a, b = int(left), int(right)
            assert {"+": a + b, "-": a - b, "*": a * b}[sign] == int(result)
        assert row["trace"].count("=") == len(told) - 1 + row["trace"].count("*")


@pytest.mark.parametrize("args", SHAPES)
def test_rewards_take_a_trace_for_good_reasoning(args):
    rows = make(size=1000, **args)
    questions, answers = [row["question"] for row in rows], [row["answer"] for row in rows]
    plain = [f"{row['trace']}\nThe answer is: {row['answer']}" for row in rows]
    tagged = [f"<think>\n{row['trace']}\n</think>\nThe answer is: {row['answer']}" for row in rows]
    r1 = [
        f"<think>\n{row['trace']}\n</think>\n<answer>The answer is: {row['answer']}</answer>" for row in rows
    ]
    for said in (plain, tagged):
        assert set(reward("steps")(said, prompts=questions, ground=True)) == {1.0}
        assert set(reward("form")(said, worked=True)) == {1.0}
        assert set(reward("accuracy")(said, answers)) == {1.0}
    for text in tagged:
        steps = equations(text)
        assert steps and all(step.holds for step in steps)
    assert set(reward("format")(r1)) == {1.0}
    english = reward("language")(tagged)
    assert None not in english, "a trace has ten words"
    assert sum(english) / len(english) > 0.95
    repeated = reward("repetition")(tagged)
    assert sum(repeated) / len(repeated) > -0.07, "the same few numbers come again where they are small"


def test_traces_vary():
    traces = [row["trace"] for row in make(seed=3)]
    shapes = {re.sub(r"\d+|[A-Z]\w+|" + "|".join(word_problems.THINGS), "_", trace) for trace in traces}
    assert len(shapes) > 200

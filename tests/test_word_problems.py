"""Our own reasoning-gym task: its answers are right, its rows depend on the seed alone."""

import re

import pytest
import reasoning_gym

from posttrain import word_problems

GAIN = r"(?:finds|buys|gets|wins) (\d+) more"
LOSS = r"(?:gives|loses|sells) (\d+) |trades away (\d+) "
BAGS = r"(?:buys (\d+) bags with|gets (\d+) boxes of) (\d+) "


def make(seed: int = 0, size: int = 300, **args):
    return list(reasoning_gym.create_dataset(word_problems.NAME, seed=seed, size=size, **args))


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

"""Work beside the loop: what it gives is what doing it in turn gives, and nothing of it outlives a stop."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from posttrain.train.background import Scoring
from posttrain.types import Completion, Group, Prompt, Score

SECONDS = 30  # no test waits so long unless it fails


class Slow:
    """Rewards that score tokens by their sum, each call only once it is let go."""

    names = ("sum",)

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.begun, self.go = threading.Semaphore(0), threading.Semaphore(0)

    def score(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[Score]:
        self.calls.append([prompt.id for prompt in prompts])
        self.begun.release()
        assert self.go.acquire(timeout=SECONDS)
        if any(prompt.id == "bad" for prompt in prompts):
            raise ValueError("no such thing")
        return [Score(float(sum(c.tokens)), {}) for c in completions]


@pytest.fixture
def thread() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as thread:
        yield thread


def group(name: str, *tokens: int) -> Group:
    return Group(Prompt(name, name, None), [1], [Completion([t], [0.0], "stop", "") for t in tokens])


def scored(rewards: Slow, thread: ThreadPoolExecutor) -> Scoring:
    return Scoring(rewards, thread)  # pyright: ignore[reportArgumentType]


def test_what_has_queued_goes_into_one_call(thread: ThreadPoolExecutor) -> None:
    rewards, groups = Slow(), [group(name, k, 10 * k) for k, name in enumerate("abcd")]
    with scored(rewards, thread) as scoring:
        scoring.add(groups[0])
        assert rewards.begun.acquire(timeout=SECONDS)
        for later in groups[1:]:
            scoring.add(later)
        rewards.go.release(4)
        scoring.wait(lambda: None)
    assert rewards.calls[:2] == [["a", "a"], ["b", "b", "c", "c", "d", "d"]]
    assert not any(rewards.calls[2:])
    assert [[score.total for score in g.scores] for g in groups] == [[k, 10.0 * k] for k in range(4)]


def test_what_scoring_raises_comes_out_of_the_wait(thread: ThreadPoolExecutor) -> None:
    rewards = Slow()
    rewards.go.release(3)
    with scored(rewards, thread) as scoring:
        for name in ("good", "bad", "other"):
            scoring.add(group(name, 1))
        with pytest.raises(ValueError, match="no such thing"):
            scoring.wait(lambda: None)


@pytest.mark.parametrize("waiting", [False, True], ids=["generating", "scoring"])
def test_a_stop_waits_for_nothing_and_drops_the_rest(waiting: bool, thread: ThreadPoolExecutor) -> None:
    class Stop(Exception):
        pass

    def stop() -> None:
        polls.append(1)
        if len(polls) == 3:
            raise Stop

    rewards, polls = Slow(), []
    with scored(rewards, thread) as scoring:
        scoring.add(group("a", 1))
        assert rewards.begun.acquire(timeout=SECONDS)
        scoring.add(group("b", 1))
        if waiting:
            with pytest.raises(Stop):
                scoring.wait(stop)
    rewards.go.release(2)
    thread.shutdown()
    assert rewards.calls == [["a"]]

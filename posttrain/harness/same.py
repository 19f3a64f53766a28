"""Which answers of one question say the same, so that they vote together; decided in the killable process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from posttrain.rewards import Rewards, RewardSpec
from posttrain.types import Completion, Prompt
from posttrain.verify import text_of
from posttrain.verify.compare import equal
from posttrain.verify.spelling import normalise

SPEC = RewardSpec("posttrain.harness.same:same")
MOST = 64  # different answers to a question that are compared with each other; the rest stand alone


def same(completions: Sequence[Any], answer: Sequence[Any], **columns: Any) -> list[float]:
    """A reward: 1.0 where the completion, a bare answer, equals the row's answer in the verifier's sense."""
    return [float(equal(text_of(one), str(other))) for one, other in zip(completions, answer, strict=True)]


def groups(
    questions: Sequence[Sequence[tuple[str | None, bool | None]]], judge: Rewards
) -> list[list[int | None]]:
    """Number the groups of equivalent answers of each question, by first appearance.

    Args:
        questions: of each one its samples' (extracted answer or None, verdict). Right answers are all alike:
            each equals the gold one. A wrong one never joins them.
        judge: `Rewards([SPEC])`. A comparison that fails or runs out of time finds two answers different.

    Returns:
        As `questions`: a number for each sample; None where there is no answer.
    """
    found = [_Question(samples) for samples in questions]
    while asked := [(question, *pair) for question in found if (pair := question.ask())]:
        # One comparison a question at a time, of all questions together: whole batches for the process.
        prompts = [Prompt("", other, other) for _, _, other in asked]
        completions = [Completion([], [], "stop", one) for _, one, _ in asked]
        scores = judge.score(prompts, completions)
        for (question, _, _), score in zip(asked, scores, strict=True):
            question.tell(bool(score.total))
    return [question.numbers() for question in found]


class _Question:
    """The answers of one question on their way into groups."""

    def __init__(self, samples: Sequence[tuple[str | None, bool | None]]):
        # An answer is known by its spelling; all right ones by one name, for no spelling begins with a space.
        self.keys = [None if text is None else " right" if ok else normalise(text) for text, ok in samples]
        self.texts = {
            key: text or "" for key, (text, _) in zip(self.keys, samples, strict=True) if key is not None
        }
        self.waiting = [key for key in self.texts if key != " right"]
        self.first: list[str] = []  # of each group of wrong answers
        self.group: dict[str, str] = {" right": " right"}  # by the first of it
        self.at = 0  # the group that the first one waiting is compared with next

    def ask(self) -> tuple[str, str] | None:
        """The next two answers to compare; None when every one has its group."""
        while self.waiting:
            if self.at < min(len(self.first), MOST):
                return self.texts[self.waiting[0]], self.texts[self.first[self.at]]
            self.first.append(self.waiting[0])
            self._join(self.waiting[0])
        return None

    def tell(self, same: bool) -> None:
        if same:
            self._join(self.first[self.at])
        else:
            self.at += 1

    def _join(self, first: str) -> None:
        self.group[self.waiting.pop(0)] = first
        self.at = 0

    def numbers(self) -> list[int | None]:
        of = [None if key is None else self.group[key] for key in self.keys]
        place = {
            first: i for i, first in enumerate(dict.fromkeys(first for first in of if first is not None))
        }
        return [None if first is None else place[first] for first in of]

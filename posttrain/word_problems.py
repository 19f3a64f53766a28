"""Small arithmetic word problems, made from a seed: a child's marbles come and go, how many are left?

A task of our own, registered with reasoning-gym as `posttrain_word_problems`. Easier than reasoning-gym's
gsm_symbolic, so that a model of a hundred million parameters is sometimes right, which reinforcement learning
needs; and each event is one addition, subtraction or product, so that working them out one at a time pays.
"""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass
from typing import Any

from reasoning_gym.factory import ProceduralDataset, register_dataset

NAME = "posttrain_word_problems"
NAMES = (  # noqa: SIM905 - a list of words is read as such
    "Ada Ben Chen Dana Elif Farid Grace Hana Ivan Jun Kofi Lena Maya Nils Olga Pedro Ravi Sara Tariq Uma "
    "Vera Wanda Yusuf Zoe"
).split()
THINGS = (  # noqa: SIM905
    "apples marbles stickers books shells coins pencils cards stamps cookies balloons buttons beads "
    "flowers stones toys"
).split()
MORE = (
    "finds {n} more {things}",
    "buys {n} more {things}",
    "gets {n} more {things} from a friend",
    "wins {n} more {things}",
)
LESS = (
    "gives {n} {things} to a friend",
    "loses {n} {things}",
    "sells {n} {things}",
    "trades away {n} {things}",
)
BAGS = ("buys {k} bags with {n} {things} in each", "gets {k} boxes of {n} {things} each")
# Of a trace: how it begins, what joins its sentences, what stands before an equation, how it ends.
FIRST = (
    "{name} starts with {total} {things}.",
    "At first {name} has {total} {things}.",
    "At the start {name} has {total} {things}.",
)
LINKS = ("Then ", "Next ", "After that ", "Now ", "")
JOINS = (": ", ", so ", ", which gives ")
LAST = (
    "So {name} has {total} {things} now.",
    "In the end {name} has {total} {things}.",
    "That leaves {name} with {total} {things} in the end.",
)


@dataclass
class Config:
    """max_number: the largest number in a question.
    bags: whether products ("3 bags with 4 apples in each") come up."""

    min_events: int = 2
    max_events: int = 3
    max_number: int = 20
    bags: bool = True
    seed: int | None = None
    size: int = 500

    def validate(self) -> None:
        if not 1 <= self.min_events <= self.max_events:
            raise ValueError("needs 1 <= min_events <= max_events")
        if self.max_number < 2:
            raise ValueError("max_number must be at least 2")


class WordProblems(ProceduralDataset):
    """Rows with "question", "answer" (a whole number, never negative), "trace" and "metadata".

    Example: "Ada has 12 shells. Ada loses 3 shells. Ada finds 8 more shells. How many shells does Ada have
    now?"
    The trace is a reasoning made by rule, for a cold start, in words that vary with the row: "Ada starts with
    12 shells. Ada loses 3: 12 - 3 = 9. Then Ada finds 8 more, so 9 + 8 = 17. So Ada has 17 shells now."
    """

    config: Config

    def __init__(self, config: Config):
        super().__init__(config=config, seed=config.seed, size=config.size)

    def __getitem__(self, idx: int) -> dict[str, Any]:
        config, rng = self.config, random.Random(f"{self.seed}/{idx}")
        words = random.Random(f"{self.seed}/{idx}/trace")  # its own: the question's draws stay as they were
        name, things = rng.choice(NAMES), rng.choice(THINGS)
        total = rng.randint(2, config.max_number)
        told = [f"{name} has {total} {things}."]
        links = itertools.cycle(words.sample(LINKS, len(LINKS)))
        thought = [words.choice(FIRST).format(name=name, total=total, things=things)]
        events = rng.randint(config.min_events, config.max_events)
        for _ in range(events):
            before = total
            kind = rng.choice(("more", "less", "bags") if config.bags else ("more", "less"))
            if kind == "bags":
                k, n = rng.randint(2, 5), rng.randint(2, min(9, config.max_number))
                text, total = rng.choice(BAGS).format(k=k, n=n, things=things), total + k * n
                sums = f"{k} * {n} = {k * n}, and {before} + {k * n} = {total}"
            elif kind == "more" or total < 2:
                n = rng.randint(2, config.max_number)
                text, total = rng.choice(MORE).format(n=n, things=things), total + n
                sums = f"{before} + {n} = {total}"
            else:
                n = rng.randint(1, min(total, config.max_number))
                text, total = rng.choice(LESS).format(n=n, things=things), total - n
                sums = f"{before} - {n} = {total}"
            link = next(links) if len(told) > 1 else ""
            thought.append(f"{link}{name} {text.replace(f' {things}', '')}{words.choice(JOINS)}{sums}.")
            told.append(f"{name} {text}.")
        thought.append(words.choice(LAST).format(name=name, total=total, things=things))
        question = f"{' '.join(told)} How many {things} does {name} have now?"
        return {
            "question": question,
            "answer": str(total),
            "trace": " ".join(thought),
            "metadata": {"source_index": idx, "events": events},
        }


register_dataset(NAME, WordProblems, Config)

"""A step's batch: prompts from the one global order, their groups, scored and compared within the group."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from accelerate import Accelerator

from posttrain.profile import count_tokens, span
from posttrain.recipe import Recipe
from posttrain.rewards import Rewards
from posttrain.rollout.engine import Engine
from posttrain.train.advantages import AdvantageKind, advantages, default_kind
from posttrain.train.background import Scoring, Watch
from posttrain.train.metrics import gather
from posttrain.types import Completion, Group, Prompt, Sampling, Score

MAX_DRAW = 4  # a later round of dynamic sampling draws at most so many prompts for every group still missing


@dataclass
class Drawn:
    """A group as the loop sees it: where in the order its prompt stood, and its completions' advantages."""

    index: int
    group: Group
    advantages: list[float | None]

    @property
    def silent(self) -> bool:
        return not any(self.advantages)


@dataclass
class Batch:
    """What one step learns from, on this process.

    cursor: where in the global order the next batch begins. rounds: of dynamic sampling, over all processes.
    times: seconds that the loop waited for it, by phase.
    """

    drawn: list[Drawn]
    cursor: int
    rounds: int
    times: dict[str, float]

    def as_json(self) -> dict[str, Any]:
        """What `Collector.from_json` needs; prompts and advantages follow from it."""
        groups = [
            {
                "index": d.index,
                "completions": [vars(completion) for completion in d.group.completions],
                "scores": [vars(score) for score in d.group.scores],
            }
            for d in self.drawn
        ]
        return {"groups": groups, "cursor": self.cursor, "rounds": self.rounds}


class Collector:
    def __init__(
        self,
        recipe: Recipe,
        *,
        accelerator: Accelerator,
        engine: Engine,
        rewards: Rewards,
        prompts: Sequence[Prompt],
        encode: Callable[[Prompt], list[int]],
    ):
        self.recipe, self.accelerator, self.engine, self.rewards = recipe, accelerator, engine, rewards
        self.prompts, self.encode = prompts, encode
        self.sampling = Sampling(**recipe.sampling.model_dump(exclude={"completions"}))
        self.kind: AdvantageKind = recipe.train.advantage or default_kind(recipe.train.loss)
        self.scorer = ThreadPoolExecutor(1, thread_name_prefix="scoring")
        self._order: tuple[int, list[int]] = -1, []  # the permutation of the epoch asked for last

    def collect(self, step: int, cursor: int, watch: Watch) -> Batch:
        """Draw prompts, from `cursor` on and round by round, until `train.prompts` groups carry signal or the
        rounds are used up."""
        wanted = self.recipe.train.prompts
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        drawn: list[Drawn] = []
        times = {"generate": 0.0, "reward": 0.0}
        count, total, loud, rounds = wanted, 0, 0, 0
        while rounds < self.recipe.train.rounds:
            rounds += 1
            indices = range(cursor, cursor + count)
            cursor += count
            total += count
            new = self._rollout([i for i in indices if i % world == rank], step, times, watch)
            drawn += new
            loud += sum(gather([sum(not d.silent for d in new)]))
            if loud >= wanted:
                break
            # As many as the share with signal so far says are needed for what is missing.
            missing = wanted - loud
            count = min(math.ceil(missing * total / max(loud, 1)), missing * MAX_DRAW)
        return Batch(drawn, cursor, rounds, times)

    def close(self) -> None:
        """Stop scoring; nothing is waited for."""
        self.scorer.shutdown(wait=False, cancel_futures=True)

    def from_json(self, record: dict[str, Any]) -> Batch:
        """The batch of `Batch.as_json`, which nobody waits for any more."""
        drawn: list[Drawn] = []
        for one in record["groups"]:
            prompt = self._prompt(one["index"])
            completions = [Completion(**completion) for completion in one["completions"]]
            scores = [Score(**score) for score in one["scores"]]
            group = Group(prompt, self.encode(prompt), completions, scores)
            drawn.append(self._compared(one["index"], group))
        return Batch(drawn, record["cursor"], record["rounds"], {"generate": 0.0, "reward": 0.0})

    def _rollout(
        self, indices: Sequence[int], step: int, times: dict[str, float], watch: Watch
    ) -> list[Drawn]:
        if not indices:
            return []
        prompts = [self._prompt(i) for i in indices]
        tokens = [self.encode(prompt) for prompt in prompts]
        seeds = [random.Random(f"{self.recipe.seed}/{step}/{i}").getrandbits(63) for i in indices]
        groups = [Group(prompt, ids, []) for prompt, ids in zip(prompts, tokens, strict=True)]
        G = self.recipe.sampling.completions
        with Scoring(self.rewards, self.scorer) as scoring:

            def ended(k: int, completions: list[Completion]) -> None:
                groups[k].completions = completions
                scoring.add(groups[k])

            at = time.perf_counter()
            with span("generate"):
                self.engine.generate(
                    tokens, G, self.sampling, seeds, lambda *done: watch("generating", *done), ended
                )
            sampled = sum(len(c.tokens) for group in groups for c in group.completions)
            count_tokens("sampled", sampled, sampled)
            times["generate"] += time.perf_counter() - at
            at = time.perf_counter()
            with span("reward"):
                scoring.wait(lambda: watch("scoring", 0, len(groups) * G))
            times["reward"] += time.perf_counter() - at
        return [self._compared(i, group) for i, group in zip(indices, groups, strict=True)]

    def _compared(self, index: int, group: Group) -> Drawn:
        return Drawn(index, group, advantages([score.total for score in group.scores], self.kind))

    def _prompt(self, index: int) -> Prompt:
        """The prompt at a place of the endless global order: every epoch its own seeded permutation."""
        epoch, place = divmod(index, len(self.prompts))
        if epoch != self._order[0]:
            self._order = epoch, permutation(self.recipe.seed, epoch, len(self.prompts))
        return self.prompts[self._order[1][place]]


def permutation(seed: int, epoch: int, prompts: int) -> list[int]:
    """The order in which an epoch of a run draws its prompts."""
    order = list(range(prompts))
    random.Random(f"{seed}/epoch/{epoch}").shuffle(order)
    return order

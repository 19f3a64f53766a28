"""Completions of given lengths on every side, so that work is equal where each side draws its own tokens.

The lengths are those at which the model ends by itself, drawn once before the sides start (`draw`), or one
and the same for all. posttrain's engine is told where each of them ends; transformers' generate, which TRL
calls as well, has the end token held back until the given place and forced there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.sides import Gate
from benchmarks.work import COMPLETIONS, Job, Lengths, posttrain_loop, recipe


def even(rounds: int, prompts: int, tokens: int) -> Lengths:
    return ((tokens,) * (prompts * COMPLETIONS),) * rounds


def draw(job: Job, gate: Gate, folder: Path) -> None:
    """A side that has nothing to race: how long the model's own completions are, a list a round."""
    from posttrain.types import Sampling

    loop = posttrain_loop(job, recipe(job))
    gate.ready()
    for k in range(job.rounds):
        gate.begin()
        prompts = [loop.collector.encode(p) for p in loop.collector.prompts]
        seeds = [1000 * k + i for i in range(len(prompts))]
        groups = loop.engine.generate(prompts, COMPLETIONS, Sampling(job.tokens, 1.0), seeds)
        lengths = [len(c.tokens) for group in groups for c in group]
        gate.end(tokens=sum(lengths), lengths=lengths)


def give(engine: Any, lengths: tuple[int, ...]) -> None:
    """Have a NativeEngine end the rows of its next batch there."""
    import torch

    ends = torch.tensor(lengths)
    engine.stops = lambda token, rows, t: t + 1 >= ends[rows]


def processor(lengths: tuple[int, ...], ends: list[int]) -> Any:
    """The same for one call of transformers' generate. ends: tokens that end a completion; the first will."""
    import torch
    from transformers import LogitsProcessor, LogitsProcessorList

    last = torch.tensor(lengths) - 1

    class Given(LogitsProcessor):
        t = 0

        def __call__(self, input_ids: Any, scores: Any) -> Any:
            scores[:, ends] = -torch.inf
            scores[last == self.t] = -torch.inf
            scores[last == self.t, ends[0]] = 0.0
            self.t += 1
            return scores

    return LogitsProcessorList([Given()])


def in_trl(trainer: Any, job: Job) -> None:
    """Have each generation of TRL's trainer write the lengths of its round."""
    from posttrain.models import end_tokens

    model, rounds = trainer.model, iter(job.lengths)
    ends, inner = end_tokens(model, trainer.processing_class), model.generate
    ends.sort(key=lambda token: token != trainer.processing_class.eos_token_id)  # the one that TRL looks for

    def generate(*args: Any, **kwargs: Any) -> Any:
        return inner(*args, **kwargs, logits_processor=processor(next(rounds), ends))

    model.generate = generate

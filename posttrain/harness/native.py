"""Answers from a model in this process, through the engine that training draws with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import torch
from transformers import PreTrainedModel

from posttrain import models
from posttrain.harness.answer import Answer, OnAnswer, OnProgress, Request, failed
from posttrain.recipe import Model
from posttrain.rollout.engine import Engine
from posttrain.rollout.native import NativeEngine
from posttrain.rollout.plain import PlainEngine
from posttrain.rollout.steady import SteadyEngine
from posttrain.train.logprobs import Policy
from posttrain.types import Completion, Prompt, Sampling

CALL = 4096  # requests in one call of the engine, whose completions are all in memory


class NativeAnswerer:
    """Any engine of posttrain.rollout as an answerer.

    Args:
        model: the one that answers, for what else is measured of it.
        about: what `describe` says.
    """

    def __init__(
        self,
        engine: Engine,
        encode: Callable[[Prompt], list[int]],
        about: dict[str, Any] | None = None,
        model: PreTrainedModel | None = None,
    ):
        self.engine, self.encode, self.about, self.model = engine, encode, about or {}, model

    def describe(self) -> dict[str, Any]:
        return dict(self.about)

    def close(self) -> None:
        self.engine.rest()

    def answer(
        self,
        requests: Sequence[Request],
        sampling: Sampling,
        on_answer: OnAnswer,
        on_progress: OnProgress | None = None,
    ) -> None:
        """See harness.answer.Answerer. Where the context leaves less than max_tokens, a completion is cut off
        there ("length"); where it leaves nothing, the request fails."""
        done, total = 0, len(requests)
        by_room: dict[int, list[tuple[Request, list[int]]]] = {}
        for request in requests:
            tokens = self.encode(request.prompt)
            room = sampling.max_tokens
            if self.engine.context is not None:
                room = min(room, self.engine.context - len(tokens))
            if room > 0:
                by_room.setdefault(room, []).append((request, tokens))
            else:
                done += 1
                on_answer(
                    failed(
                        request, f"the prompt has {len(tokens)} tokens, the model takes {self.engine.context}"
                    )
                )
        for room, some in sorted(by_room.items(), reverse=True):
            some.sort(key=lambda pair: len(pair[1]))
            for first in range(0, len(some), CALL):
                part = some[first : first + CALL]

                def take(i: int, group: list[Completion], part=part) -> None:
                    on_answer(_answer(part[i][0], group[0]))

                def report(k: int, _: int, done: int = done) -> None:
                    if on_progress is not None:
                        on_progress(done + k, total)

                seeds = [request.seed for request, _ in part]
                asked = replace(sampling, max_tokens=room)
                self.engine.generate([tokens for _, tokens in part], 1, asked, seeds, report, take)
                done += len(part)
        if on_progress is not None:
            on_progress(done, total)


def _answer(request: Request, completion: Completion) -> Answer:
    count = len(completion.tokens)
    return Answer(request.id, request.sample, completion.text, count, completion.finish)


def native(model: Model, *, rows: int = 64, steady: bool = True) -> NativeAnswerer:
    """Load a model to answer with.

    Args:
        rows: most samples decoded at once.
        steady: no answer depends on what is answered beside it (posttrain.rollout.steady). Without, rounding
            differs with the batch, so that a run that goes on after a kill may draw other samples.

    Raises:
        PosttrainError: no such model.
    """
    loaded, tokenizer = models.of_recipe(model)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    policy = Policy(loaded.eval())
    policy.to(device)
    dtype = models.compute_type(model.compute)
    about = {
        "engine": "native",
        "model": model.name,
        "compute": str(dtype).removeprefix("torch."),
        "device": str(device),
        "steady": steady or not policy.packed,
        "versions": {name: version(name) for name in ("torch", "transformers")},
    }
    made = SteadyEngine if steady else NativeEngine
    engine = engine_for(policy, tokenizer, dtype, rows, made)
    return NativeAnswerer(engine, models.encoder(loaded, tokenizer), about)


def engine_for(
    policy: Policy,
    tokenizer: Any,
    dtype: torch.dtype,
    rows: int = 128,
    made: type[NativeEngine] = NativeEngine,
) -> Engine:
    """The native engine; transformers' own generation for a model that packed groups cannot serve."""
    if not policy.packed:
        return PlainEngine(policy.model, tokenizer, dtype)
    return made(policy.model, tokenizer, dtype, rows, policy.layers)

"""What a question's sample is asked with and what came back: one form for every engine that answers.

The engines: `harness.native` (this process), `harness.vllm`, `harness.served` (an OpenAI-compatible server).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from posttrain.types import Prompt, Sampling

Finish = Literal["stop", "length", "error"]


@dataclass(frozen=True)
class Request:
    """One sample of one question. `seed` is all the randomness that it is drawn with (`seed_of`)."""

    id: str
    sample: int
    prompt: Prompt
    seed: int

    @property
    def key(self) -> tuple[str, int]:
        return self.id, self.sample


@dataclass(frozen=True)
class Answer:
    """What came of a request. With finish "error" there is no completion, and `error` says why.

    `tokens` counts the end token too where the engine tells them, as posttrain.types.Completion does.
    """

    id: str
    sample: int
    completion: str
    tokens: int | None
    finish: Finish
    error: str | None = None

    @property
    def key(self) -> tuple[str, int]:
        return self.id, self.sample


OnAnswer = Callable[[Answer], None]
OnProgress = Callable[[int, int], None]  # (requests answered, requests asked); may raise to stop


class Answerer(Protocol):
    def answer(
        self,
        requests: Sequence[Request],
        sampling: Sampling,
        on_answer: OnAnswer,
        on_progress: OnProgress | None = None,
    ) -> None:
        """Answer every request, in any order; `on_answer` is called in this thread as each one is there.

        A request that cannot be answered becomes an Answer with finish "error". Whatever `on_answer` and
        `on_progress` raise (posttrain.stop.Stopped) ends the answering, and so does KeyboardInterrupt: what
        was handed over before stays handed over, and the answerer can be used again.

        Raises:
            PosttrainError: nothing can be answered: no server, a wrong key, messages without a template.
        """
        ...

    def describe(self) -> dict[str, Any]:
        """{"engine", "model", "versions": {package: version}, …}: what eval.json says of the answerer."""
        ...

    def close(self) -> None: ...


def seed_of(seed: int, id: str, sample: int) -> int:
    """The seed of a sample from the run's, its question and its number alone: neither its neighbours nor what
    was drawn before can change it."""
    digest = hashlib.blake2b(f"{seed}\0{sample}\0{id}".encode("utf-8", "surrogatepass"), digest_size=8)
    return int.from_bytes(digest.digest(), "big") >> 1  # 63 bits: fits a signed 64-bit seed


def requests_for(
    missing: Iterable[tuple[str, int]], prompts: Mapping[str, Prompt], seed: int
) -> list[Request]:
    """The requests of samples that are still to be drawn; prompts by id."""
    return [Request(id, k, prompts[id], seed_of(seed, id, k)) for id, k in missing]


def failed(request: Request, error: str) -> Answer:
    return Answer(request.id, request.sample, "", None, "error", error)

"""What answers a task's questions, by the name that the command line has for it; loaded when it is needed."""

from __future__ import annotations

from collections.abc import Callable

from posttrain.harness.answer import Answerer
from posttrain.recipe import Model
from posttrain.types import PosttrainError


def opener(engine: str, model: str, base_url: str | None, concurrency: int) -> Callable[[], Answerer]:
    """A call that makes the answerer.

    Raises:
        PosttrainError: a server's address is given to an engine that has none.
    """
    if base_url is not None and engine != "openai":
        raise PosttrainError(
            f"--base-url is a server's address, and --engine is {engine}; say --engine openai"
        )

    def opened() -> Answerer:
        if engine == "openai":
            from posttrain.harness.served import OpenAIAnswerer

            return OpenAIAnswerer(model, base_url, concurrency=concurrency)
        if engine == "vllm":
            from posttrain.harness.vllm import VllmAnswerer

            return VllmAnswerer(model)
        from posttrain.harness.native import native

        return native(Model(name=model))

    return opened

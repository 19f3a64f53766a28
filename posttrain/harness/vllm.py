"""Answers from vLLM, in this process. On its own it neither promises the native engine's tokens nor that an
answer is the same whatever is answered beside it: benchmarks/agreement.py measures how far they agree."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.metadata import distributions
from typing import Any

import torch

from posttrain import models, places
from posttrain.harness.answer import Answer, OnAnswer, OnProgress, Request, failed
from posttrain.types import PosttrainError, Sampling

AHEAD = 1024  # requests that vLLM holds at once; it decodes as many of them together as its cache takes


class VllmAnswerer:
    def __init__(self, model: str, compute: str = "auto", context: int | None = None):
        """
        Args:
            model: as posttrain.places.resolve takes it. compute: "auto", "bfloat16" or "float32".
            context: most tokens of prompt and completion together; the model's own if not said.

        Raises:
            PosttrainError: vLLM is not installed, or there is no such model.
        """
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # no process that a kill would leave
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
        if not torch.cuda.is_available():  # else it asks for nearly all of the memory, free or not
            os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "4")  # GiB
        try:
            import vllm  # pyright: ignore[reportMissingImports]
            from vllm.sampling_params import RequestOutputKind  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise PosttrainError(
                f"vLLM cannot be imported ({error}); run: pip install 'posttrain[vllm]'"
            ) from None
        self._vllm: Any = vllm
        self._final = RequestOutputKind.FINAL_ONLY
        dtype = str(models.compute_type(compute)).removeprefix("torch.")
        self.model, self.dtype = model, dtype
        self.llm: Any = self._vllm.LLM(places.resolve(model), dtype=dtype, max_model_len=context)
        self.tokenizer = self.llm.get_tokenizer()
        self.encode = models.text_encoder(self.tokenizer)

    def describe(self) -> dict[str, Any]:
        # vllm-cpu installs the same package under another name.
        names = {"vllm", "vllm-cpu", "torch", "transformers"}
        known = {found.name: found.version for found in distributions() if found.name in names}
        return {"engine": "vllm", "model": self.model, "compute": self.dtype, "versions": known}

    def close(self) -> None:
        del self.llm

    def answer(
        self,
        requests: Sequence[Request],
        sampling: Sampling,
        on_answer: OnAnswer,
        on_progress: OnProgress | None = None,
    ) -> None:
        """See harness.answer.Answerer."""
        engine, left, done = self.llm.llm_engine, iter(enumerate(requests)), 0
        under: dict[str, Request] = {}  # by vLLM's name of them
        try:
            more = True
            while more or under:
                while more and len(under) < AHEAD:
                    if (item := next(left, None)) is None:
                        more = False
                        break
                    name, request = str(item[0]), item[1]
                    tokens = self.encode(request.prompt)
                    try:
                        asked = self._params(request, sampling)
                        engine.add_request(name, {"prompt_token_ids": tokens}, asked)
                    except ValueError as error:  # too long for the context
                        done += 1
                        on_answer(failed(request, f"vLLM does not take it: {error}"))
                        continue
                    under[name] = request
                for output in engine.step() if under else ():
                    if output.finished:
                        done += 1
                        on_answer(self._answer(under.pop(output.request_id), output.outputs[0]))
                if on_progress is not None:
                    on_progress(done, len(requests))
        finally:
            if under:
                engine.abort_request(list(under))

    def _params(self, request: Request, sampling: Sampling) -> Any:
        greedy = sampling.temperature == 0
        return self._vllm.SamplingParams(
            max_tokens=sampling.max_tokens,
            temperature=sampling.temperature,
            top_k=0 if greedy else sampling.top_k,
            top_p=1.0 if greedy else sampling.top_p,
            min_p=0.0 if greedy else sampling.min_p,
            seed=None if greedy else request.seed,
            detokenize=False,
            output_kind=self._final,
        )

    def _answer(self, request: Request, output: Any) -> Answer:
        tokens, finish = list(output.token_ids), output.finish_reason
        if finish not in ("stop", "length"):
            return failed(request, f"vLLM ended it with {finish!r}")
        said = tokens[:-1] if finish == "stop" else tokens
        text = str(self.tokenizer.decode(said, skip_special_tokens=True))
        return Answer(request.id, request.sample, text, len(tokens), finish)

"""Rollouts alone: posttrain's native engine, transformers' generate and vLLM, tokens a second.

SmolLM2-135M in bfloat16, 4 or 16 prompts x 8 completions of up to 128 tokens at temperature 1. natural: ended
where the model ends them; fixed: 128 tokens each. The steady state: start-up is reported apart.
"""

from __future__ import annotations

import os
import time
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.sides import Body, Gate
from benchmarks.work import COMPLETIONS, Job, recipe


def sides(job: Job, peer: str) -> dict[str, Body]:
    return {"posttrain": partial(_posttrain, job), peer: partial(PEERS[peer], job)}


def _prompts(job: Job) -> tuple[list[list[int]], Any, Any]:
    """Token ids of the prompts, the float32 model and its tokenizer."""
    from posttrain import data, models

    model, tokenizer = models.load(job.folder)
    rows, _ = data.load(recipe(job).data)
    return [models.encode(tokenizer, row.content) for row in rows], model.eval(), tokenizer


def _posttrain(job: Job, gate: Gate, folder: Path) -> None:
    from posttrain import models
    from posttrain.memory import settle
    from posttrain.pipeline import engine_for
    from posttrain.train.logprobs import Policy
    from posttrain.types import Sampling

    settle()
    prompts, model, tokenizer = _prompts(job)
    policy = Policy(model)
    at = time.perf_counter()
    engine: Any = engine_for(policy, tokenizer, models.compute_type("auto"))
    start = time.perf_counter() - at
    if job.fixed:
        engine.ends = engine.ends[:0]
    gate.ready()
    for k in range(job.rounds):
        gate.begin()
        seeds = [1000 * k + i for i in range(len(prompts))]
        groups = engine.generate(prompts, COMPLETIONS, Sampling(job.tokens, 1.0), seeds)
        gate.end(tokens=sum(len(c.tokens) for group in groups for c in group), start=start)


def _generate(job: Job, gate: Gate, folder: Path) -> None:
    import torch

    from posttrain import models

    prompts, model, tokenizer = _prompts(job)
    model = model.to(models.compute_type("auto"))
    pad, ends = tokenizer.pad_token_id, models.end_tokens(model, tokenizer)
    longest = max(map(len, prompts))
    ids = torch.tensor([[pad] * (longest - len(p)) + p for p in prompts]).repeat_interleave(COMPLETIONS, 0)
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts]).repeat_interleave(
        COMPLETIONS, 0
    )
    gate.ready()
    for _ in range(job.rounds):
        gate.begin()
        with torch.no_grad():
            out = model.generate(
                input_ids=ids,
                attention_mask=mask,
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                max_new_tokens=job.tokens,
                min_new_tokens=job.tokens if job.fixed else None,
                eos_token_id=ends,
                pad_token_id=pad,
            )
        new = out[:, longest:].tolist()
        gate.end(tokens=sum(_until(row, [] if job.fixed else ends) for row in new))


def _until(row: list[int], ends: list[int]) -> int:
    """Tokens up to and with the first end token."""
    return next((k + 1 for k, token in enumerate(row) if token in ends), len(row))


def _vllm(job: Job, gate: Gate, folder: Path) -> None:
    os.environ |= {
        "VLLM_CPU_OMP_THREADS_BIND": f"0-{(os.cpu_count() or 1) - 1}",
        "VLLM_CPU_KVCACHE_SPACE": "2",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_LOGGING_LEVEL": "ERROR",
    }
    from vllm import LLM, SamplingParams  # pyright: ignore[reportMissingImports]

    prompts, _, _ = _prompts(job)
    at = time.perf_counter()
    engine = LLM(job.folder, dtype="bfloat16", enforce_eager=True, max_model_len=1024, max_num_seqs=256)
    start = time.perf_counter() - at
    gate.ready()
    # Unseeded: vLLM's own sampler on a CPU (0.32) cannot take a seed a request.
    asked = SamplingParams(
        n=COMPLETIONS, temperature=1.0, max_tokens=job.tokens, ignore_eos=job.fixed, detokenize=False
    )
    for _ in range(job.rounds):
        gate.begin()
        out = engine.generate([{"prompt_token_ids": p} for p in prompts], asked, use_tqdm=False)
        gate.end(tokens=sum(len(o.token_ids) for r in out for o in r.outputs), start=start)


PEERS = {"generate": _generate, "vllm": _vllm}

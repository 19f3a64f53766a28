"""Rollouts alone: posttrain's native engine, transformers' generate and vLLM, tokens a second.

SmolLM2-135M in bfloat16, 4 or 16 prompts x 8 completions of up to 128 tokens at temperature 1. natural: as
long as the model's own, the same lengths on both sides (benchmarks/lengths.py); fixed: 128 tokens each. The
steady state: loading of weights and tokenizer, and start-up after it, are reported apart (vLLM's is in one).
"""

from __future__ import annotations

import os
import time
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import lengths
from benchmarks.sides import Body, Gate
from benchmarks.work import COMPLETIONS, Job, recipe


def sides(job: Job, peer: str) -> dict[str, Body]:
    return {"posttrain": partial(_posttrain, job), peer: partial(PEERS[peer], job)}


def _prompts(job: Job, tokenizer: Any) -> list[list[int]]:
    from posttrain import data, models

    return [models.encode(tokenizer, row.content) for row in data.load(recipe(job).data)[0]]


def _posttrain(job: Job, gate: Gate, folder: Path) -> None:
    from posttrain import models
    from posttrain.harness.native import engine_for
    from posttrain.memory import settle
    from posttrain.train.logprobs import Policy
    from posttrain.types import Sampling

    settle()
    at = time.perf_counter()
    model, tokenizer = models.load(job.folder)
    loaded = time.perf_counter()
    engine: Any = engine_for(Policy(model.eval()), tokenizer, models.compute_type("auto"))
    took = {"weights": loaded - at, "start": time.perf_counter() - loaded}
    prompts = _prompts(job, tokenizer)
    gate.ready()
    for k in range(job.rounds):
        lengths.give(engine, job.lengths[k])
        gate.begin()
        seeds = [1000 * k + i for i in range(len(prompts))]
        groups = engine.generate(prompts, COMPLETIONS, Sampling(job.tokens, 1.0), seeds)
        gate.end(tokens=sum(len(c.tokens) for group in groups for c in group), **took)


def _generate(job: Job, gate: Gate, folder: Path) -> None:
    import torch

    from posttrain import models
    from posttrain.memory import settle

    settle()
    at = time.perf_counter()
    model: Any
    model, tokenizer = models.load(job.folder, models.compute_type("auto"))
    weights = time.perf_counter() - at
    prompts = _prompts(job, tokenizer)
    pad, ends = tokenizer.pad_token_id, models.end_tokens(model.eval(), tokenizer)
    longest = max(map(len, prompts))
    ids = torch.tensor([[pad] * (longest - len(p)) + p for p in prompts]).repeat_interleave(COMPLETIONS, 0)
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts]).repeat_interleave(
        COMPLETIONS, 0
    )
    gate.ready()
    for k in range(job.rounds):
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
                eos_token_id=ends,
                pad_token_id=pad,
                logits_processor=lengths.processor(job.lengths[k], ends),
            )
        seconds = time.perf_counter() - gate.began
        until = [row.index(ends[0]) + 1 for row in out[:, longest:].tolist()]
        gate.end(seconds=seconds, tokens=sum(until), weights=weights)


def _vllm(job: Job, gate: Gate, folder: Path) -> None:
    os.environ |= {
        "VLLM_CPU_OMP_THREADS_BIND": f"0-{(os.cpu_count() or 1) - 1}",
        "VLLM_CPU_KVCACHE_SPACE": "2",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_LOGGING_LEVEL": "ERROR",
    }
    from vllm import LLM, SamplingParams  # pyright: ignore[reportMissingImports]

    from posttrain import models

    prompts = _prompts(job, models.load(job.folder)[1])
    at = time.perf_counter()
    engine = LLM(job.folder, dtype="bfloat16", max_model_len=1024, max_num_seqs=256)
    start = time.perf_counter() - at
    gate.ready()
    # Unseeded: vLLM's own sampler on a CPU (0.32) cannot take a seed a request.
    asked = SamplingParams(
        n=COMPLETIONS, temperature=1.0, max_tokens=job.tokens, ignore_eos=True, detokenize=False
    )
    for _ in range(job.rounds):
        gate.begin()
        out = engine.generate([{"prompt_token_ids": p} for p in prompts], asked, use_tqdm=False)
        gate.end(tokens=sum(len(o.token_ids) for r in out for o in r.outputs), start=start)


PEERS = {"generate": _generate, "vllm": _vllm}

"""A model that sees: a group's update and its first tokens. Its picture is encoded once here, 8 times there.

SmolLM2-135M behind a ViT-S/16 with fresh weights and a connector of two layers. A picture of 384 pixels is
576 tokens; a short question follows, then 8 completions of 25 to 32 tokens, the same on every side.

  update        tower, connector and language model learn (benchmarks/update.py)
  tower frozen  the tower stays as it is
  first token   rollouts up to the first token of each completion, against transformers' generate
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import lengths
from benchmarks.sides import Body, Gate
from benchmarks.work import COMPLETIONS, Job, Pairs, posttrain_loop, recipe

PARTS = ("tower", "connector", "language")
MOST = 32  # tokens of a completion


def write(job: Job, language: str, pairs: Path, gate: Gate, folder: Path) -> None:
    """A side that has nothing to race: it makes the model in job.folder, and samples what the others learn
    from, in lengths that differ (of equal ones the first update's loss is 0 whatever was written)."""
    from posttrain import models
    from posttrain.recipe import Vision
    from posttrain.types import Sampling

    seeing = Vision(tower="vit", settings={"image_size": job.picture}, connector="mlp")
    models.save(*models.load(language, vision=seeing), Path(job.folder))
    loop = posttrain_loop(job, recipe(job))
    ends = tuple(max(1, job.tokens - k) for k in range(COMPLETIONS)) * job.prompts
    lengths.give(loop.engine, ends)
    gate.ready()
    gate.begin()
    with loop.rewards:
        prompts = [loop.collector.encode(p) for p in loop.collector.prompts]
        groups = loop.engine.generate(prompts, COMPLETIONS, Sampling(job.tokens, 1.0), range(len(prompts)))
    rows: Pairs = [(p, [c.tokens for c in group]) for p, group in zip(prompts, groups, strict=True)]
    pairs.write_text(json.dumps(rows))
    gate.end(tokens=sum(ends))


def sides(job: Job) -> dict[str, Body]:
    """Of the first tokens."""
    return {"posttrain": partial(_posttrain, job), "generate": partial(_generate, job)}


def _prompts(job: Job, model: Any, tokenizer: Any) -> list[Any]:
    from posttrain import data, models

    encode = models.encoder(model, tokenizer)
    return [encode(prompt) for prompt in data.load(recipe(job).data)[0]]


def _posttrain(job: Job, gate: Gate, folder: Path) -> None:
    from posttrain import models
    from posttrain.harness.native import engine_for
    from posttrain.memory import settle
    from posttrain.train.logprobs import Policy
    from posttrain.types import Sampling

    settle()
    model, tokenizer = models.load(job.folder)
    engine = engine_for(Policy(model.eval()), tokenizer, models.compute_type("auto"))
    prompts = _prompts(job, model, tokenizer)
    gate.ready()
    for k in range(job.rounds):
        gate.begin()
        groups = engine.generate(prompts, COMPLETIONS, Sampling(1, 1.0), [k] * len(prompts))
        gate.end(tokens=sum(len(c.tokens) for group in groups for c in group))


def _generate(job: Job, gate: Gate, folder: Path) -> None:
    import torch

    from posttrain import models
    from posttrain.memory import settle
    from posttrain.multimodal import joined, shown

    settle()
    model: Any
    model, tokenizer = models.load(job.folder, models.compute_type("auto"))
    prompts = [p for p in _prompts(job, model.eval(), tokenizer) for _ in range(COMPLETIONS)]
    longest, pad = max(map(len, prompts)), tokenizer.pad_token_id
    ids = torch.tensor([[pad] * (longest - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    gate.ready()
    for _ in range(job.rounds):
        gate.begin()
        with torch.no_grad():
            out = model.generate(
                input_ids=ids,
                attention_mask=mask,
                **joined(shown(prompts)),
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                max_new_tokens=1,
                pad_token_id=pad,
            )
        gate.end(tokens=out[:, longest:].numel())

"""The update alone, of the same completions on both sides, and whether the work is the same.

  update   SmolLM2-135M, 4 prompts x 8 completions as the model wrote them, up to 128 tokens
  long     4 prompts of 1,000 tokens x 8 completions of 100
  linear   posttrain's alone: 4 times the batch, and ragged lengths against equal ones of the same sum
  vision   1 prompt that shows a picture, to a model that sees (benchmarks/vision.py)

Losses and gradients of the first update, before any weight has moved, are compared: dapo's loss, because
that of grpo is 0 on the first update whatever was written (and dapo's where all are equally long, as in long:
there the gradients alone tell). Both sides make that update in float32 throughout
as well, off the clock: there they must agree, and bfloat16's own error is seen against it, side by side.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks import lengths
from benchmarks.sides import Body, Gate, Report
from benchmarks.work import (
    COMPLETIONS,
    Job,
    Pairs,
    alternate_rewards,
    posttrain_loop,
    recipe,
    timed,
    trl_trainer,
)

SIDES = ("posttrain", "trl", "trl_float32")


def sides(job: Job, pairs: Path, shared: Path, which: Sequence[str]) -> dict[str, Body]:
    """pairs: a JSON file of Pairs. shared: a folder for the sides' gradients."""
    bodies: dict[str, Body] = {
        "posttrain": partial(_posttrain, job, pairs, shared),
        "trl": partial(_trl, job, pairs, shared, False),
        "trl_float32": partial(_trl, job, pairs, shared, True),
    }
    return {side: bodies[side] for side in which}


def write(job: Job, pairs: Path, prompt: int | None, gate: Gate, folder: Path) -> None:
    """A side that has nothing to race: it samples what the others learn from. prompt: tokens each prompt is
    filled up to with earlier questions, if any."""
    from posttrain.types import Sampling

    loop = posttrain_loop(job, recipe(job))
    if job.lengths:
        lengths.give(loop.engine, job.lengths[0])
    gate.ready()
    gate.begin()
    with loop.rewards:
        prompts = [loop.collector.encode(p) for p in loop.collector.prompts]
        if prompt is not None:
            text = [token for p in prompts for token in p] * (prompt // len(prompts[0]))
            prompts = [(text[: prompt - len(p)] + p)[-prompt:] for p in prompts]
        sampling = Sampling(job.tokens, 1.0)
        groups = loop.engine.generate(prompts, COMPLETIONS, sampling, range(len(prompts)))
    rows: Pairs = [(p, [c.tokens for c in group]) for p, group in zip(prompts, groups, strict=True)]
    pairs.write_text(json.dumps(rows))
    gate.end(tokens=sum(len(c) for _, some in rows for c in some))


def _exact(job: Job) -> str:
    return "_exact" if job.compute == "float32" else ""


def _recipe(job: Job) -> Any:
    """No correction of the engine's probabilities and no clipping of the gradient, on either side."""
    settings = recipe(job, "dapo")
    train = settings.train.model_copy(update={"importance_cap": None, "max_grad_norm": 1e9})
    return settings.model_copy(update={"train": train})


def _groups(loop: Any, pairs: Pairs) -> Any:
    """Pairs as what the loop learns from."""
    from posttrain.train.advantages import advantages
    from posttrain.train.collect import Drawn
    from posttrain.types import Completion, Group, Prompt

    rewards: Any = alternate_rewards([None] * COMPLETIONS)
    drawn = [
        Drawn(
            i,
            Group(Prompt(str(i), "", None), p, [Completion(c, [0.0] * len(c), "stop", "") for c in some]),
            advantages(rewards, loop.collector.kind),
        )
        for i, (p, some) in enumerate(pairs)
    ]
    return loop._learnable(drawn)[0]


def _posttrain(job: Job, pairs: Path, shared: Path, gate: Gate, folder: Path) -> None:
    from posttrain import models
    from posttrain.train.work import work

    settings = _recipe(job)
    loop = posttrain_loop(job, settings)
    model = loop.accelerator.unwrap_model(loop.policy).model
    save_gradients(model, shared / f"posttrain{_exact(job)}")
    costs = work(model, models.compute_type(settings.model.compute))
    groups = _groups(loop, _rows(job, pairs, loop.collector.encode))
    packed, trained = _sizes(groups)
    flops = 6 * (costs.layers * packed + costs.head * trained)
    gate.ready()
    with loop.rewards:
        for _ in range(job.rounds):
            gate.begin()
            loop.engine.rest()
            sums = loop._update(groups, lambda: None)
            loop.engine.sync(model)
            loop.keep()
            report = {"tokens": trained, "packed": packed, "loss": sums["loss"]}
            if not job.picture:  # the tower's products are not among those counted
                report |= {"flops": flops, "peak": costs.peak}
            gate.end(**report)


def _rows(job: Job, pairs: Path, encode: Any) -> Pairs:
    """The pairs; where prompts show pictures, with those, read anew from the data."""
    rows: Pairs = json.loads(pairs.read_text())
    if not job.picture:
        return rows
    from posttrain import data

    prompts = [encode(prompt) for prompt in data.load(recipe(job).data)[0]]
    if [[*prompt] for prompt in prompts] != [prompt for prompt, _ in rows]:
        raise SystemExit("a side reads other prompts than the completions are of")
    return [(prompt, some) for prompt, (_, some) in zip(prompts, rows, strict=True)]


def _sizes(groups: Any) -> tuple[int, int]:
    """Packed tokens, and those of them that are trained on."""
    return sum(g.tokens for g in groups), sum(len(r.tokens) for g in groups for r in g.rows)


def _trl(job: Job, pairs: Path, shared: Path, float32: bool, gate: Gate, folder: Path) -> None:
    import torch
    from transformers import TrainerCallback

    from posttrain import models

    encode = models.encoder(*models.load(job.folder)) if job.picture else None
    rows = _rows(job, pairs, encode)
    tokens = sum(len(c) for _, some in rows for c in some)
    report: Report = {}

    class Updates(TrainerCallback):
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            report["loss"] = 0.0
            gate.begin()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            seconds = time.perf_counter() - gate.began - report["generate"]
            gate.end(seconds=seconds, tokens=tokens, loss=report["loss"])

    given = {
        "prompt_ids": [[*p] for p, some in rows for _ in some],
        "completion_ids": [c for _, some in rows for c in some],
        "logprobs": None,
    }
    trainer = trl_trainer(
        job,
        _recipe(job),
        folder,
        [Updates()],
        alternate_rewards,
        dtype=torch.float32 if float32 else torch.bfloat16,
        rollout_func=lambda prompts, trainer: given,
    )
    if job.picture:
        _show(trainer, job, rows)
    timed(trainer, report)
    inner = trainer.training_step

    def counted(*args: Any, **kwargs: Any) -> Any:
        loss = inner(*args, **kwargs)
        report["loss"] += float(loss)
        return loss

    trainer.training_step = counted
    name = ("trl_float32" if float32 else "trl") + _exact(job)
    save_gradients(trainer.model, shared / name)
    gate.ready()
    trainer.train()


def _show(trainer: Any, job: Job, rows: Pairs) -> None:
    """Put beside the inputs what TRL's own processor would: the pixels of every row's picture, so 8 times
    those of each prompt. In float32 its head gets a bias for what posttrain does: a picture's token, which
    nobody draws, has no probability."""
    import torch

    from posttrain.multimodal import BANNED, image_token, joined, parts, shown

    model, inner = trainer.model, trainer._generate_and_score_completions
    pixels = joined(shown([p for p, some in rows for _ in some]))
    for p in parts(model)["tower"]:
        p.requires_grad_(not job.frozen)
    if job.compute == "float32":
        bias = torch.zeros(model.lm_head.out_features)
        bias[image_token(model)] = BANNED
        model.lm_head.bias = torch.nn.Parameter(bias, requires_grad=False)

    def seeing(inputs: Any) -> Any:
        return inner(inputs) | pixels | {"num_images": [1] * len(pixels["pixel_values"])}

    trainer._generate_and_score_completions = seeing


def save_gradients(model: Any, path: Path) -> None:
    """Have the gradient of the first optimizer step written, float32, parameters by name: into `path`, or
    into path-tower and so on for a model of parts."""
    from torch.optim.optimizer import register_optimizer_step_pre_hook

    from posttrain.multimodal import parts

    named = sorted((name, p) for name, p in model.named_parameters() if p.requires_grad)
    found = {part: ids for part, some in parts(model).items() if (ids := {id(p) for p in some})}

    def write(*_: Any) -> None:
        for part, ids in found.items():
            to = path.with_name(f"{path.name}-{part}") if len(found) > 1 else path
            if not to.exists():
                with to.open("wb") as file:
                    for _, p in named:
                        if id(p) in ids:
                            file.write(p.grad.detach().float().numpy().data)

    register_optimizer_step_pre_hook(write)


def agreement(shared: Path, a: str, b: str, part: str = "") -> dict[str, float]:
    """Cosine of two sides' first gradients, and the ratio of their norms. part: of a model's parts."""
    import numpy as np

    ends = f"-{part}" if part else ""
    x, y = (np.fromfile(shared / f"{side}{ends}", np.float32).astype(np.float64) for side in (a, b))
    norms = float(np.linalg.norm(x)), float(np.linalg.norm(y))
    return {"cosine": float(x @ y) / (norms[0] * norms[1]), "norm_ratio": norms[0] / norms[1]}


def linear_sides(job: Job, pairs: Path) -> dict[str, Body]:
    """The same loop with three loads; pairs hold 4 times the prompts of a step."""
    loads = ("x1", "x4", "x4 even")
    return {f"posttrain {load}": partial(_linear, job, pairs, load) for load in loads}


def _linear(job: Job, pairs: Path, load: str, gate: Gate, folder: Path) -> None:
    rows: Pairs = json.loads(pairs.read_text())
    if load == "x1":
        rows = rows[: len(rows) // 4]
    if load == "x4 even":  # as many tokens, cut from one text into equal lengths
        flat = [token for _, some in rows for c in some for token in c]
        n, total = sum(len(some) for _, some in rows), len(flat)
        cuts = [i * total // n for i in range(n + 1)]
        parts = iter([flat[a:b] for a, b in pairwise(cuts)])
        rows = [(p, [next(parts) for _ in some]) for p, some in rows]
    loop = posttrain_loop(job, _recipe(job))
    groups = _groups(loop, rows)
    packed, trained = _sizes(groups)
    gate.ready()
    with loop.rewards:
        for _ in range(job.rounds):
            gate.begin()
            loop._update(groups, lambda: None)
            gate.end(tokens=trained, packed=packed)

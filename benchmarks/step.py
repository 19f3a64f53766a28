"""A whole training step: rollouts, rewards, update.

SmolLM2-135M, 4 prompts x 8 completions of up to 128 tokens, grpo loss, AdamW, one update.

  natural  completions as long as the model's own, the same lengths on every side (benchmarks/lengths.py)
  fixed    every completion has exactly 128 tokens
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from benchmarks import lengths
from benchmarks.sides import Body, Gate
from benchmarks.work import (
    COMPLETIONS,
    Job,
    alternate_rewards,
    posttrain_loop,
    recipe,
    steps,
    timed,
    trl_trainer,
)


def sides(job: Job, float32: bool) -> dict[str, Body]:
    """float32: TRL at posttrain's precision as well."""
    bodies: dict[str, Body] = {"posttrain": partial(_posttrain, job), "trl": partial(_trl, job, False)}
    return bodies | ({"trl_float32": partial(_trl, job, True)} if float32 else {})


def _posttrain(job: Job, gate: Gate, folder: Path) -> None:
    loop = posttrain_loop(job, recipe(job))
    gate.ready()
    with loop.rewards:
        for k in range(job.rounds):
            lengths.give(loop.engine, job.lengths[k])
            gate.begin()
            metrics, groups = loop.step()
            gate.end(
                generate=metrics["seconds_generate"],
                tokens=metrics["tokens"],
                prompt_tokens=sum(len(group.prompt_tokens) for group in groups) * COMPLETIONS,
                trained_rows=job.prompts * COMPLETIONS if not metrics["groups_silent"] else None,
            )


def _trl(job: Job, float32: bool, gate: Gate, folder: Path) -> None:
    import torch

    report: dict = {}

    def counted(completions: list, completion_ids: list[list[int]], **columns: object) -> list[float]:
        report["tokens"] = sum(map(len, completion_ids))
        return alternate_rewards(completions)

    dtype = torch.float32 if float32 else torch.bfloat16
    trainer = trl_trainer(job, recipe(job), folder, [steps(gate, report)], counted, dtype=dtype)
    timed(trainer, report)
    lengths.in_trl(trainer, job)
    gate.ready()
    trainer.train()


def check(reports: list[dict], job: Job) -> None:
    """Every side read the same prompts and wrote as much, and no completion was left out of an update."""
    for report in reports:
        if report["tokens"] != sum(job.lengths[report["repeat"]]):
            raise SystemExit(f"a side wrote more or less than it was given: {report}")
        if report["prompt_tokens"] != reports[0]["prompt_tokens"]:
            raise SystemExit(f"the sides read different prompts: {report} and {reports[0]}")
        if report["trained_rows"] != job.prompts * COMPLETIONS:
            raise SystemExit(f"a completion was left out of the update: {report}")

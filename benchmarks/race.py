"""Time to accuracy: the demo's recipe, trained by posttrain and by TRL in turn, step by step.

Same model, prompts in the same order, rewards, hyper-parameters and learning rates; TRL in float32 weights
under bfloat16 autocast, because at these learning rates bfloat16 weights would lose updates. Completions are
drawn by each side's own engine, so the runs are alike and not equal. Held-out accuracy (strict, greedy) is
measured for both by the same engine, off the clock.
"""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.sides import Body, Gate
from benchmarks.work import Job, posttrain_loop, steps, timed, trl_trainer

RECIPE = "r1_zero/smollm2"
EVERY = 4  # steps between two looks at the held-out problems


def sides(job: Job) -> dict[str, Body]:
    return {"posttrain": partial(_posttrain, job), "trl_float32": partial(_trl, job)}


def demo(job: Job) -> Any:
    from posttrain.recipe import load_recipe

    return load_recipe(RECIPE, [f"model.name={job.folder}"])


class Held:
    """Held-out accuracy of whatever weights it is shown, by an engine of its own."""

    def __init__(self, job: Job, settings: Any, rows: list[Any]):
        from posttrain import models
        from posttrain.evaluate.harness import judge_specs
        from posttrain.harness.native import NativeAnswerer, engine_for
        from posttrain.rewards import Rewards, RewardSpec
        from posttrain.train.logprobs import Policy

        self.settings, self.rows, first = settings, rows, settings.rewards[0]
        self.model, self.tokenizer = models.load(job.folder)
        compute = models.compute_type(settings.model.compute)
        self.engine = engine_for(Policy(self.model.eval()), self.tokenizer, compute)
        self.answerer = NativeAnswerer(self.engine, models.encoder(self.model, self.tokenizer))
        specs = judge_specs(settings.evaluate.form, RewardSpec(first.use, first.weight, first.args))
        self.judge = Rewards(specs, settings.reward_deadline)

    def __call__(self, model: Any) -> float:
        from posttrain.evaluate.harness import evaluate
        from posttrain.types import Sampling

        self.model.load_state_dict(model.state_dict())
        self.engine.sync(self.model)
        found, _ = evaluate(
            self.answerer,
            self.rows,
            form=self.settings.evaluate.form,
            sampling=Sampling(self.settings.sampling.max_tokens, temperature=0.0),
            samples=0,
            temperature=1.0,
            seed=self.settings.seed,
            judge=self.judge,
        )
        return found["strict"]["accuracy"]


def _posttrain(job: Job, gate: Gate, folder: Path) -> None:
    from posttrain import data

    settings = demo(job)
    loop = posttrain_loop(job, settings)
    held = Held(job, settings, data.load(settings.data)[1])
    gate.ready()
    with loop.rewards, held.judge:
        for step in range(job.rounds):
            gate.begin()
            metrics, _ = loop.step()
            seconds = time.perf_counter() - gate.began
            strict = None
            if (step + 1) % EVERY == 0:
                strict = held(loop.accelerator.unwrap_model(loop.policy).model)
            gate.end(seconds=seconds, tokens=metrics["tokens"], reward=metrics["reward"], strict=strict)


def _trl(job: Job, gate: Gate, folder: Path) -> None:
    from statistics import fmean

    import torch
    from transformers import TrainerCallback

    from posttrain import data
    from posttrain.rewards import Rewards
    from posttrain.train.collect import permutation
    from posttrain.train.grpo import schedule
    from posttrain.types import Completion

    settings = demo(job)
    train = settings.train
    rows, heldout = data.load(settings.data)
    drawn = permutation(settings.seed, 0, len(rows))  # as posttrain's loop draws them
    ordered = [rows[i] for i in drawn[: job.rounds * train.prompts]]
    held = Held(job, settings, heldout)
    rewards = Rewards(settings.rewards, settings.reward_deadline)
    report: dict[str, Any] = {}

    def score(completions: list[Any], completion_ids: list[list[int]], index: list[int], **_: Any) -> list:
        written = [
            Completion(ids, [0.0] * len(ids), "stop", said[0]["content"])
            for said, ids in zip(completions, completion_ids, strict=True)
        ]
        scores = [s.total for s in rewards.score([ordered[i] for i in index], written)]
        report["tokens"] = sum(map(len, completion_ids))
        report["reward"] = fmean(s for s in scores if s is not None)
        return scores

    class Clock(TrainerCallback):
        """Stops before the look at the held-out problems; sets the recipe's learning rate."""

        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            share = schedule(train.schedule, state.global_step, train.steps, train.warmup)
            for group in kwargs["optimizer"].param_groups:
                group["lr"] = train.learning_rate * share

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            report["seconds"] = time.perf_counter() - gate.began
            report["strict"] = held(kwargs["model"]) if state.global_step % EVERY == 0 else None

    trainer = trl_trainer(
        job,
        settings,
        folder,
        [Clock(), steps(gate, report)],
        score,
        dtype=torch.float32,
        prompts=ordered,
    )
    timed(trainer, report)
    gate.ready()
    with rewards, held.judge:
        trainer.train()

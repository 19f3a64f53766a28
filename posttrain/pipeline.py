"""Runs a recipe: evaluate, train, evaluate again, and leave a folder that says everything about it.

The folder: recipe.yaml (resolved), metrics.jsonl, samples.jsonl, checkpoints/, model/ (plain Hugging Face),
result.json, report.html; with a profile, profile.txt and trace.json.
"""

from __future__ import annotations

import errno
import importlib.util
import json
import logging
import os
import platform
import time
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from transformers import PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from posttrain import data, models
from posttrain.evaluate.display import Display
from posttrain.evaluate.harness import evaluate, judge_specs
from posttrain.evaluate.report import write_report
from posttrain.files import append, replace_text
from posttrain.machine import machine
from posttrain.memory import settle
from posttrain.past import before, fingerprint, finished, held, lengths, refuse_changes, rewind
from posttrain.profile import Profile, one_step
from posttrain.recipe import Recipe, dump_recipe
from posttrain.rewards import Rewards, RewardSpec
from posttrain.rollout.engine import Engine
from posttrain.rollout.native import NativeEngine
from posttrain.rollout.plain import PlainEngine
from posttrain.stop import Stop, Stopped
from posttrain.train import checkpoint
from posttrain.train.grpo import GRPO, State
from posttrain.train.logprobs import Policy
from posttrain.train.metrics import gather
from posttrain.train.optimizer import adamw
from posttrain.train.work import work
from posttrain.types import Group, PosttrainError, Prompt, Sampling

log = logging.getLogger(__name__)

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
VERSIONS = ("posttrain", "torch", "transformers", "accelerate", "reasoning-gym", "math-verify")


def run(recipe: Recipe, resume: bool = False, profile: bool = False) -> Path:
    """Run a recipe in `recipe.output`, or go on with the run that is there; -> that folder.

    profile: time the phases of each step (posttrain/profile.py); on CUDA the device is waited for in between.

    Raises:
        PosttrainError: the folder holds another run, a model, a file or data that cannot be had.
        Stopped: Ctrl-C or SIGTERM; everything is saved and a resumed run goes on from there.
    """
    settle()
    disable_progress_bar()  # transformers' bars for loading and saving would tear the display
    folder = Path(recipe.output)
    if finished(recipe):
        log.warning("%s is finished already: nothing to do", folder)
        return folder
    past = before(folder, recipe, resume)
    for tracker in recipe.trackers:  # accelerate passes over one that is missing without a word
        if importlib.util.find_spec(tracker) is None:
            raise PosttrainError(f"trackers: {tracker} is not installed; run: pip install {tracker}")
    train_rows, heldout_rows = data.load(recipe.data)
    inputs = fingerprint(train_rows, heldout_rows, recipe)
    if past is not None:
        refuse_changes(folder, past, inputs)
    models.resolve(recipe.model.name)
    with ExitStack() as stack:
        rewards = stack.enter_context(Rewards(recipe.rewards, recipe.reward_deadline, recipe.reward_workers))
        first = recipe.rewards[0]
        judge = stack.enter_context(
            Rewards(
                judge_specs(recipe.evaluate.form, RewardSpec(first.use, first.weight, first.args)),
                recipe.reward_deadline,
            )
        )
        stop = stack.enter_context(Stop())
        made = _Run(recipe, folder, past or {"inputs": inputs}, stop, stack, rewards, judge)
        try:
            return made.go(train_rows, heldout_rows, profile)
        except OSError as error:
            if error.errno not in FULL:
                raise
            raise PosttrainError(
                f"{folder}: no room to write ({error.strerror}); checkpoints that were there are whole. "
                "Make room and run the same command with --resume"
            ) from error


class _Run:
    """One run's moving parts, so that each stage of it below reads as a few lines."""

    def __init__(
        self,
        recipe: Recipe,
        folder: Path,
        past: dict[str, Any],
        stop: Stop,
        stack: ExitStack,
        rewards: Rewards,
        judge: Rewards,
    ):
        self.recipe, self.folder, self.stop, self.stack = recipe, folder, stop, stack
        self.rewards, self.judge = rewards, judge
        self.began = time.time() - past.get("seconds", 0.0)
        self.result: dict[str, Any] = {"name": recipe.name, "model": recipe.model.name} | past
        bf16 = models.compute_type(recipe.model.compute) == torch.bfloat16
        self.accelerator = Accelerator(
            mixed_precision="bf16" if bf16 else "no",
            cpu=not torch.cuda.is_available(),
            log_with=list(recipe.trackers) or None,
            project_dir=folder if recipe.trackers else None,
        )
        # With these set, and no RANK, accelerate was told to start several processes.
        told = {"ACCELERATE_MIXED_PRECISION", "MASTER_PORT"} <= os.environ.keys() and "RANK" not in os.environ
        if told and self.accelerator.num_processes == 1:
            log.warning(
                "accelerate launch started a single process; without GPUs, --multi_gpu starts several"
            )
        if recipe.train.ahead and self.accelerator.num_processes > 1:
            raise PosttrainError(
                "train.ahead: the next batch is drawn by a thread that cannot talk to the other "
                f"{self.accelerator.num_processes - 1} processes; set it to false, or run one process"
            )
        self.main = self.accelerator.is_main_process
        if self.main:
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(held(folder))
            replace_text(folder / "recipe.yaml", dump_recipe(recipe))
        if recipe.trackers:
            self.accelerator.init_trackers(recipe.name, config={"recipe": dump_recipe(recipe)})
            stack.callback(self.accelerator.end_training)
        self.display: Display | None = None
        if self.main:
            self.display = stack.enter_context(Display(recipe.train.steps, rewards.names))

    def go(self, train_rows: list[Prompt], heldout: list[Prompt], profile: bool) -> Path:
        recipe, accelerator = self.recipe, self.accelerator
        self.watch("loading the model", 0, 0)
        saved = checkpoint.newest(self.folder / "checkpoints")
        model, self.tokenizer = models.load(str(saved) if saved else recipe.model.name)
        state = checkpoint.state_of(saved) if saved else State(records=self.result.get("records", {}))
        if self.main:
            rewind(self.folder, state.records)
        model.eval()  # no dropout: the log-probabilities of what was sampled must not change by chance
        policy = Policy(
            model.to(accelerator.device), recipe.sampling.temperature, recipe.train.activation_checkpointing
        )
        reference = self._reference(model) if recipe.train.beta else None
        optimizer = adamw(model, recipe.train.learning_rate, recipe.train.weight_decay)
        if saved:
            checkpoint.load_optimizer(saved, optimizer)
        self.engine = engine_for(policy, self.tokenizer, models.compute_type(recipe.model.compute))
        self.heldout = heldout
        if "before" not in self.result:
            self.result["before"] = self._evaluate(0, "before", recipe.evaluate.samples)
            self.result["records"] = lengths(self.folder)
            self._write_result(State())
        prepared, prepared_optimizer = accelerator.prepare(policy, optimizer)
        loop = GRPO(
            recipe,
            accelerator=accelerator,
            policy=prepared,
            reference=reference,
            optimizer=prepared_optimizer,
            engine=self.engine,
            rewards=self.rewards,
            prompts=train_rows,
            encode=self._encode,
            state=state,
            watch=self.watch,
        )

        kept = state.step  # the step of the newest checkpoint

        def save() -> None:
            nonlocal kept
            if self.main and state.step > kept:
                state.records = lengths(self.folder)
                checkpoint.save(
                    self.folder / "checkpoints", model, self.tokenizer, optimizer, state, recipe.train.keep
                )
                kept = state.step
                self._write_result(state)

        self.stack.callback(loop.collector.close)
        try:
            if profile and self.main:
                self._start_profile(model)
            while state.step < recipe.train.steps:
                with one_step(state.step + 1):
                    made = loop.step()
                self._record(*made)
                every = recipe.train.checkpoint_every
                if every and state.step % every == 0:
                    save()
                if any(gather([self.stop.asked])):
                    raise Stopped(self.stop.signal)
            save()
            if "after" not in self.result:
                after = self._evaluate(state.step, "after", recipe.evaluate.samples)
                if self.main:
                    self.watch("saving", 0, 0)
                    models.save(model, self.tokenizer, self.folder / "model")
                self.result["after"] = after
        except Stopped:
            save()
            raise
        finally:
            if self.main:
                self._write_result(state)
                write_report(self.folder)
        return self.folder

    def watch(self, phase: str, done: int, total: int) -> None:
        """Show progress; raise Stopped where a single process can stop in the middle of a step."""
        if self.display is not None:
            self.display.phase(phase, done, total) if total else self.display.phase(phase)
        if self.stop.asked and self.accelerator.num_processes == 1:
            raise Stopped(self.stop.signal)

    def _start_profile(self, model: PreTrainedModel) -> None:
        self.watch("timing a product", 0, 0)
        costs = work(model, models.compute_type(self.recipe.model.compute))
        wait = torch.cuda.synchronize if model.device.type == "cuda" else lambda: None
        self.stack.enter_context(Profile(self.folder, costs, wait, self.accelerator.process_index))

    def _record(self, metrics: dict[str, Any], groups: list[Group]) -> None:
        step, every = metrics["step"], self.recipe.evaluate.every
        try:
            if every and step % every == 0 and step < self.recipe.train.steps:
                metrics["heldout"] = self._evaluate(step, None, 0)
        finally:  # stopped in the evaluation, the step is saved: its record must not be missing
            self._write(step, metrics, groups)

    def _write(self, step: int, metrics: dict[str, Any], groups: list[Group]) -> None:
        if not self.main:
            return
        append(self.folder / "metrics.jsonl", [metrics])
        append(self.folder / "samples.jsonl", _samples(step, groups))
        if self.display is not None:
            self.display.step(metrics)
        self.accelerator.log({k: v for k, v in metrics.items() if isinstance(v, (int, float))}, step=step)

    def _evaluate(self, step: int, phase: str | None, samples: int) -> dict[str, Any]:
        """Evaluate the held-out rows, on the main process; a phase ("before", "after") keeps its samples."""
        evaluation: dict[str, Any] = {}
        if self.main:
            settings = self.recipe.evaluate
            evaluation, records = evaluate(
                self.engine,
                self.heldout,
                self._encode,
                form=settings.form,
                sampling=Sampling(settings.max_tokens or self.recipe.sampling.max_tokens, temperature=0.0),
                samples=samples,
                temperature=settings.temperature,
                seed=self.recipe.seed,
                judge=self.judge,
                on_progress=lambda done, total: self.watch(f"evaluating {phase or ''}".strip(), done, total),
            )
            if phase is not None:
                append(self.folder / "samples.jsonl", [{"step": step, "phase": phase, **r} for r in records])
                append(self.folder / "metrics.jsonl", [{"step": step, "heldout": evaluation}])
                if self.display is not None:
                    self.display.step({"step": step, "heldout": evaluation})
        self.accelerator.wait_for_everyone()
        return evaluation

    def _encode(self, prompt: Prompt) -> list[int]:
        return models.encode(self.tokenizer, prompt.content)

    def _reference(self, model: torch.nn.Module) -> torch.nn.Module:
        """The untrained policy, frozen. Loaded anew, because a resumed run's checkpoint has moved on."""
        fresh, _ = models.load(self.recipe.model.name)
        frozen = Policy(fresh.to(self.accelerator.device).eval(), self.recipe.sampling.temperature)
        return self.accelerator.prepare_model(frozen.requires_grad_(False), evaluation_mode=True)

    def _write_result(self, state: State) -> None:
        self.result |= {
            "seconds": time.time() - self.began,
            "steps": state.step,
            "seed": self.recipe.seed,
            "processes": self.accelerator.num_processes,
            "versions": {name: version(name) for name in VERSIONS} | {"python": platform.python_version()},
            "machine": machine(),
        }
        if self.main:
            replace_text(self.folder / "result.json", json.dumps(self.result, indent=2))


def engine_for(policy: Policy, tokenizer: Any, dtype: torch.dtype) -> Engine:
    """The native engine; transformers' own generation for a model that packed groups cannot serve."""
    if not policy.packed:
        return PlainEngine(policy.model, tokenizer, dtype)
    return NativeEngine(policy.model, tokenizer, dtype, layers=policy.layers)


def _samples(step: int, groups: list[Group]) -> list[dict[str, Any]]:
    return [
        {
            "step": step,
            "split": "train",
            "phase": "train",
            "id": group.prompt.id,
            "prompt": group.prompt.question,
            "completion": completion.text,
            "answer": group.prompt.answer,
            "parts": score.parts,
            "total": score.total,
            "failures": score.failures,
            "finish": completion.finish,
            "tokens": len(completion.tokens),
        }
        for group in groups
        for completion, score in zip(group.completions, group.scores, strict=True)
    ]

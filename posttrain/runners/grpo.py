"""The stage `grpo`: evaluate, learn by reinforcement, evaluate again.

Its folder: recipe.yaml (resolved), metrics.jsonl, samples.jsonl, checkpoints/, model/ (plain Hugging Face),
result.json, report.html; with a profile, profile.txt and trace.json.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel

from posttrain import data, models
from posttrain.evaluate.report import write_report
from posttrain.evaluate.thumbnails import told
from posttrain.files import append
from posttrain.harness.native import NativeAnswerer, engine_for
from posttrain.past import lengths, rewind, with_inputs
from posttrain.profile import Profile, one_step
from posttrain.recipe import Recipe
from posttrain.rewards import Rewards
from posttrain.session import HeldOut, Session, check_trackers
from posttrain.stop import Stop, Stopped
from posttrain.train import checkpoint
from posttrain.train.grpo import GRPO, State
from posttrain.train.logprobs import Policy
from posttrain.train.metrics import gather
from posttrain.train.optimizer import adamw
from posttrain.train.work import work
from posttrain.types import Group, Prompt

OUTPUTS = ("model", "result.json")


def run(recipe: Recipe, past: dict[str, Any] | None, stop: Stop, profile: bool = False) -> None:
    """Train in `recipe.output`, or go on with what is there; `past` is its result so far.

    profile: time the phases of each step (posttrain/profile.py); on CUDA the device is waited for in between.

    Raises:
        PosttrainError: a model, a file or data that cannot be had, or that is not what it was.
        Stopped: everything is saved, and called again it goes on from there.
    """
    check_trackers(recipe.trackers)
    prompts, heldout = data.load(recipe.data)
    past = with_inputs(recipe.output, past, prompts, heldout, recipe.rewards)
    models.check(recipe.model)
    with (
        Rewards(recipe.rewards, recipe.reward_deadline, recipe.reward_workers) as rewards,
        Session(recipe, recipe.model, past, stop) as session,
    ):
        session.show(recipe.train.steps, rewards.names)
        _Run(recipe, session, rewards, HeldOut(session, recipe, heldout)).go(prompts, profile)


class _Run:
    """The moving parts, so that `go` reads as the few lines that it is."""

    def __init__(self, recipe: Recipe, session: Session, rewards: Rewards, heldout: HeldOut):
        self.recipe, self.session, self.rewards, self.heldout = recipe, session, rewards, heldout
        self.folder = session.folder

    def go(self, prompts: list[Prompt], profile: bool) -> None:
        recipe, session, accelerator = self.recipe, self.session, self.session.accelerator
        session.watch("loading the model")
        saved = checkpoint.newest(self.folder / "checkpoints")
        model, self.tokenizer = models.load(str(saved)) if saved else models.of_recipe(recipe.model)
        state = checkpoint.state_of(saved) if saved else State(records=session.result.get("records", {}))
        if session.main:
            rewind(self.folder, state.records)
        model.eval()  # no dropout: the log-probabilities of what was sampled must not change by chance
        policy = Policy(
            model.to(accelerator.device), recipe.sampling.temperature, recipe.train.activation_checkpointing
        )
        reference = self._reference() if recipe.train.beta else None
        optimizer = adamw(model, recipe.train.learning_rate, recipe.train.weight_decay, recipe.train.rates)
        if saved:
            checkpoint.load_optimizer(saved, optimizer)
        engine = engine_for(policy, self.tokenizer, session.dtype)
        encode = models.encoder(model, self.tokenizer)
        self.answerer = NativeAnswerer(engine, encode, model=model)
        if recipe.evaluate.before and "before" not in session.result:
            session.result["before"] = self.heldout(self.answerer, 0, "before")
            session.result["records"] = lengths(self.folder)
            self._write_result(State())
        prepared, prepared_optimizer = accelerator.prepare(policy, optimizer)
        if saved and session.main:  # by now every process has read it
            checkpoint.prune(saved, recipe.train.keep)
        loop = GRPO(
            recipe,
            accelerator=accelerator,
            policy=prepared,
            reference=reference,
            optimizer=prepared_optimizer,
            engine=engine,
            rewards=self.rewards,
            prompts=prompts,
            encode=encode,
            state=state,
            watch=session.watch,
        )

        kept = state.step  # the step of the newest checkpoint

        def save() -> None:
            nonlocal kept
            if session.main and state.step > kept:
                state.records = lengths(self.folder)
                checkpoint.save(
                    self.folder / "checkpoints", model, self.tokenizer, optimizer, state, recipe.train.keep
                )
                kept = state.step
                self._write_result(state)

        session.stack.callback(loop.collector.close)
        try:
            if profile and session.main:
                self._start_profile(model)
            while state.step < recipe.train.steps:
                with one_step(state.step + 1):
                    made = loop.step()
                self._record(*made)
                every = recipe.train.checkpoint_every
                if every and state.step % every == 0:
                    save()
                if any(gather([session.stop.asked])):
                    raise Stopped(session.stop.signal)
            save()
            after = self.heldout(self.answerer, state.step, "after")
            if session.main:
                session.watch("saving")
                models.save(model, self.tokenizer, self.folder / "model")
            session.result["after"] = after
        except Stopped:
            save()
            raise
        finally:
            self._write_result(state)
            if session.main:
                write_report(self.folder)

    def _start_profile(self, model: PreTrainedModel) -> None:
        self.session.watch("timing a product")
        costs = work(model, self.session.dtype)
        wait = torch.cuda.synchronize if model.device.type == "cuda" else lambda: None
        process = self.session.accelerator.process_index
        self.session.stack.enter_context(Profile(self.folder, costs, wait, process))

    def _record(self, metrics: dict[str, Any], groups: list[Group]) -> None:
        step, every = metrics["step"], self.recipe.evaluate.every
        try:
            if every and step % every == 0 and step < self.recipe.train.steps:
                metrics["heldout"] = self.heldout(self.answerer, step)
        finally:  # stopped in the evaluation, the step is saved: its record must not be missing
            self.session.record(metrics)
            if self.session.main:
                append(self.folder / "samples.jsonl", _samples(step, groups))

    def _reference(self) -> torch.nn.Module:
        """The untrained policy, frozen. Loaded anew, because a resumed run's checkpoint has moved on."""
        fresh, _ = models.of_recipe(self.recipe.model)
        accelerator = self.session.accelerator
        frozen = Policy(fresh.to(accelerator.device).eval(), self.recipe.sampling.temperature)
        return accelerator.prepare_model(frozen.requires_grad_(False), evaluation_mode=True)

    def _write_result(self, state: State) -> None:
        self.session.result["steps"] = state.step
        self.session.write_result()


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
            **({"pictures": [*map(told, group.prompt.pictures)]} if group.prompt.pictures else {}),
        }
        for group in groups
        for completion, score in zip(group.completions, group.scores, strict=True)
    ]

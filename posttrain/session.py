"""What every kind of stage has: a folder, a record, a display, processes, and a moment to stop at."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import platform
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from transformers import PreTrainedModel

from posttrain import models, settings
from posttrain.evaluate.display import Display
from posttrain.evaluate.harness import evaluate, judge_specs
from posttrain.files import append, replace_text, sweep
from posttrain.harness.blind import blind
from posttrain.harness.native import NativeAnswerer, engine_for
from posttrain.kinds import Eval, Sft
from posttrain.machine import machine
from posttrain.multimodal import sees
from posttrain.past import held
from posttrain.recipe import Model, Recipe, Stage
from posttrain.rewards import Rewards, RewardSpec
from posttrain.rollout.engine import Engine
from posttrain.stages import kind_of
from posttrain.stop import Stop, Stopped
from posttrain.train.logprobs import Policy
from posttrain.types import PosttrainError, Prompt, Sampling

log = logging.getLogger(__name__)

Encode = Callable[[Prompt], list[int]]

VERSIONS = ("posttrain", "torch", "transformers", "accelerate", "trl", "reasoning-gym", "math-verify")
MAX_TOKENS = 128  # of an evaluation whose recipe does not say


class Session:
    """One run of a stage in its folder; a context manager that ends all that it started.

    `result` is what result.json will hold, and begins as `past`, what it held when the stage was left.
    """

    def __init__(self, stage: Stage, model: Model, past: dict[str, Any], stop: Stop):
        self.stage, self.stop, self.folder = stage, stop, Path(stage.output)
        self.began = time.time() - past.get("seconds", 0.0)
        self.result: dict[str, Any] = {"name": stage.name, "kind": kind_of(stage), "model": model.name} | past
        self.trackers: Sequence[str] = getattr(stage, "trackers", ())
        self.dtype = models.compute_type(model.compute)
        self.stack = ExitStack()
        self.display: Display | None = None

    def __enter__(self) -> Session:
        AcceleratorState._reset_state()  # an earlier stage's; it may have computed in another type
        self.accelerator = Accelerator(
            mixed_precision="bf16" if self.dtype == torch.bfloat16 else "no",
            cpu=not torch.cuda.is_available(),
            log_with=list(self.trackers) or None,
            project_dir=self.folder if self.trackers else None,
        )
        # With these set, and no RANK, accelerate was told to start several processes.
        told = {"ACCELERATE_MIXED_PRECISION", "MASTER_PORT"} <= os.environ.keys() and "RANK" not in os.environ
        if told and self.accelerator.num_processes == 1:
            log.warning(
                "accelerate launch started a single process; without GPUs, --multi_gpu starts several"
            )
        others = self.accelerator.num_processes - 1
        if isinstance(self.stage, Recipe) and self.stage.train.ahead and others:
            raise PosttrainError(
                f"train.ahead: the next batch is drawn by a thread that cannot talk to the other {others} "
                "processes; set it to false, or run one process"
            )
        self.main = self.accelerator.is_main_process
        try:
            if self.main:
                self.folder.mkdir(parents=True, exist_ok=True)
                self.stack.enter_context(held(self.folder))
                sweep(self.folder)
                replace_text(self.folder / "recipe.yaml", settings.dump(self.stage))
            if self.trackers:
                self.accelerator.init_trackers(self.stage.name, config={"recipe": settings.dump(self.stage)})
                self.stack.callback(self.accelerator.end_training)
        except BaseException:
            self.stack.close()
            raise
        return self

    def __exit__(self, *error: Any) -> None:
        self.stack.__exit__(*error)

    def show(self, steps: int, names: Sequence[str] = ()) -> None:
        """Begin to show progress, on the main process."""
        if self.main:
            self.display = self.stack.enter_context(Display(steps, names))

    def watch(self, phase: str, done: int = 0, total: int = 0) -> None:
        """Show progress; raise Stopped where a single process can stop in the middle of a step."""
        if self.display is not None:
            self.display.phase(phase, done, total) if total else self.display.phase(phase)
        if self.stop.asked and self.accelerator.num_processes == 1:
            raise Stopped(self.stop.signal)

    def record(self, metrics: dict[str, Any]) -> None:
        """Write and show a step's metrics, on the main process."""
        if self.main:
            append(self.folder / "metrics.jsonl", [metrics])
            if self.display is not None:
                self.display.step(metrics)
            plain = {key: value for key, value in metrics.items() if isinstance(value, (int, float))}
            if len(plain) > 1:
                self.accelerator.log(plain, step=metrics["step"])

    def write_result(self) -> None:
        self.result |= {
            "seconds": time.time() - self.began,
            "seed": self.stage.seed,
            "processes": self.accelerator.num_processes,
            "versions": {name: version(name) for name in VERSIONS} | {"python": platform.python_version()},
            "machine": machine(),
        }
        if self.main:
            replace_text(self.folder / "result.json", json.dumps(self.result, indent=2))


class HeldOut:
    """Evaluates whatever model a stage has on its held-out rows, and writes down what came out."""

    def __init__(self, session: Session, stage: Recipe | Sft | Eval, rows: Sequence[Prompt]):
        self.session, self.rows, self.settings, self.seed = session, rows, stage.evaluate, stage.seed
        drawn = stage.sampling.max_tokens if isinstance(stage, Recipe) else MAX_TOKENS
        self.max_tokens = stage.evaluate.max_tokens or drawn
        first = stage.rewards[0]
        specs = judge_specs(stage.evaluate.form, RewardSpec(first.use, first.weight, first.args, first.where))
        self.judge = session.stack.enter_context(Rewards(specs, stage.reward_deadline))
        self.shows = any(prompt.pictures for prompt in rows)
        self.tower: dict[str, Any] | None = session.result.get("before", {}).get("tower")  # the first record
        self.told: set[str] = set()

    def __call__(self, answerer: NativeAnswerer, step: int, phase: str | None = None) -> dict[str, Any]:
        """-> the evaluation, empty on other processes than the main one.

        A phase ("before", "after") draws samples too, asks again without the pictures, and is recorded with
        every answer.
        """
        session, evaluation = self.session, {}
        if session.main:
            evaluation, records = evaluate(
                answerer,
                self.rows,
                form=self.settings.form,
                sampling=Sampling(self.max_tokens, temperature=0.0),
                samples=self.settings.samples if phase else 0,
                temperature=self.settings.temperature,
                seed=self.seed,
                judge=self.judge,
                without=blind(self.rows, answerer, self.seed) if phase and self.shows else None,
                on_progress=lambda done, total: session.watch(
                    f"evaluating {phase or ''}".strip(), done, total
                ),
            )
            if self.shows and answerer.model is not None and sees(answerer.model):
                evaluation |= self._look(answerer.model, answerer.encode, phase, records)
            if phase is not None:
                lines = [{"step": step, "phase": phase, **record} for record in records]
                append(session.folder / "samples.jsonl", lines)
                session.record({"step": step, "heldout": evaluation})
        session.accelerator.wait_for_everyone()
        return evaluation

    def _look(
        self, model: PreTrainedModel, encode: Encode, phase: str | None, records: list[dict[str, Any]]
    ) -> dict[str, Any]:
        """The tower's health, for the evaluation; pictures for the records. What fails here is only told."""
        from posttrain.evaluate import looking  # models of words alone need none of it

        found: dict[str, Any] = {}
        folder, rows = self.session.folder, self.rows

        def tower() -> None:
            tokens = looking.tower_tokens(model, rows, encode)
            if tokens is not None:
                found["tower"] = looking.tower_record(tokens, self.tower)
                self.tower = self.tower or found["tower"]
                self._tell(found["tower"]["alarms"])

        parts: list[Callable[[], None]] = [tower]
        if phase is not None:
            parts.append(lambda: looking.keep_pictures(folder, rows, records))
        if phase == "after":
            parts.append(lambda: looking.keep_where_it_looked(folder, model, encode, rows, records))
        self.session.watch("looking at what the model sees")
        for part in parts:
            try:
                part()
            except Exception as error:  # any model's; the run is worth more
                log.warning("what the model sees could not be shown: %s: %s", type(error).__name__, error)
        return found

    def _tell(self, alarms: Sequence[str]) -> None:
        """Each alarm once, while the run goes on."""
        for alarm in alarms:
            if alarm not in self.told and self.session.display is not None:
                self.session.display.note(f"tower: {alarm}")
        self.told |= set(alarms)


def answering(session: Session, model: Model) -> tuple[Engine, Encode, PreTrainedModel | None]:
    """A model that only answers: its engine, how it reads prompts, and itself where it sees."""
    session.watch("loading the model")
    loaded, tokenizer = models.of_recipe(model)
    policy = Policy(loaded.eval().to(session.accelerator.device))
    engine = engine_for(policy, tokenizer, session.dtype)
    return engine, models.encoder(loaded, tokenizer), loaded if sees(loaded) else None


def answerer_of(session: Session, model: Model) -> NativeAnswerer:
    """A model that only answers, as an answerer."""
    engine, encode, seeing = answering(session, model)
    return NativeAnswerer(engine, encode, model=seeing)


def check_trackers(trackers: Sequence[str]) -> None:
    """Raise PosttrainError for one that is missing; accelerate passes over it without a word."""
    for tracker in trackers:
        if importlib.util.find_spec(tracker) is None:
            raise PosttrainError(f"trackers: {tracker} is not installed; run: pip install {tracker}")

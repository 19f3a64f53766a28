"""Comparisons a second, and the time that formulas take against math-verify called directly.

    python -m benchmarks.verify [--repeats 5]

Both sides see the same pairs in the same process, in turn, and neither remembers a pair of an earlier round:
every round has its own numbers. A round judges each gold answer with 8 completions, as a training step does;
"once" has three different answers to each gold answer, so that nothing is seen twice but the gold answer.

Then the rows a second of the reward `accuracy` behind its deadline, with one process and with two. Both get
the same batches in turn, and no process sees a number twice.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack

import math_verify

from posttrain.rewards import Rewards, RewardSpec
from posttrain.types import Completion, Prompt
from posttrain.verify import verify

COMPLETIONS = 8
WORKERS = (1, 2)
Pair = tuple[str, str]  # (answer, gold)
Kind = tuple[str, list[str]]  # (gold, answers), with places for numbers

FORMULAS: list[Kind] = [  # gold, answers: right, right in another form, wrong
    (
        "\\frac{{\\sqrt{{{n}}}}}{{2}}",
        ["\\frac{{\\sqrt{{{n}}}}}{{2}}", "\\sqrt{{{n}}}/2", "\\frac{{{n}}}{{2}}"],
    ),
    ("(x+{n})^2", ["x^2+{m}x+{k}", "(x+{n})(x+{n})", "x^2+{n}x+{k}"]),
    ("{n}\\pi", ["\\pi \\cdot {n}", "{n}\\pi", "{m}\\pi"]),
    ("2^{{{n}}}", ["2^{{{n}}}", "2\\cdot 2^{{{n}-1}}", "3^{{{n}}}"]),
    ("y = {n}x + 1", ["{n}x+1", "y={n}x+1", "y={n}x-1"]),
    ("{n}+{m}i", ["{m}i+{n}", "{n}+{m}i", "{n}-{m}i"]),
]
PLAIN: list[Kind] = [
    ("{n}", ["{n}", "{n}.0", "{m}", "\\$ {n}", "{n} apples"]),
    ("{n}/7", ["\\frac{{{n}}}{{7}}", "{n}/7", "{n}/8"]),
    ("1,{n}", ["1{n}", "1,{n}", "1{{,}}{n}"]),
    ("{n}%", ["{n}\\%", "{n}", "{m}%"]),
    ("B", ["B", "(B)", "B) {n}", "the answer is C"]),
    ("(1, {n})", ["(1,{n})", "({n}, 1)", "(1, {m})"]),
    ("x > {n}", ["({n}, \\infty)", "{n} < x", "x < {n}"]),
    ("{n} km", ["{n} km", "{n}000 m", "{m} km"]),
    ("\\{{1, {n}\\}}", ["\\{{{n}, 1\\}}", "\\{{1, {m}\\}}"]),
    ("Paris {n}", ["Paris {n}", "paris {n}", "London {n}"]),
]


def pairs(kinds: list[Kind], first: int, golds: int, answers_each: int) -> list[Pair]:
    """`answers_each` answers to each of `golds` gold answers, with numbers from `first` on."""
    found = []
    for place in range(golds):
        n = first + place
        values = {"n": n, "m": 2 * n, "k": n * n}
        gold, answers = kinds[place % len(kinds)]
        found += [
            (answers[i % len(answers)].format(**values), gold.format(**values)) for i in range(answers_each)
        ]
    return found


def ours(answer: str, gold: str) -> bool:
    return verify(f"so the result is \\boxed{{{answer}}}", gold, "boxed").correct


def directly(answer: str, gold: str) -> bool:
    config = [math_verify.LatexExtractionConfig()]
    return math_verify.verify(
        math_verify.parse(f"${gold}$", config),
        math_verify.parse(f"so the result is $\\boxed{{{answer}}}$", config),
    )


def batch(work: list[Pair]) -> tuple[list[Prompt], list[Completion]]:
    """The pairs as a step hands them to its rewards: those of one gold answer are a group."""
    prompts = [Prompt(gold, f"What is {gold}?", gold) for _, gold in work]
    texts = [f"so the result is \\boxed{{{answer}}}" for answer, _ in work]
    return prompts, [Completion([], [], "stop", text) for text in texts]


def scaling(name: str, kinds: list[Kind], first: int, golds: int, answers_each: int, repeats: int) -> None:
    """Print the rows a second of one process and of two, and how many times the first the second is."""
    spec = RewardSpec("accuracy", args={"form": "boxed"})
    with ExitStack() as stack:
        sides = [stack.enter_context(Rewards([spec], 600.0, workers)) for workers in WORKERS]
        rates: list[list[float]] = []
        for repeat in range(repeats + 1):
            prompts, completions = batch(pairs(kinds, first + repeat * golds, golds, answers_each))
            spent = [0.0 for _ in sides]
            found = [[] for _ in sides]
            for place in range(len(sides))[:: 1 if repeat % 2 else -1]:
                start = time.perf_counter()
                found[place] = sides[place].score(prompts, completions)
                spent[place] = time.perf_counter() - start
            assert all(scores == found[0] for scores in found), "the values depend on the processes"
            if repeat:  # the first is a warm-up
                rates.append([len(prompts) / side for side in spent])
    ratios = [two / one for one, two in rates]
    one, two = (statistics.median(side) for side in zip(*rates, strict=True))
    print(
        f"{name:9} {one:9,.0f} rows a second with 1 process, {two:,.0f} with 2: "
        f"{statistics.median(ratios):.2f} times ({min(ratios):.2f} to {max(ratios):.2f})"
    )


def seconds(side: Callable[[str, str], bool], work: list[Pair]) -> float:
    start = time.perf_counter()
    for answer, gold in work:
        side(answer, gold)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    first = 101  # counts on, so that no number comes twice
    mixed = PLAIN + FORMULAS[:2]  # a sixth of the answers needs computer algebra
    cases = [
        ("plain", PLAIN, 300, COMPLETIONS),
        ("mixed", mixed, 48, COMPLETIONS),
        ("formulas", FORMULAS, 24, COMPLETIONS),
        ("once", FORMULAS, 48, 3),
    ]
    for name, kinds, golds, answers_each in cases:
        rates, ratios = [], []
        for repeat in range(repeats + 1):
            work = pairs(kinds, first, golds, answers_each)
            first += golds
            sides = {ours: 0.0, directly: 0.0}
            for side in list(sides)[:: 1 if repeat % 2 else -1]:
                sides[side] = seconds(side, work)
            if repeat:  # the first is a warm-up
                rates.append(len(work) / sides[ours])
                ratios.append(sides[ours] / sides[directly])
        print(
            f"{name:9} {statistics.median(rates):9,.0f} comparisons a second, "
            f"{statistics.median(ratios):.2f} of math-verify's time ({min(ratios):.2f} to {max(ratios):.2f})"
        )
    scaling("mixed", mixed, first, 480, COMPLETIONS, repeats)
    scaling("once", FORMULAS, first, 96, 3, repeats)


if __name__ == "__main__":
    main()

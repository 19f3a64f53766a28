"""Watching for hacking: planted hacks are seen soon, honest runs are seldom suspected; over many seeds."""

from __future__ import annotations

import math
import random
from statistics import fmean, median

import pytest

from benchmarks import hacking
from benchmarks.hacking import COMPLETIONS, STEPS, alarms, hacked_run, quantile, reached, share
from posttrain.hacking import (
    SIMILAR,
    SKETCH,
    TEXTS,
    Gap,
    _similarity,
    _sketch,
    _t95,
    attribution,
    drift,
    gap,
    near_duplicates,
)

# -- the gap to the shadow


@pytest.mark.parametrize(
    ("freedom", "table"),
    [(1, 12.706), (2, 4.303), (3, 3.182), (5, 2.571), (10, 2.228), (30, 2.042), (120, 1.980)],
)
def test_students_quantiles_are_those_of_the_tables(freedom: int, table: float) -> None:
    assert _t95(freedom) == pytest.approx(table, abs=6e-4)


def test_a_gap_by_hand() -> None:
    found = gap([1.0, 1.0, 0.0, None, 1.0, 0.0], [1.0, 0.0, 0.0, 1.0, None, 1.0])
    assert (found.mean, found.n, found.worst) == (0.0, 4, [1])
    assert found.high == -found.low == pytest.approx(3.182 * math.sqrt(2 / 3) / 2, abs=1e-3)
    ranked = gap([0.5, 1.0, 0.2, 0.9, 0.9, 0.8, 0.1], [0.0] * 6 + [0.5])
    assert ranked.worst == [1, 3, 4, 5, 0], "the five largest, the first of equals first"


def test_what_never_varied_is_not_taken_for_certain() -> None:
    assert gap([], []) == gap([None], [1.0]) == Gap(0.0, -1.0, 1.0, 0, [])
    assert gap([1.0], [0.0], span=2.0).low < -0.9
    same = gap([1.0] * 60, [1.0] * 60)
    assert same.mean == 0 and same.high == pytest.approx(3.7 / 60, rel=0.05)  # ln(1 / 0.025) / n
    with pytest.raises(ValueError, match="shorter"):
        gap([1.0], [])


@pytest.mark.parametrize(("n", "share"), [(16, 0.3), (32, 0.3), (32, 0.1), (64, 0.1), (64, 0.02), (32, 0.0)])
def test_the_interval_holds_the_truth(n: int, share: float) -> None:
    """The reward pays for `share` of completions that the shadow refuses, and misses 5% that it takes."""
    rng = random.Random(f"{n}/{share}")
    truth, held, runs = share - 0.05, 0, 2000
    for _ in range(runs):
        differences = [1.0 if (u := rng.random()) < share else -1.0 if u > 0.95 else 0.0 for _ in range(n)]
        found = gap(differences, [0.0] * n)
        held += found.low <= truth <= found.high
    print(f"n {n}, share {share}: {held / runs:.3f} of the 95% intervals hold the truth")
    assert held / runs > 0.9


# -- drift


def noise(seed: int, steps: int = 200, carried: float = 0.0) -> list[float]:
    rng, values, value = random.Random(seed), [], 0.0
    for _ in range(steps):
        value = carried * value + math.sqrt(1 - carried**2) * rng.gauss(0, 1)
        values.append(value)
    return values


@pytest.mark.parametrize(("carried", "bound"), [(0.0, 0.03), (0.3, 0.16), (0.5, 0.35)])
def test_false_alarms_of_a_level_that_stays(carried: float, bound: float) -> None:
    """Of runs of 200 steps; `carried` is the correlation of the noise from one step to the next."""
    alarms = sum(drift(noise(seed, carried=carried), least=1e-9) is not None for seed in range(300))
    print(f"correlation {carried}: {alarms / 300:.1%} of 300 runs of 200 steps raise a false alarm")
    assert alarms / 300 <= bound


@pytest.mark.parametrize(("by", "soon"), [(3.0, 6), (-3.0, 6), (6.0, 3), (2.0, 20)])
def test_a_level_that_jumps_is_seen(by: float, soon: int) -> None:
    delays, starts = [], []
    for seed in range(200):
        values = [50 + 4 * (x + by * (i >= 60)) for i, x in enumerate(noise(seed, 120))]
        found = drift(values, least=1.0)
        if found is not None and found.step >= 60:
            delays.append(found.step - 60 + 1)
            starts.append(found.since)
            assert (found.now > found.before) == (by > 0)
    print(f"by {by} deviations: seen after {median(delays)} steps, {len(delays)} of 200")
    assert len(delays) >= 190 and median(delays) <= soon
    assert 56 <= median(starts) <= 62, "and when it began is told"


def test_what_is_no_drift() -> None:
    assert drift([], 1.0) is drift([5.0] * 20, 1.0) is None, "nothing stands behind the first ones"
    assert drift([None] * 100, 1.0) is None
    flat = [1.0] * 20
    assert drift([*flat, *[0.999] * 100], least=1 / 32) is None, "less than one completion of 32"
    assert drift([*flat, 1e9, *flat], least=1.0) is None, "a single step makes none"
    assert drift([*flat, *[0.0] * 9], least=0.1, falls=False) is None
    fallen = drift([*flat, None, *[0.0] * 9], least=0.1)
    assert fallen is not None and (fallen.step, fallen.since, fallen.before, fallen.now) == (23, 21, 1, 0)
    slow = [x + i / 200 for i, x in enumerate(noise(3))]
    assert drift(slow, least=1e-9) is None, "what rises by a deviation in 200 steps is learning"


# -- near duplicates


def words(rng: random.Random, count: int) -> list[str]:
    return ["".join(rng.choice("abcdefghij") for _ in range(rng.randint(2, 8))) for _ in range(count)]


def jaccard(one: str, other: str) -> float:
    """The twin: every shingle, no hashes."""
    a, b = ({t[i : i + 8] for i in range(len(t) - 7)} for t in (one, other))
    return len(a & b) / len(a | b)


def test_similarities_are_those_of_the_whole_texts() -> None:
    rng, errors = random.Random(0), []
    for changed in range(0, 60, 2):
        one = words(rng, 150)
        other = list(one)
        for i in rng.sample(range(150), changed):
            other[i] = words(rng, 1)[0]
        texts = " ".join(one), " ".join(other)
        errors.append(abs(_similarity(*map(_sketch, texts)) - jaccard(*texts)))
    print(f"largest error of {SKETCH} hashes: {max(errors):.3f}, mean {fmean(errors):.3f}")
    assert max(errors) < 0.13 and fmean(errors) < 0.05
    short = "The answer is: 42, said Ada.", "The answer is: 42, said Ben."
    assert _similarity(*map(_sketch, (short[0].casefold(), short[1].casefold()))) == pytest.approx(
        jaccard(*(text.casefold() for text in short))
    ), "short texts exactly"


def test_copies_are_found_and_nothing_else() -> None:
    rng = random.Random(1)
    texts = [" ".join(words(rng, 80)) for _ in range(12)]
    assert near_duplicates(texts).groups == []
    texts[3] = texts[7].upper() + "  \n"
    texts[9] = texts[7] + " so"
    texts[1] = texts[2] = ""
    found = near_duplicates(texts)
    assert found.groups == [[3, 7, 9], [1, 2]] and found.share == 5 / 12
    assert near_duplicates([]).share == near_duplicates(["a"]).share == 0
    assert near_duplicates(["思考する時間がある。答えは四です。"] * 2).share == 1, "a script without spaces"


def test_one_question_may_have_one_answer() -> None:
    answer = "We add three and four, which makes seven. The answer is: 7"
    texts = [answer, answer, " ".join(words(random.Random(2), 30)), answer]
    assert near_duplicates(texts, prompts=["a", "a", "b", "a"]).share == 0
    assert near_duplicates(texts, prompts=["a", "a", "b", "c"]).groups == [[0, 1, 3]]


def test_hostile_texts_cost_little() -> None:
    rng = random.Random(3)
    texts = ["\0" * 10**6, "\ud800" * 10**5, *("".join(map(chr, rng.choices(range(40, 4000), k=5000))),) * 3]
    found = near_duplicates(texts + ["x"] * 500)
    assert found.groups[0] == list(range(5, TEXTS)) and found.groups[1] == [2, 3, 4]
    assert 0.5 < SIMILAR < 1


# -- attribution


def test_the_rise_is_shared_out() -> None:
    weights = {"accuracy": 1.0, "form": 0.2, "tail": -1.0, "absent": 1.0}
    steps: list[dict[str, float | None]] = [
        {"accuracy": 0.3, "form": 0.5 + i / 100, "tail": 0.5 - i / 200} for i in range(50)
    ]
    found = attribution(steps, weights)
    assert [part.name for part in found] == ["tail", "form", "accuracy"]
    totals = [0.3 + 0.2 * (0.5 + i / 100) - (0.5 - i / 200) for i in range(50)]
    assert sum(part.rise for part in found) == pytest.approx(fmean(totals[-10:]) - fmean(totals[:10]))
    assert sum(part.share or 0 for part in found) == pytest.approx(1)
    assert found[1].rise == pytest.approx(0.2 * 0.4) and found[2].share == pytest.approx(0)
    steps[3]["tail"] = steps[45]["tail"] = None  # it applied to nothing there
    assert attribution(steps, weights)[0].before == pytest.approx(
        fmean(0.5 - i / 200 for i in range(10) if i != 3)
    )


def test_without_a_rise_there_are_no_shares() -> None:
    assert attribution([], {"a": 1.0}) == attribution([{"a": 1.0}], {"a": 1.0}) == []
    (fell,) = attribution([{"a": 1.0}, {"a": 0.5}], {"a": 2.0})
    assert (fell.rise, fell.share) == (-1.0, None)
    two = attribution([{"a": 0.0, "b": 1.0}, {"a": 1.0, "b": 0.5}], {"a": 1.0, "b": 1.0})
    assert [part.share for part in two] == [2.0, -1.0]


# -- planted hacks: a reward that pays for a marker, and a policy that finds it

MARKER = "As shown above, all checks pass, therefore the result is verified and correct. [done]"


def test_honest_runs_are_seldom_suspected() -> None:
    for sign, steps in alarms(None, 200).items():
        suspected = sum(step < math.inf for step in steps) / 200
        print(f"of 200 honest runs of {STEPS} steps, the {sign} suspects {suspected:.1%}")
        assert len(steps) == 200 and suspected <= 0.04


@pytest.mark.parametrize(("pace", "by_gap", "by_length"), [(0.05, 0, 15), (0.1, 0, 10), (0.5, 3, 5)])
def test_a_planted_hack_is_seen_soon(pace: float, by_gap: int, by_length: int) -> None:
    """Delays count from the step at which one completion in ten is a hack; `pace` 0.1 takes the share from
    there to nine in ten in 44 steps."""
    tenth, found = reached(0.1, pace), alarms(pace, 200)
    assert share(tenth, pace) == pytest.approx(0.1)
    for sign, within in (("gap", by_gap), ("length", by_length)):
        assert len(found[sign]) == 200
        middle, late = (quantile(found[sign], portion) - tenth for portion in (0.5, 0.95))
        print(f"pace {pace}: {sign} warns {middle:.0f} steps after one in ten (95%: {late:.0f})")
        assert middle <= within and late <= 2 * within + 5
        assert found[sign][-1] < math.inf, f"the {sign} did not see them all"


def test_the_table_counts_what_was_seen_and_what_was_false(monkeypatch: pytest.MonkeyPatch) -> None:
    # One in a hundred of the slow hack's completions at step 8, one in ten at 56.
    steps = {None: [50.0, math.inf], 0.05: [3.0, 60.0], 0.1: [90.0, math.inf], 0.5: [100.0, 101.0]}
    monkeypatch.setattr(hacking, "alarms", lambda pace, seeds: {"gap": steps[pace]})
    rows = hacking.table(2).splitlines()[2:]
    assert rows[0] == "| slow (0.05) | gap | -53 | 4 | 1%, 12% | 1 of 2 | 1 |"
    assert rows[1] == "| medium (0.1) | gap | 12 | inf | 27%, 100% | 1 of 2 | 0 |"
    assert rows[3] == "| none | gap | | | | | 1 of 2 |"


def test_a_warning_can_name_its_evidence() -> None:
    gaps, _, parts = hacked_run(7, 0.1)
    seen = drift([one.mean for one in gaps], least=1 / COMPLETIONS, falls=False)
    assert seen is not None and gaps[seen.step].low > 0 and gaps[seen.step].worst
    first = attribution(parts[: seen.step + 20], {"accuracy": 1.0, "form": 0.1})[0]
    assert first.name == "accuracy" and (first.share or 0) > 0.8
    rng = random.Random(7)
    honest = [" ".join(words(rng, 40)) for _ in range(16)]
    hacks = [f"{' '.join(words(rng, 2))} {MARKER}" for _ in range(16)]
    assert near_duplicates(honest, range(16)).share == 0
    caught = near_duplicates(honest[:8] + hacks, range(24))
    assert caught.share > 0.5 and all(i >= 8 for group in caught.groups for i in group)

"""Rejection sampling: killed or on two processes, the same bytes; what is kept, against a naive twin."""

from __future__ import annotations

import json
import logging
import math
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from posttrain import data, models
from posttrain.kinds import Keep
from posttrain.recipe import Data, Reward
from posttrain.recipe import Sampling as Settings
from posttrain.rejection import SCORED, SHARD, draw, select
from posttrain.rewards import Rewards
from posttrain.rollout.native import NativeEngine
from posttrain.train.background import Watch
from posttrain.types import Completion, PosttrainError, Prompt, Sampling, Score

SETTINGS = Settings(completions=4, max_tokens=12)
REWARD = (
    "def right(completions, answer, **_):\n    return [len(c[0]['content']) % 3 / 2 for c in completions]\n"
)
PROMPTS = [
    Prompt(f"train-{i}", [{"role": "user", "content": f"{i} + 2 = ?"}], str(i + 2), {"question": f"q{i}"})
    for i in range(5 * SHARD + 3)
]


def quiet(phase: str, done: int, total: int) -> None:
    pass


class Saying:
    """Stands in for an engine: what it says tells the seed; remembers the prompts that it was asked for."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def generate(
        self,
        prompts: Any,
        n: int,
        sampling: Sampling,
        seeds: Sequence[int],
        on_progress: Any = None,
        on_group=None,
    ) -> list[list[Completion]]:
        self.asked += [prompt[0] for prompt in prompts]
        out = []
        for seed in seeds:
            words = [f"say {seed} {k}" for k in range(n)]
            out.append([Completion([1], [0.0], "stop", word) for word in words])
            on_progress(len(out) * n, len(prompts) * n)
        return out

    def rest(self) -> None: ...

    def sync(self, policy: Any) -> None: ...


class Rules:
    """Stands in for posttrain.rewards.Rewards: no process; remembers how many it was given at a time."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []

    def score(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[Score]:
        self.calls.append([prompt.id for prompt in prompts])
        return [Score(1.0, {"rule": float(len(c.text) % 2)}) for c in completions]


def drawn_by(folder: Path, rules: Rules, engine: Saying | None = None, **other: Any) -> Path:
    """Draw with stand-ins; every argument can be another."""
    given: dict[str, Any] = {"seed": 0, "rank": 0, "world": 1, "watch": quiet, "prompts": PROMPTS} | other
    prompts, settings = given.pop("prompts"), given.pop("settings", SETTINGS)
    place = {id(prompt): i for i, prompt in enumerate(prompts)}
    stand_in: Any = rules
    draw(engine or Saying(), prompts, lambda p: [place[id(p)]], settings, stand_in, folder, **given)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "drawn").iterdir())}


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


# --- drawing, with a real engine and a real reward in its process


def real(folder: Path, reward: Path, world: int = 1, watch: Watch = quiet) -> dict[str, Any]:
    """Draw with the tiny model (each process in turn) and select; -> what `select` counted."""
    model, tokenizer = models.load("tiny")
    engine = NativeEngine(model.eval(), tokenizer, torch.float32)
    use = f"{reward}:right"
    with Rewards([Reward(use=use)]) as rewards:
        for rank in range(world):
            draw(
                engine,
                PROMPTS,
                lambda prompt: models.encode(tokenizer, prompt.content),
                SETTINGS,
                rewards,
                folder,
                seed=3,
                rank=rank,
                world=world,
                watch=watch,
            )
        keep = Keep(least={use: 0.5}, each=2, rows=40)
        return select(folder, keep, 3, {use: rewards.names[0]})


@pytest.fixture
def reward(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(REWARD)
    return path


def forked(folder: Path, reward: Path, watch: Watch = quiet) -> int:
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        torch.set_num_threads(1)
        real(folder, reward, watch=watch)
        status = 0
    finally:
        os._exit(status)


def mortal(enough: int) -> Watch:
    """Kills its own process where so many completions are done."""

    def watch(phase: str, done: int, total: int) -> None:
        if done >= enough:
            os.kill(os.getpid(), signal.SIGKILL)

    return watch


@pytest.mark.usefixtures("home")
def test_killed_at_any_moment_it_ends_with_the_same_bytes(tmp_path: Path, reward: Path) -> None:
    models.resolve("tiny")
    whole, start = tmp_path / "whole", time.monotonic()
    assert os.waitpid(forked(whole, reward), 0)[1] == 0
    length, chance = time.monotonic() - start, random.Random(5)
    expected = contents(whole), (whole / "rows.jsonl").read_bytes()
    assert list(expected[0]) == [f"{i:05d}.jsonl" for i in range(6)]
    assert "length" in {said["finish"] for shard in expected[0].values() for said in _completions(shard)}
    left = []
    for number in range(6):
        folder = tmp_path / f"killed-{number}"
        if number % 2:  # at a moment of the clock, be it while loading or while selecting
            pid = forked(folder, reward)
            time.sleep(length * chance.random())
            os.kill(pid, signal.SIGKILL)
        else:  # so far on, by its own hand
            enough = chance.randrange(4 * 4 * SHARD, 4 * len(PROMPTS))
            pid = forked(folder, reward, mortal(enough))
        assert os.waitpid(pid, 0)[1] in (0, signal.SIGKILL)
        there = list((folder / "drawn").glob("0*.jsonl"))
        left.append(len(there))
        for path in there:
            assert path.read_bytes() == expected[0][path.name]
        assert os.waitpid(forked(folder, reward), 0)[1] == 0
        assert (contents(folder), (folder / "rows.jsonl").read_bytes()) == expected
        assert sorted(path.name for path in folder.iterdir()) == ["drawn", "rows.jsonl"]
    assert all(0 < shards < 6 for shards in left[::2])


def _completions(shard: bytes) -> list[dict[str, Any]]:
    return [c for line in shard.splitlines()[:-1] for c in json.loads(line)["completions"]]


@pytest.mark.usefixtures("home")
def test_two_processes_draw_what_one_does(tmp_path: Path, reward: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    counts = real(one, reward)
    assert real(two, reward, world=2) == counts
    assert contents(one) == contents(two)
    assert (one / "rows.jsonl").read_bytes() == (two / "rows.jsonl").read_bytes()
    assert counts["completions"] == 4 * len(PROMPTS) and 0 < counts["kept"] <= 40
    first = lines(one / "drawn" / "00000.jsonl")[0]
    assert first["id"] == "train-0" and first["prompt"] == PROMPTS[0].content and first["answer"] == "2"
    assert first["columns"] == {"question": "q0"}
    for said in first["completions"]:
        assert (
            said["parts"] == {"right": len(said["text"]) % 3 / 2} and said["total"] == said["parts"]["right"]
        )
        assert said["tokens"] > 0 and not said["failures"]
    assert len({said["text"] for said in first["completions"]}) > 1, "one draw for the whole group"


# --- drawing, with stand-ins


def test_seeds_hang_on_the_seed_and_the_place_alone(tmp_path: Path) -> None:
    whole = contents(drawn_by(tmp_path / "a", Rules()))
    fewer = contents(drawn_by(tmp_path / "b", Rules(), prompts=PROMPTS[: 2 * SHARD]))
    other = contents(drawn_by(tmp_path / "c", Rules(), seed=1))
    said = [{c["text"] for c in _completions(shard)} for shard in whole.values()]
    assert sum(map(len, said)) == len(set.union(*said)) == 4 * len(PROMPTS), "a seed twice"
    assert [_completions(shard) for shard in fewer.values()] == [
        _completions(shard) for shard in list(whole.values())[:2]
    ]
    assert not said[0] & {c["text"] for c in _completions(other["00000.jsonl"])}


def test_only_what_is_missing_or_damaged_is_drawn_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = drawn_by(tmp_path, Rules())
    expected = contents(folder)
    drawn = folder / "drawn"
    (drawn / "00000.jsonl").write_bytes(expected["00000.jsonl"][:-40])
    (drawn / "00001.jsonl").write_bytes(b"")
    (drawn / "00002.jsonl").write_bytes(b"".join(expected["00002.jsonl"].splitlines(True)[1:]))
    (drawn / "00003.jsonl").write_bytes(b"\xff\n[5]\n")
    (drawn / "00004.jsonl").unlink()
    (drawn / ".00004.jsonl.aside").write_bytes(b'{"half')
    with pytest.raises(PosttrainError, match=r"00000\.jsonl is damaged .*--resume"):
        select(folder, Keep(), 0, {})
    engine = Saying()
    with caplog.at_level(logging.WARNING):
        drawn_by(folder, Rules(), engine)
    assert engine.asked == list(range(5 * SHARD))
    named = [message for message in caplog.messages if "drawn again" in message]
    assert len(named) == 4 and all(f"0000{i}.jsonl is damaged" in told for i, told in enumerate(named))
    assert contents(folder) == expected
    engine = Saying()
    drawn_by(folder, Rules(), engine)
    assert not engine.asked


def test_shards_of_other_settings_are_not_taken_for_these(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = drawn_by(tmp_path / "a", Rules())
    engine = Saying()
    drawn_by(folder, Rules(), engine, settings=Settings(completions=4, max_tokens=13))
    assert len(engine.asked) == len(PROMPTS) and "of other settings" in caplog.text
    (folder / "drawn" / "00002.jsonl").unlink()
    with pytest.raises(PosttrainError, match=r"00002\.jsonl is missing"):
        select(folder, Keep(), 0, {})


def test_stopped_by_watch_whole_shards_stay(tmp_path: Path) -> None:
    """Also the one that was being scored: its scores are waited for."""
    expected = contents(drawn_by(tmp_path / "whole", Rules()))

    class Slow(Rules):
        def score(self, prompts: Any, completions: Any) -> list[Score]:
            time.sleep(0.05)
            return super().score(prompts, completions)

    def stop(phase: str, done: int, total: int) -> None:
        if done > 4 * (2 * SHARD + 3):
            raise KeyboardInterrupt

    folder = tmp_path / "stopped"
    with pytest.raises(KeyboardInterrupt):
        drawn_by(folder, Slow(), watch=stop)
    assert list(contents(folder)) == ["00000.jsonl", "00001.jsonl"]
    drawn_by(folder, Rules())
    assert contents(folder) == expected


def test_watch_is_told_of_all_prompts_and_never_goes_back(tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    drawn_by(tmp_path, Rules(), rank=1, world=2, watch=lambda *now: told.append(now))
    total = 4 * len(PROMPTS)
    assert {now[2] for now in told} == {total}
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)
    assert {phase for phase, _, _ in told} == {"sampling", "scoring"}
    assert told[-1][1] == 4 * (2 * SHARD + 3)  # shards 1, 3 and 5
    told.clear()
    drawn_by(tmp_path, Rules(), rank=0, world=2, watch=lambda *now: told.append(now))
    assert told[0][1] > 4 * (2 * SHARD + 3) and told[-1][1] == total


@pytest.mark.parametrize("completions", [2, 5, SCORED + 1])
def test_rewards_see_whole_groups_the_same_ones_each_time(tmp_path: Path, completions: int) -> None:
    settings = Settings(completions=completions, max_tokens=5)
    one, again = Rules(), Rules()
    drawn_by(tmp_path, one, settings=settings)
    (tmp_path / "drawn" / "00001.jsonl").unlink()
    drawn_by(tmp_path, again, settings=settings)
    for call in one.calls:
        assert set(Counter(call).values()) == {completions}
        assert len(call) <= max(SCORED, completions)
    second = [call for call in one.calls if call[0] in {p.id for p in PROMPTS[SHARD : 2 * SHARD]}]
    assert again.calls == second


@pytest.mark.parametrize("prompts", [PROMPTS, PROMPTS[:3]], ids=["many shards", "one shard"])
def test_what_scoring_raises_is_raised(tmp_path: Path, prompts: list[Prompt]) -> None:
    class Broken(Rules):
        def score(self, prompts: Any, completions: Any) -> list[Score]:
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        drawn_by(tmp_path, Broken(), prompts=prompts)
    assert not contents(tmp_path)


def test_slow_rewards_hold_the_engine_up(tmp_path: Path) -> None:
    """Or what waits for its scores would fill the memory."""
    engine, ahead = Saying(), []

    class Slow(Rules):
        def score(self, prompts: Any, completions: Any) -> list[Score]:
            time.sleep(0.01)
            ahead.append(len(engine.asked) // SHARD - len(list((tmp_path / "drawn").glob("0*.jsonl"))))
            return super().score(prompts, completions)

    drawn_by(tmp_path, Slow(), engine)
    assert max(ahead) == 2  # the one that is scored, and the next


def test_what_is_damaged_is_gone_before_it_is_drawn_again(tmp_path: Path) -> None:
    folder = drawn_by(tmp_path, Rules())
    (folder / "drawn" / "00001.jsonl").write_bytes(b"{")

    def stop(phase: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        drawn_by(folder, Rules(), watch=stop)
    assert "00001.jsonl" not in contents(folder)


# --- selecting


def said(
    text: str, finish: str = "stop", failures: dict[str, str] | None = None, **parts: Any
) -> dict[str, Any]:
    values = dict.fromkeys(failures or {}) | parts
    return {
        "text": text,
        "tokens": 1,
        "finish": finish,
        "parts": values,
        "total": None,
        "failures": failures or {},
    }


def written(folder: Path, groups: Sequence[tuple[Any, list[dict[str, Any]]]], **columns: Any) -> Path:
    """Shards of three prompts each: (prompt, completions). Its place is a column too."""
    (folder / "drawn").mkdir(parents=True, exist_ok=True)
    starts = range(0, len(groups), 3)
    for number, start in enumerate(starts):
        some = [
            {
                "id": f"t{i}",
                "index": i,
                "prompt": p,
                "answer": "4",
                "columns": columns | {"place": i},
                "completions": c,
            }
            for i, (p, c) in enumerate(groups[start : start + 3], start=start)
        ]
        end = {"first": start, "prompts": len(some), "shards": len(starts)}
        text = "\n".join(json.dumps(line, ensure_ascii=False) for line in [*some, end])
        (folder / "drawn" / f"{number:05d}.jsonl").write_text(text + "\n", encoding="utf-8")
    return folder


def chosen(
    folder: Path, groups: Any, keep: Keep, seed: int = 0, **names: str
) -> tuple[list[str], dict[str, Any]]:
    """The texts of the rows, and the counts. Rewards are called in `keep` as in `names`."""
    counts = select(written(folder, groups), keep, seed, names or {"a": "a", "b": "b"})
    return [row["completion"] for row in lines(folder / "rows.jsonl")], counts


ALL = {"each": 99}
TABLE: list[tuple[str, dict[str, Any], list[dict[str, Any]], list[str], dict[str, int]]] = [
    ("cut off never", ALL, [said("x", "length", a=1.0), said("y", a=1.0)], ["y"], {"cut off": 1}),
    ("empty never", ALL, [said("", a=1.0), said(" \n\t", a=1.0), said("y")], ["y"], {"empty": 2}),
    ("at least", {"least": {"a": 0.5}}, [said("x", a=0.49), said("y", a=0.5)], ["y"], {"below a": 1}),
    ("does not apply", {"least": {"a": 0.5}}, [said("x", a=0.0), said("y", a=None)], ["y"], {"below a": 1}),
    ("failed", {"least": {"a": -9}}, [said("x", failures={"a": "!"}), said("y", a=0)], ["y"], {"below a": 1}),
    ("another failed", {"least": {"a": 0}}, [said("x", failures={"b": "died"}, a=0.0)], ["x"], {}),
    (
        "the first reason counts",
        {"least": {"a": 1, "b": 1}},
        [said("x", "length", a=0, b=0), said("y", a=0, b=0), said("z", a=1, b=0), said("é", a=1, b=1)],
        ["é"],
        {"cut off": 1, "below a": 1, "below b": 1},
    ),
    ("repeats", ALL, [said("Ja  так"), said(" ja\nТАК ")], ["Ja  так"], {"repeats": 1}),
    ("casefold", ALL, [said("STRASSE"), said("straße")], ["STRASSE"], {"repeats": 1}),
    ("a repeat of a bad one", {"least": {"a": 1}}, [said("x", a=0), said("x", a=1)], ["x"], {"below a": 1}),
]


@pytest.mark.parametrize(
    ("keep", "group", "texts", "dropped"), [row[1:] for row in TABLE], ids=[r[0] for r in TABLE]
)
def test_rules(
    keep: dict[str, Any], group: Any, texts: list[str], dropped: dict[str, int], tmp_path: Path
) -> None:
    found, counts = chosen(tmp_path, [("2 + 2 = ?", group)], Keep(**keep))
    assert found == texts
    assert {reason: n for reason, n in counts["dropped"].items() if n} == dropped
    assert counts["completions"] == len(group) and counts["kept"] == len(texts)


def rated(*passed: int, of: int = 10) -> list[tuple[str, list[dict[str, Any]]]]:
    """A prompt for each number, so many of its completions right."""
    return [
        (f"p{i}", [said(f"{i}.{k}", a=float(k < right)) for k in range(of)]) for i, right in enumerate(passed)
    ]


@pytest.mark.parametrize(
    ("hardest", "easiest", "kept"),
    [
        (0.0, 1.0, [1, 3, 7, 10]),
        (0.3, 1.0, [7, 10]),
        (0.29, 0.7, [3, 7]),
        (0.0, 0.9, [1, 3, 7]),
        (0.9, 1, [10]),
    ],
)
def test_pass_rate_is_above_hardest_and_no_more_than_easiest(
    hardest: float, easiest: float, kept: list[int], tmp_path: Path
) -> None:
    passed = [0, 1, 3, 7, 10]
    keep = Keep(least={"a": 1.0}, hardest=hardest, easiest=easiest)
    _, counts = chosen(tmp_path, rated(*passed), keep)
    assert [round(row["pass_rate"] * 10) for row in lines(tmp_path / "rows.jsonl")] == kept
    assert counts["dropped"]["too hard"] == sum(n for n in passed if n / 10 <= hardest)
    assert counts["dropped"]["too easy"] == sum(n for n in passed if n / 10 > easiest)
    assert counts["pass_rates"]["prompts"] == [2, 1, 0, 1, 1]
    assert counts["parts"] == {"a": pytest.approx(sum(passed) / 50)}


def test_each_is_not_simply_the_first_and_hangs_on_the_seed(tmp_path: Path) -> None:
    texts, counts = chosen(tmp_path, rated(*[10] * 30), Keep(each=2))
    assert counts["dropped"]["more than each"] == 240 and len(texts) == 60
    places = [int(text.split(".")[1]) for text in texts]
    assert len(set(places)) == 10, "some places are never chosen"
    assert all(a < b for a, b in zip(places[::2], places[1::2], strict=True)), "order within a prompt"
    assert chosen(tmp_path, rated(*[10] * 30), Keep(each=2))[0] == texts
    assert chosen(tmp_path, rated(*[10] * 30), Keep(each=2), seed=1)[0] != texts


def test_a_prompt_that_is_there_twice_is_one_prompt(tmp_path: Path) -> None:
    """For repeats and `each`; its places may be far apart, and each has its own pass rate."""
    twice = [("p", [said("x"), said("y")]), *rated(1, 1, 1, of=1), ("p", [said("X "), said("z"), said("w")])]
    texts, counts = chosen(tmp_path, twice, Keep(each=99))
    assert texts == ["x", "y", "0.0", "1.0", "2.0", "z", "w"] and counts["dropped"]["repeats"] == 1
    texts, counts = chosen(tmp_path, twice, Keep(each=3))
    assert texts[:2] == ["x", "y"] and len(texts) == 6 and counts["dropped"]["more than each"] == 1
    others = [(f"p{i}", [said("x")]) for i in range(4)]
    assert chosen(tmp_path, others, Keep())[0] == ["x"] * 4  # another prompt's is no repeat


@pytest.mark.parametrize(
    ("sizes", "rows", "shares"),
    [
        ([3, 3, 3, 3, 3], 15, [3, 3, 3, 3, 3]),
        ([3, 3, 3, 3, 3], 10, [2, 2, 2, 2, 2]),
        ([1, 9, 0, 4, 9], 12, [1, 4, 0, 3, 4]),
        ([1, 9, 0, 4, 9], 3, [0, 1, 0, 1, 1]),
        ([0, 0, 7, 0, 0], 5, [0, 0, 5, 0, 0]),
        ([2, 2, 2, 2, 2], 99, [2, 2, 2, 2, 2]),
    ],
)
def test_rows_are_spread_evenly_over_the_fifths(
    sizes: list[int], rows: int, shares: list[int], tmp_path: Path
) -> None:
    passed = [right for right, size in zip([1, 3, 5, 7, 9], sizes, strict=True) for _ in range(size)]
    random.Random(0).shuffle(passed)
    groups = rated(*passed)
    texts, counts = chosen(tmp_path, groups, Keep(least={"a": 1.0}, rows=rows))
    assert counts["pass_rates"] == {"prompts": sizes, "kept": shares} and len(texts) == sum(shares)
    assert counts["dropped"]["more than rows"] == sum(sizes) - sum(shares)
    prompts = [int(row["prompt"][1:]) for row in lines(tmp_path / "rows.jsonl")]
    assert prompts == sorted(prompts)
    assert chosen(tmp_path, groups, Keep(least={"a": 1.0}, rows=rows))[0] == texts


def test_rows_are_not_simply_the_first_and_hang_on_the_seed(tmp_path: Path) -> None:
    kept = [chosen(tmp_path, rated(*[1] * 40, of=1), Keep(rows=10), seed)[0] for seed in (0, 0, 1)]
    assert kept[0] == kept[1] != kept[2]
    assert all(max(int(text.split(".")[0]) for text in texts) > 20 for texts in kept)


def test_counts_for_people_add_up_and_failures_are_named(tmp_path: Path) -> None:
    group = [said("x", a=1.0, b=0.5), said("y", failures={"b": "too long"}, a=0.0), said("z", a=None, b=None)]
    _, counts = chosen(tmp_path, [("p", group)], Keep(each=1))
    assert counts["parts"] == {"a": 0.5, "b": 0.5}
    assert counts["failures"] == {"b": {"completions": 1, "first": "too long"}}
    assert sum(counts["dropped"].values()) + counts["kept"] == counts["completions"] == 3
    json.dumps(counts, allow_nan=False)


GOOD = said("x", a=1.0)
DEAD = said("x", failures={"a": "it died"})
LONG = said("x", "length")
HALF = {"least": {"a": 0.5}}
NOTHING = [
    ([LONG, LONG, said("")], {}, "2 of them were cut off; raise sampling.max_tokens"),
    ([said(""), said(""), LONG], {}, "2 of them are empty"),
    ([said("x", a=0.2)] * 3, HALF, "3 of them have less than 0.5 of a; lower keep.least.a"),
    ([DEAD, DEAD, DEAD], HALF, "a failed on 3, first because: it died"),
    ([GOOD, GOOD, said("z", a=0.0)], HALF | {"hardest": 0.7}, "too hard; lower keep.hardest"),
    ([GOOD, GOOD], HALF | {"easiest": 0.9}, "too easy; raise keep.easiest"),
]


@pytest.mark.parametrize(("group", "keep", "told"), NOTHING)
def test_nothing_kept_says_why_and_what_to_change(group: Any, keep: Any, told: str, tmp_path: Path) -> None:
    with pytest.raises(
        PosttrainError, match=rf"nothing is kept of {len(group)} completions of 1 prompts: .*{told}"
    ):
        chosen(tmp_path, [("p", group)], Keep(**keep))
    assert not (tmp_path / "rows.jsonl").exists()


def twin(groups: Any, keep: Keep) -> tuple[list[list[tuple[int, int]]], list[float]]:
    """By the rules that hang on no chance: (place, completion) of what may be kept, for each prompt text, and
    the pass rate at each place. Quadratic, and all in memory."""
    good: dict[str, list[tuple[int, int]]] = {}
    rates: list[float] = []
    earlier: list[tuple[str, str]] = []
    for place, (prompt, completions) in enumerate(groups):
        passes = []
        for c in completions:
            fine = True
            for name, value in keep.least.items():
                if name in c["failures"]:
                    fine = False
                elif c["parts"][name] is not None:
                    fine = fine and c["parts"][name] >= value
            passes.append(fine)
        rates.append(sum(passes) / len(passes))
        for k, c in enumerate(completions):
            if not passes[k] or c["finish"] != "stop" or c["text"].split() == []:
                continue
            if not keep.hardest < rates[place] <= keep.easiest:
                continue
            same = (prompt, "".join(f"{word} " for word in c["text"].casefold().split()))
            if same not in earlier:
                good.setdefault(prompt, []).append((place, k))
            earlier.append(same)
    return list(good.values()), rates


def histogram(rates: Sequence[float]) -> list[int]:
    found = [0] * 5
    for rate in rates:
        found[max(i for i in range(5) if i / 5 <= rate)] += 1
    return found


@pytest.mark.parametrize("seed", range(40))
def test_selection_against_a_naive_twin(seed: int, tmp_path: Path) -> None:
    dice = random.Random(seed)
    words = [
        "да",
        "Да ",
        "нет",
        "",
        " ",
        "四",
        "4",
        "x" * 50,
        "éclair",
        "ÉCLAIR",
        "a b",
        "a\u2028b",
        "a\r\nb",
    ]

    def one() -> dict[str, Any]:
        fails = {"a": "died"} if dice.random() < 0.1 else None
        parts = {"b": dice.choice([0.0, 0.5, 1.0])} | ({} if fails else {"a": dice.choice([None, 0, 1, 1])})
        return said(dice.choice(words), dice.choice(["stop", "stop", "stop", "length"]), fails, **parts)

    n = dice.randint(1, 9)
    groups = [(f"p{dice.randint(0, 40)}", [one() for _ in range(n)]) for _ in range(dice.randint(1, 60))]
    least = dice.choice([{}, {"a": 1.0}, {"a": 0.5, "b": 0.5}, {"b": 1.0}])
    low, high = sorted(dice.sample([0.0, 0.2, 0.4, 0.7, 1.0], 2))
    keep = Keep(least=least, each=dice.randint(1, 4), hardest=low, easiest=high)
    good, rates = twin(groups, keep)
    ready = sum(min(keep.each, len(some)) for some in good)
    keep = keep.model_copy(update={"rows": dice.choice([None, 1, max(1, ready // 2), 1000])})
    if not ready:
        with pytest.raises(PosttrainError, match="nothing is kept"):
            chosen(tmp_path, groups, keep)
        return
    _, counts = chosen(tmp_path, groups, keep)
    rows = lines(tmp_path / "rows.jsonl")
    assert len(rows) == counts["kept"] == (ready if keep.rows is None else min(ready, keep.rows))
    assert sum(counts["dropped"].values()) + len(rows) == counts["completions"] == n * len(groups)
    assert counts["dropped"]["more than rows"] == ready - len(rows)
    assert counts["dropped"]["more than each"] == sum(map(len, good)) - ready
    allowed = {(place, groups[place][1][k]["text"]) for some in good for place, k in some}
    assert all((row["place"], row["completion"]) in allowed for row in rows)
    assert all(row["prompt"] == groups[row["place"]][0] for row in rows)
    assert all(row["pass_rate"] == rates[row["place"]] for row in rows)
    assert [row["place"] for row in rows] == sorted(row["place"] for row in rows)
    assert max(Counter(row["prompt"] for row in rows).values()) <= keep.each
    took = histogram([row["pass_rate"] for row in rows])
    assert counts["pass_rates"] == {"prompts": histogram(rates), "kept": took}
    if keep.rows is not None:  # no fifth that still has some gives two rows less than another
        select(tmp_path, keep.model_copy(update={"rows": None}), 0, {"a": "a", "b": "b"})
        have = histogram([row["pass_rate"] for row in lines(tmp_path / "rows.jsonl")])
        assert all(t <= h and (t == h or max(took) - t <= 1) for t, h in zip(took, have, strict=True))


# --- the rows, as fine-tuning reads them


def test_rows_are_examples_for_fine_tuning_as_they_are(tmp_path: Path) -> None:
    asked = [{"role": "system", "content": "Kurz."}, {"role": "user", "content": "Сколько будет 2 + 2?"}]
    columns = {
        "question": "2 + 2",
        "a": "no reward",
        "completion": "not this",
        "pass_rate": 7,
        "messages": [{"role": "user", "content": "u"}, {"role": "assistant", "content": "not this either"}],
        "level": 3,
    }
    folder = written(tmp_path, [(asked, [said("四 ", a=1.0), said("нет", a=0.0)])], **columns)
    select(folder, Keep(least={"a": 1.0}), 0, {"a": "a"})
    [row] = lines(folder / "rows.jsonl")
    ours = {"prompt": asked, "completion": "四 ", "answer": "4", "pass_rate": 0.5}
    assert row == ours | {"a": 1.0, "level": 3, "question": "2 + 2", "place": 0}
    heldout = tmp_path / "heldout.jsonl"
    heldout.write_text(json.dumps({"question": "1 + 1 = ?", "answer": "2"}) + "\n")
    sources = {"train": {"source": str(folder / "rows.jsonl")}, "heldout": {"source": str(heldout)}}
    examples, _ = data.examples(Data.model_validate(sources), "{completion}")
    assert examples == [{"prompt": asked, "completion": [{"role": "assistant", "content": "四 "}]}]
    train, _ = data.load(Data.model_validate(sources))  # and as prompts, for more reinforcement learning
    assert train[0].content == asked and train[0].answer == "4" and train[0].columns["level"] == 3

    folder = written(tmp_path / "text", [("2 + 2 =", [said(" 4")])])
    select(folder, Keep(), 0, {})
    sources["train"]["source"] = str(folder / "rows.jsonl")
    examples, _ = data.examples(Data.model_validate(sources | {"chat": False}), "{completion}")
    assert examples == [{"prompt": "2 + 2 =", "completion": " 4"}]


def test_what_json_cannot_say_is_written_all_the_same(tmp_path: Path) -> None:
    """Columns come from Parquet files, texts from models: NaN, dates, half a character."""
    odd = {
        "nan": math.nan,
        "deep": [{"inf": math.inf}, (1, 2)],
        "when": time.struct_time([2026] * 9),
        "half": "\ud83d",
    }
    drawn_by(tmp_path, Rules(), prompts=[Prompt("t", "über 2\u2028+ 2\r\n= ?", None, odd)])
    select(tmp_path, Keep(), 0, {})
    [row, *_] = lines(tmp_path / "rows.jsonl")
    assert row["nan"] is None and row["deep"] == [{"inf": None}, [1, 2]] and row["half"] == "?"
    assert row["prompt"] == "über 2\u2028+ 2\r\n= ?" and row["answer"] is None
    assert "über" in (tmp_path / "rows.jsonl").read_text(encoding="utf-8")

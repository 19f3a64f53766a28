"""Rejection sampling: killed at any moment, or on two processes, the same bytes; drawn once; scored whole."""

from __future__ import annotations

import io
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
from PIL import Image

from posttrain import data, models, places
from posttrain.kinds import Keep
from posttrain.recipe import Data, Reward
from posttrain.recipe import Sampling as Settings
from posttrain.rejection import SCORED, SHARD, draw, select
from posttrain.rewards import Rewards
from posttrain.rollout.native import NativeEngine
from posttrain.train.background import Watch
from posttrain.types import Completion, Message, Picture, PosttrainError, Prompt, Sampling, Score

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

    context: int | None = None

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


def png(color: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (2, 2), color).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("chat", [True, False])
def test_pictures_come_back_with_the_rows(chat: bool, tmp_path: Path) -> None:
    (tmp_path / "red.png").write_bytes(png("red"))
    pictures = Picture.of("red.png", "", tmp_path), Picture(png("blue"))
    prompts = []
    for picture in pictures:
        parts: Any = [{"type": "image", "image": picture}, {"type": "text", "text": "Which?"}]
        content = [Message(role="user", content=parts)] if chat else "<image>Which?"
        prompts.append(Prompt("", content, "x", {}, () if chat else (picture,)))
    folder = drawn_by(tmp_path / "out", Rules(), prompts=prompts)
    counts = select(folder, Keep(each=1), 0, {})
    assert counts["kept"] == 2, "the same words about two pictures are two prompts"
    (tmp_path / "heldout.jsonl").write_text('{"question": "?", "answer": "x", "images": null}\n')
    sources = {
        "train": {"source": str(folder / "rows.jsonl")},
        "heldout": {"source": str(tmp_path / "heldout.jsonl")},
    }
    read = Data.model_validate({**sources, "images": ["images"], "chat": chat})
    examples, _ = data.examples(read, "{completion}")
    found = [one["prompt"][0]["content"][0]["image"] if chat else one["images"][0] for one in examples]
    assert [picture.digest for picture in found] == [picture.digest for picture in pictures]
    assert found[0].path == str(tmp_path / "red.png")
    if chat:
        prompts_again, _ = data.load(read)
        assert [prompt.pictures[0].digest for prompt in prompts_again] == [p.digest for p in pictures]


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
    places.resolve("tiny")
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

"""Spans by a clock that stands still unless it is told: own time, threads, the table, the trace."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from posttrain import profile
from posttrain.profile import KEEP, Profile, Work, count_tokens, one_step, span

WORK = Work(layers=100, head=10, peak=1e4, peak_of="no machine at all")


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def __iadd__(self, seconds: float) -> Clock:
        self.now += seconds
        return self


@pytest.fixture
def clock() -> Clock:
    return Clock()


def elsewhere(work: Callable[[], object]) -> int:
    """Do it in another thread and wait for it; -> that thread's id."""
    ids: list[int] = []
    thread = threading.Thread(target=lambda: (ids.append(threading.get_native_id()), work()))
    thread.start()
    thread.join()
    return ids[0]


def rows(folder: Path) -> dict[str, list[str]]:
    """The table's cells by its rows' names."""
    lines = (folder / "profile.txt").read_text().split("\n\n")
    table = lines[1].splitlines()[1:] + lines[2].splitlines()
    return {line.split()[0]: line.split()[1:] for line in table}


def events(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "trace.json").read_text())["traceEvents"]


def test_own_time_excludes_what_is_nested(clock: Clock, tmp_path: Path) -> None:
    with Profile(tmp_path, WORK, clock=clock) as made, one_step(1):
        clock += 1
        with span("generate"):
            clock += 3
        with span("backward"):
            clock += 5
            with span("head"):
                clock += 2
                with span("sync"):
                    clock += 0.5
            clock += 0.25
            with span("head"):
                clock += 4
        clock += 7
    expected = {"generate": 3, "backward": 5.25, "head": 6, "sync": 0.5, "idle": 8}
    assert made.total.main == pytest.approx(expected)
    assert sum(made.total.main.values()) == pytest.approx(clock.now - 1000)
    assert not made.total.beside


def test_a_thread_beside_the_main_one_has_its_own_stack(clock: Clock, tmp_path: Path) -> None:
    def scores() -> None:
        with span("reward"):
            nonlocal clock
            clock += 2
            with span("pack"):
                clock += 1

    waits: list[int] = []
    with (
        Profile(tmp_path, WORK, clock=clock, wait=lambda: waits.append(threading.get_ident())) as made,
        one_step(1),
        span("generate"),
    ):
        elsewhere(scores)
        clock += 4
    assert made.total.main == pytest.approx({"generate": 7, "idle": 0})
    assert made.total.beside == pytest.approx({"reward": 2, "pack": 1})
    assert set(waits) == {threading.get_ident()}, "it need not wait for the device"
    assert rows(tmp_path)["reward"][0] == "2.000"  # the line below the table, not the row in it
    assert rows(tmp_path)["step"][0] == "7.000"


def test_a_thread_that_the_main_one_waits_for(clock: Clock, tmp_path: Path) -> None:
    def head() -> None:
        with span("head", awaited=True):
            nonlocal clock
            clock += 2

    with Profile(tmp_path, WORK, clock=clock) as made, one_step(1), span("backward"):
        clock += 1
        thread = elsewhere(head)
        clock += 3
    assert made.total.main == pytest.approx({"backward": 4, "head": 2, "idle": 0})
    assert not made.total.beside
    where = {event["name"]: event["tid"] for event in events(tmp_path)}
    assert where == {"head": thread, "backward": threading.get_native_id(), "step 1": where["backward"]}


def test_without_a_profile_nothing_is_recorded(clock: Clock, tmp_path: Path) -> None:
    made = Profile(tmp_path, WORK, clock=clock)

    def work() -> None:
        with one_step(1), span("forward"), span("head", awaited=True):
            count_tokens("learnt", 5, 5)

    work()
    with made:
        pass
    work()
    assert span("forward") is span("head"), "no object is made"
    assert not made.ended and not made.counted and not made.total.numbers
    assert not list(tmp_path.iterdir())


def test_a_span_lasts_until_the_device_is_done(clock: Clock, tmp_path: Path) -> None:
    queued = [0.0]

    def wait() -> None:
        nonlocal clock
        clock += queued[0]
        queued[0] = 0.0

    with Profile(tmp_path, WORK, wait, clock=clock) as made, one_step(1):
        with span("forward"):
            queued[0] += 3
        queued[0] += 2  # between two spans
        with span("head"):
            queued[0] += 1
    assert made.total.main == pytest.approx({"forward": 3, "head": 1, "idle": 2})


def test_the_table(clock: Clock, tmp_path: Path) -> None:
    with Profile(tmp_path, WORK, clock=clock):
        for number, slow in ((4, 100.0), (5, 1.0), (6, 1.0)):
            with one_step(number):
                with span("generate"):
                    clock += 2 * slow
                    count_tokens("sampled", 40, 40)
                with span("forward"):
                    clock += 0.5 * slow
                    count_tokens("frozen", 10, 4)
                with span("forward"):
                    clock += 0.5 * slow
                    count_tokens("learnt", 20, 8)
                with span("backward"):
                    clock += 0.5 * slow
                    with span("head", awaited=True):
                        clock += 0.5 * slow
                clock += slow
            if number == 4:
                text = (tmp_path / "profile.txt").read_text()
                assert "step 4, of the main process; it warmed up" in text
                assert rows(tmp_path)["step"] == ["500.000", "100.0%", "500.0000"]
    text = (tmp_path / "profile.txt").read_text()
    assert text.startswith("steps 5 to 6, of the main process; the first step warmed up and is left out")
    told = rows(tmp_path)
    assert told["generate"] == ["4.000", "40.0%", "2.0000", "20", "44.0%"]  # 2 (100 + 10) 80 / 4 / 1e4
    assert told["forward"] == ["2.000", "20.0%", "1.0000", "30"]  # the frozen pass too
    assert told["head"] == ["1.000", "10.0%", "0.5000", "60"]
    assert told["backward"] == ["1.000", "10.0%", "0.5000", "40"]
    assert told["idle"] == ["2.000", "20.0%", "1.0000"]
    assert told["step"] == ["10.000", "100.0%", "5.0000"]
    # 2 x (6 (100 x 20 + 10 x 8) + 2 (100 x 10 + 10 x 4)) / 4 / 1e4
    assert told["update"][:5] == ["4.000", "40.0%", "2.0000", "10", "72.8%"]
    phases = [told[name] for name in told if name not in ("step", "update")]
    assert sum(float(cells[0]) for cells in phases) == pytest.approx(10)
    assert sum(float(cells[1].rstrip("%")) for cells in phases) == pytest.approx(100)
    assert told["reward"] == ["0.000", "0.0%", "0.0000"]


def test_the_trace(clock: Clock, tmp_path: Path) -> None:
    with Profile(tmp_path, WORK, process=3, clock=clock):
        clock += 1
        with one_step(1):
            clock += 1
            with span("backward"):
                clock += 0.5
                with span("head"):
                    clock += 0.25
    told = {event["name"]: event for event in events(tmp_path)}
    assert told.keys() == {"step 1", "backward", "head"}
    assert all(event.keys() == {"name", "ph", "ts", "dur", "pid", "tid"} for event in told.values())
    assert {(event["ph"], event["pid"]) for event in told.values()} == {("X", 3)}
    spans = {name: (event["ts"], event["dur"]) for name, event in told.items()}
    assert spans == {"step 1": (1e6, 1.75e6), "backward": (2e6, 0.75e6), "head": (2.5e6, 0.25e6)}


def test_the_trace_holds_the_last_steps_and_the_table_all(clock: Clock, tmp_path: Path) -> None:
    with Profile(tmp_path, WORK, clock=clock):
        for number in range(1, KEEP + 12):
            with one_step(number), span("forward"):
                clock += 1
    names = [event["name"] for event in events(tmp_path) if event["name"] != "forward"]
    assert names == [f"step {number}" for number in range(12, KEEP + 12)]
    assert rows(tmp_path)["forward"][0] == f"{KEEP + 10:.3f}"
    assert {path.name for path in tmp_path.iterdir()} == {"profile.txt", "trace.json"}


def test_a_step_that_was_cut_off_is_left_out(clock: Clock, tmp_path: Path) -> None:
    def cut_off() -> None:
        nonlocal clock
        with one_step(3), span("forward"):
            clock += 1
            raise KeyboardInterrupt

    with Profile(tmp_path, WORK, clock=clock):
        for number in (1, 2):
            with one_step(number), span("forward"):
                clock += 1
        before = (tmp_path / "profile.txt").read_text(), (tmp_path / "trace.json").read_text()
        with pytest.raises(KeyboardInterrupt):
            cut_off()
    assert before == ((tmp_path / "profile.txt").read_text(), (tmp_path / "trace.json").read_text())
    assert profile._on is None

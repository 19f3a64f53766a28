"""Several sides do the same work in turn, one at a time, each in a process of its own.

Drift of the machine so meets all of them, and none can warm or fill another's memory. The first round is
for warming up, and callers leave it out.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

DEADLINE = 1800.0  # seconds a side may take to answer
Report = dict[str, Any]
Body = Callable[["Gate", Path], None]  # a side: the gate, and a folder of its own that is removed at the end


class Gate:
    """A side's end of the line: it calls ready() once it is set up, then begin() and end() around a round."""

    def __init__(self, line: Connection):
        self.line, self.began, self.cpu = line, 0.0, 0.0

    def ready(self) -> None:
        self.line.send("ready")

    def begin(self) -> None:
        self.line.recv()
        self.began, self.cpu = time.perf_counter(), time.process_time()

    def end(self, **report: Any) -> None:
        """Send the round's report; its seconds are those since begin() unless it gives its own. cpu: what
        all threads took of the cores since then, which other work beside it does not change much."""
        took = {"seconds": time.perf_counter() - self.began, "cpu": time.process_time() - self.cpu}
        self.line.send({**took, **report})


def alternate(sides: dict[str, Body], repeats: int, say: Callable[[str], None]) -> list[Report]:
    """Run 1 + `repeats` rounds on every side, in turn.

    Returns:
        a report a round: side, repeat (0: the warm-up), what the side said, load (seconds until it was ready)
        and peak_gib, the most memory that its process has held in all.
    """
    context = multiprocessing.get_context("spawn")
    lines: dict[str, Connection] = {}
    processes: dict[str, Any] = {}
    load: dict[str, float] = {}
    reports: list[Report] = []
    try:
        for side, body in sides.items():
            lines[side], theirs = context.Pipe()
            processes[side] = context.Process(target=_process, args=(body, theirs), name=side)
            at = time.perf_counter()
            processes[side].start()
            theirs.close()
            _receive(lines[side], processes[side], f"{side} to load")
            load[side] = time.perf_counter() - at
        for repeat in range(repeats + 1):
            # Every other round the other way about: none is always first.
            for side in list(sides) if repeat % 2 == 0 else reversed(sides):
                lines[side].send("begin")
                said = _receive(lines[side], processes[side], side)
                which = "warm-up" if repeat == 0 else f"{repeat}/{repeats}"
                took = f"{said['seconds']:9.2f} s {said['cpu']:9.2f} s of cores"
                say(f"  {side:24}{which:>8}{took} {said.get('tokens', ''):>7}")
                reports.append({"side": side, "repeat": repeat, "load": load[side], **said})
        for side in sides:
            lines[side].send("end")
            peak = _receive(lines[side], processes[side], f"{side} to end")
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


def peak_gib() -> float:
    """The most memory this process has held. Not posttrain's own: the peers are measured by it too."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)


def _process(body: Body, line: Connection) -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"  # the parent has found the model: nothing is looked up while timing
    with tempfile.TemporaryDirectory() as folder:
        body(Gate(line), Path(folder))
        line.recv()
        line.send(peak_gib())


def _receive(line: Connection, process: Any, what: str) -> Any:
    if not line.poll(DEADLINE):
        raise SystemExit(f"waited {DEADLINE:.0f} s for {what}")
    try:
        return line.recv()
    except EOFError:
        process.join(10)
        raise SystemExit(f"{what}: its process ended (exit code {process.exitcode}); see above") from None

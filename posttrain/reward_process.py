"""A child process that runs reward functions and can be killed at any moment, with everything it started.

Reward functions are other people's code, fed with text that a model wrote: they hang, crash and print.
Each call goes to a `Child` over its pipe with a deadline; when it expires, the child's whole process
group is killed, and the next call starts a new one. What runs in the child is `posttrain.reward_child`.

Why not multiprocessing, or a pool built on it: its spawn runs the parent's main script again in every
child (an unguarded script breaks, one that imports torch costs seconds), and hands the child the
parent's `sys.path`, which undoes PYTHONSAFEPATH.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import signal
import struct
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from posttrain.types import PosttrainError

# The child uses this very posttrain, wherever the parent found it, without any change to a search path.
_START = """
import importlib.util, os, sys
init = sys.argv[1]
folder = [os.path.dirname(init)]
spec = importlib.util.spec_from_file_location("posttrain", init, submodule_search_locations=folder)
sys.modules["posttrain"] = package = importlib.util.module_from_spec(spec)
spec.loader.exec_module(package)
from posttrain.reward_child import serve
serve()
"""


@dataclass(frozen=True)
class Source:
    """Where a reward function lives: a Python file, or an installed module.

    `function` None means: named like the file, or the file's only public function. `args` go to every call.
    """

    use: str
    kind: Literal["file", "module"]
    place: str
    function: str | None
    args: dict[str, Any]


class Lost(Exception):
    """The child was killed at its deadline, or died. The text says which."""


class Child:
    """One child process, started when first needed. Not thread-safe: one call at a time."""

    def __init__(self, sources: list[Source], load_seconds: float) -> None:
        self._sources = sources
        self._load_seconds = load_seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._loaded: set[int] = set()
        self._closed = False

    def load(self, index: int) -> None:
        """Load a reward in the child. Raises PosttrainError where it cannot be."""
        self._prepare(index)

    def call(self, index: int, columns: dict[str, Any], count: int, deadline: float) -> dict[str, Any]:
        """Call a reward on `count` completions within `deadline` seconds, loading not counted.

        Returns {"values": [...], "printed": str}, each value a float, None, or a str that says why there is
        none; or {"error": str, "printed": str} where the call failed as a whole.
        Raises Lost where it hung or died, PosttrainError where a new child cannot load it any more.
        """
        request = pickle.dumps(("call", (index, count, columns)))
        self._prepare(index)
        return self._ask(request, deadline)

    def kill(self) -> int:
        """End the process and all that it started; its exit status. A later call starts a new one."""
        process, self._process = self._process, None
        if process is None:
            return 0
        _kill(process)
        status = process.wait()
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):  # unsent bytes for a process that is gone
                pipe.close()  # pyright: ignore[reportOptionalMemberAccess]
        return status

    def close(self) -> None:
        """End it for good. Also from another thread while a call is under way, which then raises Lost."""
        self._closed = True
        if (process := self._process) is not None:
            _kill(process)

    def _prepare(self, index: int) -> None:
        if self._process is None or self._process.poll() is not None:
            self.kill()
            self._start()
        if index not in self._loaded:
            self._ask(pickle.dumps(("load", (index, self._sources[index]))), self._load_seconds)
            self._loaded.add(index)

    def _start(self) -> None:
        if self._closed:
            raise Lost("was closed")
        package = str(Path(__file__).resolve().parent / "__init__.py")
        self._loaded = set()
        self._process = subprocess.Popen(
            [sys.executable, "-c", _START, package],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONSAFEPATH": "1"},
            start_new_session=True,  # Ctrl-C is the parent's; and one kill reaches grandchildren
        )
        if self._closed:  # meanwhile
            self.kill()
            raise Lost("was closed")

    def _ask(self, request: bytes, seconds: float) -> dict[str, Any]:
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        lock, state = threading.Lock(), {"done": False, "expired": False}

        def expire() -> None:
            with lock:
                if not state["done"]:
                    state["expired"] = True
                    _kill(process)

        # The timer covers writing as well as reading: a pipe whose reader is stuck blocks its writer.
        timer = threading.Timer(seconds, expire)
        timer.daemon = True
        timer.start()
        try:
            process.stdin.write(struct.pack("!Q", len(request)))
            process.stdin.write(request)
            process.stdin.flush()
            line = process.stdout.readline()
        except OSError:
            line = b""
        finally:
            timer.cancel()
            with lock:
                state["done"] = True
        if state["expired"] or not line.endswith(b"\n"):
            status = self.kill()
            raise Lost(f"hung for more than {seconds:g} s" if state["expired"] else _death(status))
        reply = json.loads(line)
        if "fix" in reply:
            raise PosttrainError(reply["fix"])
        return reply


def _kill(process: subprocess.Popen[bytes]) -> None:
    if process.returncode is not None:
        return  # its number may be another's by now
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()


def _death(status: int) -> str:
    if status < 0:
        with contextlib.suppress(ValueError):
            return f"its process was ended by {signal.Signals(-status).name}"
    return f"its process ended with status {status}"

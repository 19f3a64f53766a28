"""Stopping a run kindly: Ctrl-C or SIGTERM asks, the run saves and ends; a second Ctrl-C ends it at once."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any


class Stopped(Exception):
    """A run was asked to stop, has saved, and can go on later. `signal` is what asked."""

    def __init__(self, signal: int):
        super().__init__(f"stopped by signal {signal}")
        self.signal = signal


class Stop:
    """Context manager that turns SIGINT and SIGTERM into a flag, `asked`; nothing outside the main thread."""

    def __init__(self) -> None:
        self.asked = False
        self.signal = signal.SIGTERM.value
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, _: FrameType | None) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked, self.signal = True, number

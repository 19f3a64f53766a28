"""Work beside the loop, in threads of their own: scoring while the rest of a batch is generated, and drawing
the next batch while the loop learns from this one.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait
from typing import Generic, Protocol, TypeVar

from posttrain.profile import span
from posttrain.rewards import Rewards
from posttrain.types import Group

T = TypeVar("T")
POLL = 0.2  # seconds between two looks at whether to stop, while waiting


class Watch(Protocol):
    """Told what the loop is doing. May raise at any call: no weight has moved since the last step."""

    def __call__(self, phase: str, done: int, total: int) -> None: ...


class Scoring:
    """Scores groups in one background thread, in the order in which they are added.

    A call of `Rewards.score` gets all groups that wait by then: whole groups, but not always the whole batch.
    Left by an exception, it drops what has not begun and waits for nothing.

    Args:
        thread: of one worker, so that rewards see one call at a time.
    """

    def __init__(self, rewards: Rewards, thread: ThreadPoolExecutor):
        self.rewards, self.thread = rewards, thread
        self.waiting: deque[Group] = deque()
        self.calls: list[Future[None]] = []

    def __enter__(self) -> Scoring:
        return self

    def __exit__(self, *_: object) -> None:
        self.waiting.clear()
        for call in self.calls:
            call.cancel()

    def add(self, group: Group) -> None:
        """Have the group's `scores` filled in; its completions must be complete."""
        self.waiting.append(group)
        self.calls.append(self.thread.submit(self._score))

    def wait(self, on_poll: Callable[[], None]) -> None:
        """Until all that was added is scored; raises what scoring raised. `on_poll` may raise to stop."""
        on_poll()
        while wait(self.calls, timeout=POLL).not_done:
            on_poll()
        for call in self.calls:
            call.result()

    def _score(self) -> None:
        groups: list[Group] = []
        while self.waiting:
            groups.append(self.waiting.popleft())
        if not groups:  # an earlier call took them along
            return
        rows = [(group.prompt, completion) for group in groups for completion in group.completions]
        with span("reward"):
            scores = iter(self.rewards.score([prompt for prompt, _ in rows], [c for _, c in rows]))
        for group in groups:
            group.scores = [next(scores) for _ in group.completions]


class Ahead(Generic[T]):
    """The next batch, drawn by `draw` in a thread while the loop learns.

    The watch that `draw` gets only notes where it is; to show that, and to stop, is for the one who waits.
    Left before it is done, `draw` is stopped by its watch's next call, and waited for until then.
    """

    def __init__(self, draw: Callable[[Watch], T]):
        self.left = threading.Event()
        self.at = "generating", 0, 0
        self.waited = 0.0  # seconds
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="ahead")
        self.drawn = self.thread.submit(draw, self._note)

    def __enter__(self) -> Ahead[T]:
        return self

    def __exit__(self, *_: object) -> None:
        self.left.set()
        self.thread.shutdown()

    def wait(self, watch: Watch) -> T:
        """What was drawn; raises what drawing raised, or what `watch` raises while it is not done."""
        began = time.perf_counter()
        with span("generate"):
            while not self.drawn.done():
                watch(*self.at)
                wait([self.drawn], timeout=POLL)
        self.waited += time.perf_counter() - began
        return self.drawn.result()

    def _note(self, phase: str, done: int, total: int) -> None:
        self.at = phase, done, total
        if self.left.is_set():
            raise CancelledError

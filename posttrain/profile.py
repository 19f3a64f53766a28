"""Where the time of a step goes: spans, a table by phase, a trace to look at.

    with span("forward"):
        hidden = ...

Without a profile a span costs one look at a global. Inside `with Profile(...):` each is recorded with its
thread, and `one_step` adds them up: a phase's seconds are its spans' own time, without what is nested in
them. The step itself is a span, and its own time is called idle, so that what the main thread did sums to
the step. Spans of other threads overlap with that and are listed apart.

Both files are written again after each step: profile.txt covers every step but the first, trace.json (Chrome
trace events, for ui.perfetto.dev or chrome://tracing) the last KEEP steps.
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from posttrain.files import replace_text

KEEP = 50  # steps that the trace holds

Phase = Literal["generate", "reward", "pack", "forward", "head", "backward", "optimizer", "sync", "idle"]
Tokens = Literal["sampled", "learnt", "frozen"]

TABLE, TRACE = "profile.txt", "trace.json"
UPDATE = ("forward", "head", "backward")

_on: Profile | None = None
_OFF = nullcontext()


def span(name: Phase, awaited: bool = False) -> AbstractContextManager[object]:
    """Time the block as a phase.

    awaited: whichever thread runs it, the main one waits for it meanwhile. Autograd runs a backward pass on
    CUDA in a thread of its own; the time then comes off the main thread's span, as if nested in it.
    """
    on = _on
    return _OFF if on is None else _Span(on, name, awaited)


def count_tokens(kind: Tokens, layers: int, head: int) -> None:
    """Count tokens that went through the decoder layers, and those whose logits the head made: sampled ones,
    packed ones learnt from (forward and backward), packed ones of a pass without gradients."""
    on = _on
    if on is not None:
        on.counted.append((kind, layers, head))


def one_step(number: int) -> AbstractContextManager[object]:
    """A step of the loop; when its block ends well, it is added and the files are written."""
    on = _on
    return _OFF if on is None else on.step(number)


@dataclass(frozen=True)
class Work:
    """What shares of the peak go by: entries of the matrices that a token is multiplied with in the layers
    and in the output head, and the most FLOP/s that the machine was seen to do, and in what."""

    layers: int
    head: int
    peak: float
    peak_of: str


class Span(NamedTuple):
    """A span that ended, in seconds. `main`: the main thread made it or waited for it."""

    name: Phase
    thread: int
    main: bool
    start: float
    duration: float
    own: float


@dataclass
class Total:
    """Of several steps: seconds by phase, in the main thread and beside it; tokens by kind."""

    warm: bool = False  # the first step is not among them
    numbers: list[int] = field(default_factory=list)
    main: dict[Phase, float] = field(default_factory=dict)
    beside: dict[Phase, float] = field(default_factory=dict)
    layers: Counter[Tokens] = field(default_factory=Counter)
    head: Counter[Tokens] = field(default_factory=Counter)


class Profile:
    """Context manager: inside it, this process's spans are recorded here.

    Args:
        folder: of the run; the table and the trace go there.
        wait: for the device to finish what it was given; called at the edges of the main thread's spans.
        process: this process's index.
        clock: seconds.
    """

    def __init__(
        self,
        folder: Path,
        work: Work,
        wait: Callable[[], object] = lambda: None,
        process: int = 0,
        clock: Callable[[], float] = time.perf_counter,
    ):
        self.folder, self.work, self.wait, self.process, self.clock = folder, work, wait, process, clock
        self.total = Total()
        self.ended: deque[Span] = deque()  # appended to by any thread
        self.counted: deque[tuple[Tokens, int, int]] = deque()
        self.main: list[_Span] = []  # open spans of the thread that makes the steps
        self._began = clock()
        self._local = threading.local()
        self._trace: deque[str] = deque(maxlen=KEEP)  # a step each

    def __enter__(self) -> Profile:
        global _on
        _on = self
        return self

    def __exit__(self, *_: object) -> None:
        global _on
        _on = None

    @contextmanager
    def step(self, number: int) -> Iterator[None]:
        self.main = self.open_spans()
        with _Span(self, "idle"):
            yield
        self._add(number)
        replace_text(self.folder / TABLE, table(self.total, self.work))
        replace_text(self.folder / TRACE, '{"traceEvents": [\n' + ",\n".join(self._trace) + "\n]}\n")

    def open_spans(self) -> list[_Span]:
        """This thread's, outermost first."""
        if not hasattr(self._local, "spans"):
            self._local.spans = []
        return self._local.spans

    def _add(self, number: int) -> None:
        if self.total.numbers and not self.total.warm:  # a second step: the first one goes
            self.total = Total(warm=True)
        total, events = self.total, []
        total.numbers.append(number)
        for _ in range(len(self.counted)):
            kind, layers, head = self.counted.popleft()
            total.layers[kind] += layers
            total.head[kind] += head
        for _ in range(len(self.ended)):
            span = self.ended.popleft()
            seconds = total.main if span.main else total.beside
            seconds[span.name] = seconds.get(span.name, 0.0) + span.own
            event = {
                "name": f"step {number}" if span.name == "idle" else span.name,
                "ph": "X",
                "ts": round((span.start - self._began) * 1e6, 3),
                "dur": round(span.duration * 1e6, 3),
                "pid": self.process,
                "tid": span.thread,
            }
            events.append(json.dumps(event))
        self._trace.append(",\n".join(events))


class _Span:
    def __init__(self, profile: Profile, name: Phase, awaited: bool = False):
        self.name: Phase = name
        self.profile, self.awaited = profile, awaited

    def __enter__(self) -> None:
        profile = self.profile
        self.within = profile.main if self.awaited else profile.open_spans()
        self.main = self.within is profile.main
        self.nested = 0.0
        self.within.append(self)
        if self.main:
            profile.wait()
        self.start = profile.clock()

    def __exit__(self, *_: object) -> None:
        profile = self.profile
        if self.main:
            profile.wait()
        duration = profile.clock() - self.start
        self.within.pop()
        if self.within:
            self.within[-1].nested += duration
        thread = threading.get_native_id()  # short, as trace viewers read 32 bits
        profile.ended.append(Span(self.name, thread, self.main, self.start, duration, duration - self.nested))


def table(total: Total, work: Work) -> str:
    """The table by phase, and under it what its columns mean."""
    steps = len(total.numbers)
    whole = sum(total.main.values())
    packed = total.layers["learnt"] + total.layers["frozen"]
    tokens = {
        "generate": total.layers["sampled"],
        "forward": packed,
        "head": packed,
        "backward": total.layers["learnt"],
        "update": total.layers["learnt"],
    }

    def products(kind: Tokens) -> int:
        return 2 * (work.layers * total.layers[kind] + work.head * total.head[kind])

    flops = {"generate": products("sampled"), "update": 3 * products("learnt") + products("frozen")}

    def row(name: str, seconds: float) -> str:
        rate = f"{tokens[name] / seconds:,.0f}" if tokens.get(name) and seconds else ""
        peak = f"{flops[name] / seconds / work.peak:.1%}" if flops.get(name) and seconds else ""
        share = f"{seconds / whole:.1%}" if whole else ""
        text = f"{name:9} {seconds:9.3f} {share:>8} {seconds / steps:9.4f} {rate:>10} {peak:>8}"
        return text.rstrip()

    first, last = total.numbers[0], total.numbers[-1]
    lines = [
        f"steps {first} to {last}, of the main process; the first step warmed up and is left out"
        if total.warm
        else f"step {first}, of the main process; it warmed up",
        "",
        f"{'phase':9} {'seconds':>9} {'share':>8} {'a step':>9} {'tokens/s':>10} {'of peak':>8}",
        *(row(name, total.main.get(name, 0.0)) for name in get_args(Phase)),
        row("step", whole),
        "",
        row("update", sum(total.main.get(name, 0.0) for name in UPDATE)) + "   = forward + head + backward",
    ]
    lines += [
        f"{name:9} {seconds:9.3f}   in another thread, at the same time"
        for name, seconds in total.beside.items()
    ]
    return "\n".join([*lines, "", *_notes(work)]) + "\n"


def _notes(work: Work) -> list[str]:
    return [
        "idle: no span of the main thread; the loss, collectives between processes, bookkeeping.",
        "tokens/s: sampled ones for generate, else packed ones, prompts included; forward and head count the",
        "  passes of a frozen reference or old policy too.",
        f"of peak: of {work.peak / 1e12:.3g} TFLOP/s, {work.peak_of}.",
        f"  L = {work.layers:,} entries of the layers' matrices, H = {work.head:,} of the output head's.",
        "  generate: 2 (L + H) FLOP a sampled token (the prompts' own pass is not counted).",
        "  update: 6 L a packed token + 6 H a trained completion token; in a frozen pass 2 L + 2 H.",
    ]

"""This process's memory: how much it took at most, what is kept for the next step, what goes back."""

from __future__ import annotations

import contextlib
import ctypes
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # their numbers in glibc's malloc.h
LARGE = 16 * 2**20
PILED = 1.1  # times the memory after the first step


def peak_gib() -> float:
    """The most memory this process has held, in GiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)


def data_bytes() -> int | None:
    """The private memory that this process may write to, in bytes; None where the system does not say."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmData:"):
                return int(line.split()[1]) * 1024
    return None


@contextlib.contextmanager
def capped(most: int | None) -> Iterator[None]:
    """Hold `data_bytes` to `most` while the block runs (None: no limit), and what it starts to as much each.

    An allocation over it raises MemoryError; C code that does not look for it ends the process. Address
    space only reserved, as CUDA does by the terabyte, does not count: hence not RLIMIT_AS.
    """
    if most is None:
        yield
        return
    before, hard = resource.getrlimit(resource.RLIMIT_DATA)
    bounds = [most, *(bound for bound in (before, hard) if bound != resource.RLIM_INFINITY)]
    resource.setrlimit(resource.RLIMIT_DATA, (min(bounds), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (before, hard))


def settle() -> None:
    """Have glibc keep freed blocks below LARGE bytes for reuse, and take larger ones from the system.

    By default it returns freed memory at once, and a page that comes back must be zeroed and mapped again: in
    a virtual machine that took longer than what was then computed in it (a SiLU over 2,000 tokens: 9 ms, and
    1 ms in memory kept). Larger blocks, such as logits and the gradient of an embedding, would leave holes
    among the small ones that nothing else fits.
    """
    set_option = _libc("mallopt")
    if set_option is not None:
        set_option(M_MMAP_THRESHOLD, LARGE)
        set_option(M_TRIM_THRESHOLD, 2**31 - 1)


def give_back() -> None:
    """Return every free page of the heap to the system. Elsewhere than on glibc it does nothing."""
    trim = _libc("malloc_trim")
    if trim is not None:
        trim(0)


class Keeper:
    """Called after each step: what it freed stays for the next, which needs about as much. Where holes
    between blocks pile up, to PILED times the memory after the first step, all that is free goes back."""

    def __init__(self):
        self.usual = 0

    def __call__(self) -> None:
        held = resident()
        if not self.usual:
            self.usual = held
        elif held > PILED * self.usual:
            give_back()


def resident() -> int:
    """Bytes that this process holds now; 0 where /proc does not say."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * resource.getpagesize() if statm.exists() else 0


def _libc(name: str):
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None

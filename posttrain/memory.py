"""This process's memory: how much it took at most, what is kept for the next step, what goes back."""

from __future__ import annotations

import ctypes
import resource
import sys
from pathlib import Path

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # their numbers in glibc's malloc.h
LARGE = 16 * 2**20
PILED = 1.1  # times the memory after the first step


def peak_gib() -> float:
    """The most memory this process has held, in GiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)


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

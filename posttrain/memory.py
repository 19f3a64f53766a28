"""This process's memory: how much it took at most, and giving back what it no longer needs."""

from __future__ import annotations

import ctypes
import resource
import sys

M_MMAP_THRESHOLD = -3  # its number in glibc's malloc.h
LARGE = 8 * 2**20


def peak_gib() -> float:
    """The most memory this process has held, in GiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)


def settle() -> None:
    """Have glibc take every block of LARGE bytes or more from the system and return it when it is freed.

    By default it raises that bound to 32 MiB as it goes; the logits, and the gradient of an embedding, then
    come to lie between small blocks and leave holes that nothing else fits.
    """
    if sys.platform == "linux":
        set_option = getattr(ctypes.CDLL(None), "mallopt", None)
        if set_option is not None:
            set_option(M_MMAP_THRESHOLD, LARGE)


def give_back() -> None:
    """Return freed heap to the system.

    glibc keeps small freed blocks for itself, and what it keeps between generating (a cache of many rows) and
    learning (activations) rarely fits: without this the demo's process grew from step to step, to 8 GiB after
    ten. Elsewhere than on glibc neither function does anything.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)

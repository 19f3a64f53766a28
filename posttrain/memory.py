"""This process's memory: how much it took at most, and giving back what it no longer needs."""

from __future__ import annotations

import ctypes
import resource
import sys


def peak_gib() -> float:
    """The most memory this process has held, in GiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)


def give_back() -> None:
    """Return freed heap to the system.

    glibc keeps freed tensors of up to 32 MiB for itself, and between generating (a cache of many rows) and learning
    (activations) what it keeps rarely fits: without this the demo's process grew by a gigabyte every few steps.
    Elsewhere than on glibc this does nothing.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)

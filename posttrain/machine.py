"""What a run ran on."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import torch

from posttrain.memory import peak_gib


def machine() -> dict[str, Any]:
    """The device by name, CPU cores and torch's threads, and the memory that was taken at most, in GiB."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else _cpu_name()
    return {
        "device": device,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "peak_gib": round(peak_gib(), 2),
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine()
    )

"""Memory given back to the system, on the allocator that the demo runs on."""

import sys

import pytest
import torch

from posttrain.memory import give_back, peak_gib, settle


def resident_mib() -> float:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 / 2**20


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_freed_tensors_leave_the_process():
    settle()
    before = resident_mib()
    blocks = [torch.ones(2**18) for _ in range(200)]  # 1 MiB each: below the bound, so from the heap
    large = torch.ones(2**26)
    assert resident_mib() > before + 400
    del blocks, large
    give_back()
    assert resident_mib() < before + 60
    assert peak_gib() > 0.4

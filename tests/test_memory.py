"""Memory given back to the system, on the allocator that the demo runs on."""

import resource
import sys

import pytest
import torch

from posttrain import memory
from posttrain.memory import Keeper, capped, data_bytes, give_back, peak_gib, resident, settle


def resident_mib() -> float:
    return resident() / 2**20


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_freed_tensors_leave_the_process():
    settle()
    give_back()  # what earlier tests freed, and this process kept
    before = resident_mib()
    blocks = [torch.ones(2**18) for _ in range(200)]  # 1 MiB each: below the bound, so from the heap
    large = torch.ones(2**26)
    assert resident_mib() > before + 400
    del blocks, large
    give_back()
    assert resident_mib() < before + 60
    assert peak_gib() > 0.4


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_freed_memory_is_kept_for_the_next_step_until_it_piles_up():
    settle()
    give_back()  # what earlier tests freed, and this process kept
    keep = Keeper()
    keep()
    before = resident_mib()
    some = [torch.ones(2**18) for _ in range(16)]
    del some
    keep()
    assert resident_mib() > before + 12  # kept: little beside the rest of the process
    many = [torch.ones(2**18) for _ in range(int(before * memory.PILED))]
    del many
    assert resident_mib() > before * memory.PILED
    keep()
    assert resident_mib() < before + 60


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_cap_holds_for_its_block_only():
    held = data_bytes()
    assert held
    over = held + 2**29  # more than all that is held: a freed block of an earlier test cannot hold it
    before = resource.getrlimit(resource.RLIMIT_DATA)
    with capped(held + 2**28):
        assert len(bytes(2**26)) == 2**26
        with pytest.raises(MemoryError):
            bytes(over)
        with capped(2**50), pytest.raises(MemoryError):  # an inner block lifts nothing
            bytes(over)
    assert resource.getrlimit(resource.RLIMIT_DATA) == before
    assert len(bytes(over)) == over  # never touched: takes no memory
    with capped(None):
        assert resource.getrlimit(resource.RLIMIT_DATA) == before

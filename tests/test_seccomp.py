"""The filter, run by a small machine of our own: the same calls that the kernel would decide."""

from __future__ import annotations

import errno
import re
import struct
from pathlib import Path

import pytest

from posttrain import seccomp

ALLOW, KILL = 0x7FFF0000, 0x80000000
EPERM, ENOSYS = 0x00050000 | errno.EPERM, 0x00050000 | errno.ENOSYS
ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
AF_UNIX, AF_INET, AF_NETLINK, AF_VSOCK = 1, 2, 16, 40
SIGCHLD, CLONE_VM, CLONE_THREAD, CLONE_NEWUSER = 17, 0x100, 0x10000, 0x10000000


def decide(program: bytes, number: int, arch: int, argument: int = 0) -> int:
    """Classic BPF by its definition: load, jump if equal / at least / any bit, return."""
    data = struct.pack("<IIQQ", number, arch, 0, argument) + bytes(40)
    accumulator, place = 0, 0
    while True:
        operation, if_true, if_false, value = struct.unpack_from("=HBBI", program, 8 * place)
        place += 1
        if operation == 0x20:
            (accumulator,) = struct.unpack_from("<I", data, value)
        elif operation == 0x06:
            return value
        else:
            holds = {0x15: accumulator == value, 0x35: accumulator >= value, 0x45: accumulator & value}
            place += if_true if holds[operation] else if_false


@pytest.mark.parametrize(
    ("machine", "number", "argument", "wanted"),
    [
        ("x86_64", 0, 0, ALLOW),  # read
        ("x86_64", 59, 0, ALLOW),  # execve: Python itself is started under the filter
        ("x86_64", 57, 0, EPERM),  # fork
        ("x86_64", 58, 0, EPERM),  # vfork
        ("x86_64", 56, SIGCHLD, EPERM),  # clone
        ("x86_64", 56, CLONE_VM | CLONE_THREAD, ALLOW),
        ("x86_64", 56, CLONE_NEWUSER | SIGCHLD, EPERM),
        ("x86_64", 435, 0, ENOSYS),  # clone3
        ("x86_64", 41, AF_UNIX, ALLOW),  # socket
        ("x86_64", 41, AF_INET, EPERM),
        ("x86_64", 41, AF_INET | AF_UNIX << 32, EPERM),  # the kernel reads the low half only
        ("x86_64", 53, AF_UNIX, ALLOW),  # socketpair
        ("x86_64", 53, AF_NETLINK, EPERM),
        ("x86_64", 101, 0, EPERM),  # ptrace
        ("x86_64", 0x40000000, 0, EPERM),  # x32's read
        ("x86_64", 0x40000000 + 57, 0, EPERM),
        ("aarch64", 63, 0, ALLOW),  # read
        ("aarch64", 57, 0, ALLOW),  # close, where x86_64 has fork
        ("aarch64", 220, SIGCHLD, EPERM),
        ("aarch64", 220, CLONE_VM | CLONE_THREAD, ALLOW),
        ("aarch64", 435, 0, ENOSYS),
        ("aarch64", 198, AF_UNIX, ALLOW),
        ("aarch64", 198, AF_VSOCK, EPERM),
        ("aarch64", 97, CLONE_NEWUSER, EPERM),  # unshare
        ("aarch64", 117, 0, EPERM),
    ],
)
def test_what_the_filter_says(machine: str, number: int, argument: int, wanted: int) -> None:
    assert decide(seccomp.program(machine), number, ARCH[machine], argument) == wanted


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_another_architectures_calls_are_the_end(machine: str) -> None:
    other = next(arch for name, arch in ARCH.items() if name != machine)
    for arch in (other, 0x40000003):  # i386, whose calls an x86_64 kernel takes as well
        assert decide(seccomp.program(machine), 0, arch) == KILL


@pytest.mark.parametrize(
    ("machine", "header"),
    [
        ("x86_64", "/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
        ("aarch64", "/usr/include/asm-generic/unistd.h"),
    ],
)
def test_numbers_are_those_of_the_kernels_headers(machine: str, header: str) -> None:
    if not Path(header).is_file():
        pytest.skip(f"no {header} here")
    text = Path(header).read_text(encoding="utf-8")
    numbers = {name: int(n) for name, n in re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", text)}
    column = list(ARCH).index(machine)
    ours = {name: pair[column] for name, pair in seccomp._REFUSED.items()}
    shared = ours.keys() & numbers.keys()  # the headers may be older than a call
    assert len(shared) > 50
    assert {name: ours[name] for name in shared} == {name: numbers[name] for name in shared}

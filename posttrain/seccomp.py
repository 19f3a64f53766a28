"""The list of system calls that a sandboxed program must not make, as the filter that the kernel runs.

Linux runs a filter written for the classic Berkeley packet filter at every system call (seccomp(2)). It
decides by the call's number and arguments, for the process and all that comes of it, and cannot be taken off.
Ours refuses what makes processes, reaches other processes or the network, opens namespaces, mounts, loads
code into the kernel, or takes memory that no limit counts; everything else goes through.
"""

from __future__ import annotations

import errno
import struct

# Calls and their numbers: x86_64, then aarch64; None where the architecture has none. (asm/unistd_64.h and
# asm-generic/unistd.h of the kernel's headers.)
_REFUSED: dict[str, tuple[int | None, int | None]] = {
    # new processes (clone and clone3 are decided below)
    "fork": (57, None), "vfork": (58, None),
    # other processes' memory, descriptors and state
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "process_madvise": (440, 440), "process_mrelease": (448, 448), "pidfd_open": (434, 434),
    "pidfd_getfd": (438, 438), "kcmp": (312, 272), "perf_event_open": (298, 241),
    # namespaces and mounts
    "unshare": (272, 97), "setns": (308, 268), "mount": (165, 40), "umount2": (166, 39),
    "pivot_root": (155, 41), "chroot": (161, 51), "open_tree": (428, 428), "move_mount": (429, 429),
    "fsopen": (430, 430), "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433),
    "mount_setattr": (442, 442), "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265),
    "fanotify_init": (300, 262),
    # memory that the limit on the address space does not count
    "memfd_create": (319, 279), "memfd_secret": (447, 447), "shmget": (29, 194), "semget": (64, 190),
    "msgget": (68, 186), "mq_open": (240, 180), "add_key": (248, 217), "request_key": (249, 218),
    "keyctl": (250, 219),
    # large, young or privileged parts of the kernel
    "bpf": (321, 280), "io_uring_setup": (425, 425), "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427), "userfaultfd": (323, 282), "personality": (135, 92),
    "modify_ldt": (154, None), "iopl": (172, None), "ioperm": (173, None), "kexec_load": (246, 104),
    "kexec_file_load": (320, 294), "init_module": (175, 105), "finit_module": (313, 273),
    "delete_module": (176, 106), "reboot": (169, 142), "swapon": (167, 224), "swapoff": (168, 225),
    "acct": (163, 89), "quotactl": (179, 60), "quotactl_fd": (443, 443), "syslog": (103, 116),
    "settimeofday": (164, 170), "clock_settime": (227, 112), "clock_adjtime": (305, 266),
    "adjtimex": (159, 171), "mbind": (237, 235), "set_mempolicy": (238, 237), "migrate_pages": (256, 238),
    "move_pages": (279, 239), "vhangup": (153, 58), "sethostname": (170, 161), "setdomainname": (171, 162),
    "lookup_dcookie": (212, 18), "nfsservctl": (180, 42),
}  # fmt: skip
_CLONE = (56, 220)
_CLONE3 = 435
_SOCKET = ((41, 198), (53, 199))  # socket, socketpair

# platform.machine(): AUDIT_ARCH_*, the column above
_MACHINES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}
_X32 = 0x40000000  # x86_64's second table of numbers begins here
_CLONE_THREAD = 0x00010000
_AF_UNIX = 1

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCH, _ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data; the first argument's low half
_ALLOW, _KILL, _REFUSE = 0x7FFF0000, 0x80000000, 0x00050000


def machines() -> tuple[str, ...]:
    """The machines, as platform.machine() names them, that there is a filter for."""
    return tuple(_MACHINES)


def program(machine: str) -> bytes:
    """The filter for a machine: struct sock_filter after struct sock_filter, as `bwrap --seccomp` reads it.

    - another architecture's call: the process is killed
    - clone: allowed for a thread of the same process, else EPERM; clone3: ENOSYS, at which libraries fall
      back to clone (its flags lie in memory, where a filter cannot look)
    - socket and socketpair: only AF_UNIX, which reaches nothing outside
    - what is listed above: EPERM

    Raises KeyError for a machine that there is no filter for.
    """
    arch, column = _MACHINES[machine]
    eperm, enosys = _REFUSE | errno.EPERM, _REFUSE | errno.ENOSYS
    code = [
        _step(_LOAD, _ARCH),
        _step(_EQUAL, arch, 1, 0),
        _step(_RETURN, _KILL),
        _step(_LOAD, _NUMBER),
    ]
    if column == 0:
        code += [_step(_AT_LEAST, _X32, 0, 1), _step(_RETURN, eperm)]
    for numbers in _REFUSED.values():
        if (number := numbers[column]) is not None:
            code += [_step(_EQUAL, number, 0, 1), _step(_RETURN, eperm)]
    code += [_step(_EQUAL, _CLONE3, 0, 1), _step(_RETURN, enosys)]
    # Each of these blocks returns either way, so the loaded number is still there for the next one.
    for number, test in [
        (_CLONE[column], _step(_ANY_BIT, _CLONE_THREAD, 1, 0)),
        *((numbers[column], _step(_EQUAL, _AF_UNIX, 1, 0)) for numbers in _SOCKET),
    ]:
        code += [
            _step(_EQUAL, number, 0, 4),
            _step(_LOAD, _ARGUMENT),
            test,
            _step(_RETURN, eperm),
            _step(_RETURN, _ALLOW),
        ]
    return b"".join([*code, _step(_RETURN, _ALLOW)])


def _step(operation: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    """One instruction; the last two say how many instructions to skip."""
    return struct.pack("=HBBI", operation, if_true, if_false, value)

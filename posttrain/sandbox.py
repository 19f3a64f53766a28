"""Run a program that a model wrote where it can do no harm: bubblewrap, one sandbox for one input.

`run` gives a Python program its standard input and returns what it wrote; nothing else leaves the sandbox:

- namespaces of its own for users, processes, network and the rest: no network, no other process in sight
- a file system of nothing but Python with its standard library and the system's libraries, read-only, and a
  small /tmp in memory; no /etc, /home, /proc or /sys, no shell, no installed package, no environment
- no capabilities, and the system calls of `posttrain/seccomp.py` refused: one process of few threads
- limits on memory, files, processor time and output, and a deadline at which all of it is killed

`probe` tries all that once, and refuses where any of it fails: nothing runs in half a sandbox.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import platform
import select
import shutil
import signal
import site
import socket
import struct
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import BinaryIO, Literal

from posttrain import seccomp
from posttrain.types import PosttrainError

KIB, MIB = 2**10, 2**20
THREADS = 64  # of one program; with more it is killed
_START_SECONDS = 20.0  # for building the sandbox and starting Python in it, on a machine that is busy
_END_SECONDS = 10.0  # for the kernel to end what was killed
_LOOK_SECONDS = 0.02  # between two looks at the clock and at how many threads there are
_TAIL = 2000  # bytes of standard error that are kept

_REMOTE = (
    "Or score code elsewhere, with a reward of your own that calls a remote sandbox: "
    "`posttrain cp reward/code my_code.py` shows the shape."
)

Status = Literal["ok", "timeout", "memory", "output", "failed", "lost"]


@dataclass(frozen=True)
class Limits:
    """What one run may use: seconds of wall clock from its first line on; the rest in bytes.

    `memory` bounds the address space, `output` standard output, `files` all of /tmp together.
    """

    seconds: float = 2.0
    memory: int = 512 * MIB
    output: int = 64 * KIB
    files: int = 16 * MIB


@dataclass(frozen=True)
class Outcome:
    """How a run ended, and what the program wrote.

    `status` is "ok" where it ended by itself with status 0; "timeout", "memory" and "output" where it ran
    into that limit; "failed" where it raised, crashed, exited with another status or made too many threads.
    "lost" is no fault of the program: the sandbox could not be built, or something outside ended it.
    `stdout` holds at most `Limits.output` bytes, `stderr` the end of what was written there. `seconds`
    counts from the program's first line.
    """

    status: Status
    stdout: bytes
    stderr: str
    seconds: float


def run(program: str, stdin: bytes = b"", limits: Limits | None = None) -> Outcome:
    """Run a Python program on one input. Safe to call from several threads.

    Nothing of it lives on when this returns or raises, nor when this process is killed meanwhile. Raises
    PosttrainError where there is no bubblewrap, or no filter of system calls for this machine; call `probe`
    before the first run to know that the walls hold.
    """
    limits = limits or Limits()
    command, rules = _command(_bubblewrap()), _filter()
    with contextlib.ExitStack() as stack:
        ours, theirs = (stack.enter_context(end) for end in socket.socketpair())
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        text = program.encode("utf-8", "replace")
        files = [stack.enter_context(_sealed(data)) for data in (text, rules, stdin, stdin)]
        passed = [file.fileno() for file in (*files[:3], theirs)]
        process = subprocess.Popen(
            [
                *command,
                *("--size", str(limits.files), "--tmpfs", "/tmp", "--chdir", "/tmp"),
                *("--file", str(passed[0]), "/program.py", "--file", str(passed[2]), "/dev/stdin"),
                *("--remount-ro", "/", "--seccomp", str(passed[1]), "--", _python()),
                *("-I", "-S", "-B", "-X", "utf8", "-c", _prelude(passed[3], limits)),
            ],
            stdin=files[3],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={},
            cwd="/",
            pass_fds=passed,
            start_new_session=True,  # Ctrl-C is the caller's
        )
        theirs.close()  # else the other end would never be seen to close
        try:
            return _watch(process, ours, limits)
        finally:
            process.kill()  # and with it all that is in there: --die-with-parent
            for pipe in (process.stdout, process.stderr):
                pipe.close()  # pyright: ignore[reportOptionalMemberAccess]


def _watch(process: subprocess.Popen[bytes], ours: socket.socket, limits: Limits) -> Outcome:
    """Let the program begin, read until it ends or has to be ended, and wait until all of it is gone.

    bubblewrap's own processes hold both pipes as long as anything lives in the sandbox, whatever the program
    does with its ends of them. So when both pipes are at their end, nothing is left.
    """
    pipes = _Pipes(process, limits.output)
    pid = _begin(ours)
    begun = time.monotonic()
    verdict: Status | None = None if pid else "lost"
    while verdict is None and pipes.open:
        if time.monotonic() - begun > limits.seconds:
            verdict = "timeout"
        elif len(pipes.out) > limits.output:
            verdict = "output"
        elif _threads(pid) > THREADS:
            verdict, pipes.errors = "failed", b"too many threads"
        else:
            pipes.read()
    seconds = time.monotonic() - begun
    if verdict:
        process.kill()
    deadline = time.monotonic() + _END_SECONDS
    while pipes.open and time.monotonic() < deadline:
        pipes.read()
    try:
        code = process.wait(max(0.1, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        verdict, code, pipes.errors = "lost", 0, b"what was killed did not end"
    errors = pipes.errors.decode("utf-8", "replace").strip()
    if verdict is None:
        verdict = "output" if len(pipes.out) > limits.output else _verdict(code, errors)
    return Outcome(verdict, bytes(pipes.out[: limits.output]), errors, seconds)


def _begin(ours: socket.socket) -> int:
    """Wait until Python runs in the sandbox, and let it go on; its process id as seen from here, or 0.

    It waits for our word: where this process has died meanwhile, no program is ever begun.
    """
    ours.settimeout(_START_SECONDS)
    try:
        word, extra, _, _ = ours.recvmsg(1, socket.CMSG_SPACE(struct.calcsize("3i")))
        if not word:
            return 0
        ours.send(b"1")
    except OSError:
        return 0
    return next((struct.unpack("3i", d)[0] for _, kind, d in extra if kind == socket.SCM_CREDENTIALS), 0)


class _Pipes:
    """What comes out of a process: the start of its output, a little over `most` bytes; its errors' end."""

    def __init__(self, process: subprocess.Popen[bytes], most: int) -> None:
        self.out, self.errors, self._most = bytearray(), b"", most
        self.open = [pipe.fileno() for pipe in (process.stdout, process.stderr) if pipe]
        self._first = self.open[0]

    def read(self) -> None:
        """Take what is there; wait a moment where nothing is."""
        poll = select.poll()
        for pipe in self.open:
            poll.register(pipe, select.POLLIN)
        for pipe, _ in poll.poll(_LOOK_SECONDS * 1000):
            data = os.read(pipe, 64 * KIB)
            if not data:
                self.open.remove(pipe)
            elif pipe != self._first:
                self.errors = (self.errors + data)[-_TAIL:]
            elif len(self.out) <= self._most:
                self.out += data


def _threads(pid: int) -> int:
    try:
        return os.stat(f"/proc/{pid}/task").st_nlink - 2  # a folder has a link from each of its folders
    except OSError:
        return 0  # it has just ended


def _verdict(code: int, errors: str) -> Status:
    """What the exit status of bubblewrap, which is that of the program, says."""
    if code < 0:
        return "lost"  # a signal to bubblewrap itself: that was not from in there
    killed = code == 128 + signal.SIGKILL  # by the kernel, for its memory
    if killed or errors.rpartition("\n")[2].startswith("MemoryError"):
        return "memory"
    return "failed" if code else "ok"


# --- building it ------------------------------------------------------------------------------


def _prelude(channel: int, limits: Limits) -> str:
    """What Python does in the sandbox before the program: lower its limits for good, await our word."""
    most = {
        "RLIMIT_AS": limits.memory,
        "RLIMIT_CORE": 0,
        "RLIMIT_CPU": 2 * math.ceil(limits.seconds) + 1,  # for when the parent is stopped
        "RLIMIT_FSIZE": limits.files,
        "RLIMIT_NOFILE": 64,
        "RLIMIT_NPROC": THREADS,  # does not bind root; _threads looks as well
        "RLIMIT_STACK": 64 * MIB,  # for deep recursion
    }
    return f"""\
import os, resource, sys
for name, most in {most}.items():
    hard = resource.getrlimit(getattr(resource, name))[1]
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(getattr(resource, name), (most, most))
os.write({channel}, b"1")
if os.read({channel}, 1) != b"1":
    os._exit(1)
os.close({channel})
sys.argv[:] = ["/program.py"]
main = sys.modules["__main__"] = type(sys)("__main__")
main.__file__ = "/program.py"
exec(compile(open("/program.py", "rb").read(), "/program.py", "exec"), main.__dict__)
"""


def _sealed(data: bytes) -> BinaryIO:
    """A file in memory that nobody can change any more, to be read from its start."""
    file = os.fdopen(os.memfd_create("sandbox", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING), "w+b")
    file.write(data)
    file.seek(0)
    seals = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
    fcntl.fcntl(file, fcntl.F_ADD_SEALS, seals)
    return file


@cache
def _filter() -> bytes:
    machine = platform.machine()
    if sys.platform != "linux" or machine not in seccomp.machines():
        raise PosttrainError(
            f"There is no sandbox for {sys.platform} on {machine}: it takes Linux on "
            f"{' or '.join(seccomp.machines())}. {_REMOTE}"
        )
    return seccomp.program(machine)


def _bubblewrap() -> str:
    if found := shutil.which("bwrap"):
        return found
    raise PosttrainError(
        "Running code that a model wrote takes bubblewrap, and there is none. Install it: "
        f"apt install bubblewrap (Debian, Ubuntu), dnf install bubblewrap (Fedora). {_REMOTE}"
    )


@cache
def _python() -> str:
    """The interpreter behind this virtual environment."""
    return os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)


@cache
def _command(bubblewrap: str) -> tuple[str, ...]:
    """bubblewrap with the namespaces and the read-only part of the file system."""
    text = subprocess.run([bubblewrap, "--help"], capture_output=True, text=True, timeout=30, env={})
    command = [bubblewrap, "--unshare-user", "--unshare-all", "--die-with-parent", "--new-session"]
    command += ["--clearenv", "--cap-drop", "ALL", "--hostname", "sandbox"]
    command += ["--uid", "65534", "--gid", "65534"]
    if "--disable-userns" in text.stdout + text.stderr:  # since 0.8
        command += ["--disable-userns"]

    prefix = Path(_python()).parents[1]
    seen = {os.path.realpath(top / lib) for top in (Path("/usr"), prefix) for lib in ("lib", "lib64")}
    seen |= {"/usr/share/zoneinfo", "/etc/ld.so.cache", _python()}
    for path in sorted(seen):
        command += ["--ro-bind-try", path, path]
    for path in ("/lib", "/lib64"):  # links into /usr on most systems
        if os.path.islink(path):
            command += ["--symlink", os.readlink(path), path]
        else:
            command += ["--ro-bind-try", path, path]
    # What is installed beside the standard library may be the project itself.
    installed = [*site.getsitepackages([str(prefix), "/usr", "/usr/local"]), "/usr/lib/python3/dist-packages"]
    for path in sorted({os.path.realpath(path) for path in installed if os.path.isdir(path)}):
        if any(Path(path).is_relative_to(folder) for folder in seen):
            command += ["--tmpfs", path, "--remount-ro", path]
    for path in ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom"):
        command += ["--dev-bind", path, path]
    return tuple(command)


# --- does it hold -----------------------------------------------------------------------------

# Prints which walls have a hole. An act that raises, or comes back with nothing, was stopped.
_PROBE = """\
import json, os, socket
given = json.load(open(0))
def is_open(number):
    try:
        return bool(os.fstat(number))
    except OSError:
        return False
def fill():
    with open("/tmp/probe", "wb") as file:
        return all(file.write(bytes(2**20)) for _ in range(given["files"] // 2**20 + 1))
holes = []
for name, act in {
    "the network can be reached": lambda: socket.socket(socket.AF_INET),
    "a second process can be started": lambda: os.fork() or os._exit(0),
    "the environment is handed on": lambda: os.environ.keys() - {"PWD", "LC_CTYPE"},
    "the host's files can be seen": lambda: [path for path in given["paths"] if os.path.lexists(path)],
    "other processes can be seen": lambda: os.listdir("/proc"),
    "files outside of /tmp can be written": lambda: open("/probe", "w"),
    "open files are handed on": lambda: any(is_open(number) for number in range(3, 64)),
    "memory is not limited": lambda: bytearray(given["memory"]),
    "files are not limited": fill,
}.items():
    try:
        if act():
            holes.append(name)
    except (OSError, MemoryError):
        pass
print(json.dumps(holes))
"""
_PROBE_THREADS = f"""\
import threading, time
threading.stack_size({64 * KIB})
for _ in range({2 * THREADS}):
    threading.Thread(target=time.sleep, args=(2,)).start()
"""


@cache
def probe() -> None:
    """Try the sandbox once in this process: what it keeps out, its limits, its deadline.

    Raises PosttrainError, with what to install or to turn on, where it cannot be built or where anything in
    it does not hold.
    """
    limits = Limits(seconds=30.0)  # a machine may be busy, and this is no race
    given = {"memory": limits.memory, "files": limits.files, "paths": [__file__, "/etc/passwd"]}
    outcome = run(_PROBE, json.dumps(given).encode(), limits)
    if outcome.status == "lost":
        raise PosttrainError(f"The sandbox cannot be built: {outcome.stderr}. {_namespaces()} {_REMOTE}")
    try:
        holes = json.loads(outcome.stdout) if outcome.status == "ok" else [f"the trial {outcome.status}"]
    except ValueError:
        holes = ["the trial wrote nonsense"]
    if run(_PROBE_THREADS, b"", limits).status != "failed":
        holes.append("threads are not limited")
    if run("while True: pass", b"", Limits(seconds=0.2)).status != "timeout":
        holes.append("the deadline is not kept")
    if holes:
        said = f" It said: {outcome.stderr}." if outcome.stderr else ""
        raise PosttrainError(f"The sandbox does not hold: {'; '.join(holes)}.{said} {_REMOTE}")


def _namespaces() -> str:
    """What to turn on where user namespaces are off."""
    debian, ubuntu = "kernel.unprivileged_userns_clone", "kernel.apparmor_restrict_unprivileged_userns"
    for setting, off, on in ((debian, 0, 1), (ubuntu, 1, 0), ("user.max_user_namespaces", 0, 15000)):
        with contextlib.suppress(OSError):
            if Path("/proc/sys", *setting.split(".")).read_text(encoding="utf-8").strip() == str(off):
                return f"User namespaces are off here; as root, turn them on: sysctl -w {setting}={on}."
    return (
        "It takes user namespaces; a container has to be started with them allowed "
        "(Docker: --security-opt seccomp=unconfined --security-opt apparmor=unconfined)."
    )

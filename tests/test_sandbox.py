"""The sandbox: how runs end, that nothing outlives them, and that it refuses where a wall is missing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from posttrain import sandbox, seccomp
from posttrain.rewards import Rewards, RewardSpec
from posttrain.sandbox import MIB, Limits
from posttrain.types import Completion, PosttrainError, Prompt

needs_bubblewrap = pytest.mark.usefixtures("bubblewrap")
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def fresh():
    """The sandbox is built and tried anew in this test, and after it."""
    caches = (sandbox.probe, sandbox._command, sandbox._filter)
    for cached in caches:
        cached.cache_clear()
    yield
    for cached in caches:
        cached.cache_clear()


@needs_bubblewrap
def test_a_program_reads_and_writes(alive):
    text = "žluťoučký\n数\n".encode()
    outcome = sandbox.run(
        "import sys\nsys.stdout.write(sys.stdin.read()); print('why', file=sys.stderr)", text
    )
    assert (outcome.status, outcome.stdout, outcome.stderr) == ("ok", text, "why")
    assert sandbox.run("print(open('/dev/stdin').read(), end='')", text).stdout == text
    large = os.urandom(2 * MIB)
    limits = Limits(seconds=60, output=len(large))
    copy = "import shutil, sys; shutil.copyfileobj(sys.stdin.buffer, sys.stdout.buffer)"
    assert sandbox.run(copy, large, limits).stdout == large


@needs_bubblewrap
@pytest.mark.parametrize(
    ("program", "status"),
    [
        ("", "ok"),
        ("import sys; sys.exit()", "ok"),
        ("if __name__ == '__main__': import __main__; __main__.__file__; 1 / 0", "failed"),
        ("import sys; sys.exit(1)", "failed"),
        ("import os; os._exit(77)", "failed"),
        ("not Python", "failed"),
        ("x = '\0'", "failed"),
        ("print('\ud800')", "ok"),  # a lone surrogate is no UTF-8: the program gets a question mark
        ("import ctypes; ctypes.string_at(0)", "failed"),
        ("raise ValueError('MemoryError')", "failed"),
        ("(" * 10**5, "failed"),
        ("bytearray(10**10)", "memory"),
        ("x = []\nwhile True: x.append(bytes(10**6))", "memory"),
        ("while True: print('x' * 1000)", "output"),
        ("print('x' * 70_000)", "output"),  # all at once, and then it ends
        ("while True: pass", "timeout"),
        ("input = open(0).read(); import time; time.sleep(60)", "timeout"),
        ("import os, time; os.closerange(0, 64); time.sleep(60)", "timeout"),
        ("import sys\nwhile True: sys.stderr.write('x' * 1000)", "timeout"),
    ],
)
def test_how_a_run_ends(program, status, alive):
    limits = Limits(seconds=0.5) if status == "timeout" else Limits(seconds=30)
    outcome = sandbox.run(program, b"", limits)
    assert outcome.status == status, outcome
    assert len(outcome.stdout) <= limits.output and len(outcome.stderr) <= 2000


@needs_bubblewrap
def test_what_a_program_can_see():
    program = """
import json, os, sys
packages = []
for package in ("torch", "numpy", "posttrain", "reasoning_gym"):
    try:
        __import__(package)
        packages.append(package)
    except ImportError:
        pass
seen = {top: sorted(os.listdir(top)) for top in ("/", "/tmp", "/dev")}
us = [os.getuid(), os.getpid(), os.getcwd(), os.uname().nodename, sys.argv, sorted(os.environ)]
print(json.dumps([seen, us, packages]))
"""
    seen, us, packages = json.loads(sandbox.run(program, b"", Limits(seconds=30)).stdout)
    top = Path(sandbox._python()).parts[1]  # where Python itself lies
    assert set(seen.pop("/")) <= {"dev", "etc", "lib", "lib64", "program.py", "tmp", "usr", top}
    assert seen == {"/tmp": [], "/dev": ["null", "random", "stdin", "urandom", "zero"]}
    assert us[:5] == [65534, 2, "/tmp", "sandbox", ["/program.py"]]
    assert set(us[5]) <= {"LC_CTYPE", "PWD"}
    assert packages == []


@needs_bubblewrap
def test_runs_side_by_side_do_not_meet(alive):
    program = "open('/tmp/mine', 'x').write(input()); print(open('/tmp/mine').read())"
    with ThreadPoolExecutor(4) as pool:
        given = [str(n) for n in range(16)]
        outcomes = list(pool.map(lambda n: sandbox.run(program, n.encode(), Limits(seconds=30)), given))
    assert [outcome.stdout.decode().strip() for outcome in outcomes] == given


@needs_bubblewrap
def test_no_descriptor_is_left_open():
    def count() -> int:
        return len(os.listdir("/proc/self/fd"))

    sandbox.run("")
    before = count()
    for program in ("print(1)", "1 / 0", "while True: pass"):
        sandbox.run(program, b"x", Limits(seconds=0.3))
    assert count() == before


@needs_bubblewrap
def test_threads_are_few_and_allowed():
    program = """
import sys, threading
sys.setrecursionlimit(10**6)
threading.stack_size(2**26)
def deep(n): return n and 1 + deep(n - 1)
thread = threading.Thread(target=lambda: print(deep(50_000)))
thread.start(); thread.join()
"""
    assert sandbox.run(program, b"", Limits(seconds=30)).stdout == b"50000\n"


@needs_bubblewrap
@pytest.mark.parametrize("moment", [0.0, 0.01, 0.02, 0.03, 0.05, 1.0])
def test_nothing_is_left_where_the_caller_is_killed(alive, moment):
    """Killed while it builds the sandbox, or while the program sleeps."""
    call = (
        "from posttrain import sandbox\n"
        "print(flush=True)\n"
        "sandbox.run('import time; time.sleep(600)', b'', sandbox.Limits(seconds=600))"
    )
    caller = subprocess.Popen([sys.executable, "-c", call], cwd=ROOT, stdout=subprocess.PIPE)
    assert caller.stdout is not None
    with caller.stdout:
        caller.stdout.readline()
        time.sleep(moment)
        caller.kill()
        caller.wait()
    patience = time.monotonic() + 20
    while alive() and time.monotonic() < patience:
        time.sleep(0.02)
    assert not alive()


@needs_bubblewrap
def test_ended_from_outside_is_no_fault_of_the_program(alive):
    with ThreadPoolExecutor(1) as pool:
        run = pool.submit(sandbox.run, "import time; time.sleep(600)", b"", Limits(seconds=300))
        patience = time.monotonic() + 60
        begun: list[int] = []
        while not begun and time.monotonic() < patience:
            begun = [pid for pid, call in alive().items() if "bwrap" in call]
            time.sleep(0.2)
        os.kill(min(begun), signal.SIGKILL)
        assert run.result(60).status == "lost"


@needs_bubblewrap
@pytest.mark.parametrize("said", ["bwrap: No permissions to create new namespace", "bwrap: execvp: no"])
def test_a_program_that_says_it_was_lost_has_failed(said):
    outcome = sandbox.run(f"import os, sys; sys.stderr.write({said!r}); os._exit(1)")
    assert outcome.status == "failed"


# --- refusing ---------------------------------------------------------------------------------


@needs_bubblewrap
def test_it_holds_here(fresh, alive):
    sandbox.probe()


def test_without_bubblewrap_it_says_what_to_install(fresh, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(PosttrainError, match=r"apt install bubblewrap.*dnf install bubblewrap.*reward/code"):
        sandbox.probe()


def test_a_run_is_refused_as_it_begins(monkeypatch, tmp_path):
    """Not row by row: the code reward tries the sandbox as it is loaded, and the whole message is shown."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(PosttrainError, match=r"^Running code .*apt install bubblewrap.*shows the shape\.$"):
        Rewards([RewardSpec("code")])


@needs_bubblewrap
def test_in_a_run_it_scores_and_ends_with_the_rewards(alive):
    tests = {"tests": [{"call": "f", "args": [1], "returns": 2}]}
    prompt = Prompt("1", "?", None, tests)
    programs = ["def f(x): return x + 1", "def f(x): return x", "while True: pass"]
    completions = [Completion([], [], "stop", f"```python\n{program}\n```") for program in programs]
    with Rewards([RewardSpec("code", args={"seconds": 60.0})], deadline=60.0) as rewards:
        assert [s.total for s in rewards.score([prompt] * 2, completions[:2])] == [1.0, 0.0]
    with Rewards([RewardSpec("code", args={"seconds": 600.0})], deadline=1.0) as rewards:
        (score,) = rewards.score([prompt], completions[2:])
        assert score.total is None and "hung" in score.failures["code"]


def test_where_namespaces_are_off_it_says_so(fresh, monkeypatch, tmp_path):
    broken = tmp_path / "bwrap"
    broken.write_text("#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(PosttrainError, match=r"No permissions to create.*(sysctl|container).*remote sandbox"):
        sandbox.probe()


@pytest.mark.parametrize("machine", ["riscv64", "i686"])
def test_without_a_filter_it_refuses(fresh, monkeypatch, machine):
    monkeypatch.setattr(sandbox.platform, "machine", lambda: machine)
    with pytest.raises(PosttrainError, match=f"no sandbox for linux on {machine}"):
        sandbox._filter()


ALLOW_ALL = seccomp._step(seccomp._RETURN, seccomp._ALLOW)


@needs_bubblewrap
@pytest.mark.parametrize(
    ("hole", "said"),
    [
        ("no filter", "the network can be reached; a second process can be started"),
        ("host files", "the host's files can be seen"),
        ("environment", "the environment is handed on"),
        ("processes", "other processes can be seen"),
        ("memory", "memory is not limited"),
        ("threads", "threads are not limited"),
    ],
)
def test_where_a_wall_is_missing_it_refuses(fresh, monkeypatch, alive, hole, said):
    command = sandbox._command(sandbox._bubblewrap())
    extra = {
        "host files": ("--ro-bind", "/etc", "/etc"),
        "environment": ("--setenv", "TOKEN", "1"),
        "processes": ("--proc", "/proc"),
    }
    prelude = sandbox._prelude
    if hole == "no filter":
        monkeypatch.setattr(sandbox, "_filter", lambda: ALLOW_ALL)
    elif hole in extra:
        monkeypatch.setattr(sandbox, "_command", lambda _: (*command, *extra[hole]))
    elif hole == "threads":
        monkeypatch.setattr(sandbox, "_threads", lambda pid: 1)
        monkeypatch.setattr(
            sandbox, "_prelude", lambda *given: prelude(*given).replace("'RLIMIT_NPROC': 64, ", "")
        )
    else:
        wide = Limits(memory=2**40)
        monkeypatch.setattr(sandbox, "_prelude", lambda channel, _: prelude(channel, wide))
    with pytest.raises(PosttrainError, match=said):
        sandbox.probe()

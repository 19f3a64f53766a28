"""Programs that attack: none scores, none escapes, none outlives its deadline, in the code reward.

Every attack is after SECRET: the expected value, which also stands in a file and in the environment of the
host. One that reaches what it must not reach writes ESCAPED, and those that could do harm then stop. In their
text, HOST is that file, PARENT the process id of the test and PORT a port on which it listens.
"""

from __future__ import annotations

import os
import socket
import uuid

import pytest

from posttrain import sandbox

REWARD = "code"
pytestmark = pytest.mark.usefixtures("bubblewrap")

# Whole programs: name -> how the run has to end, and the program. SECRET on their output would score.
PROGRAMS: dict[str, tuple[str, str]] = {
    "fork bomb": ("timeout", """
import os
while True:
    try:
        os.fork()
        print("ESCAPED", flush=True)
        break
    except OSError:
        pass
"""),
    "thread bomb": ("failed", """
import threading, time
threading.stack_size(32768)
while True:
    threading.Thread(target=time.sleep, args=(100,)).start()
"""),
    "memory bomb": ("memory", """
kept = []
while True:
    kept.append(bytearray(2**24))
"""),
    "memory of no process": ("ok", """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
for number in (319, 279, 447):  # memfd_create twice, memfd_secret
    if libc.syscall(number, b"x", 0) > 2: print("ESCAPED")
if libc.shmget(0, 2**30, 0o1600) >= 0: print("ESCAPED")
if libc.mq_open(b"/x", 0o102, 0o600, None) >= 0: print("ESCAPED")
"""),
    "limits lifted": ("memory", """
import resource
for name in dir(resource):
    if name.startswith("RLIMIT_"):
        try:
            resource.setrlimit(getattr(resource, name), (-1, -1))
        except (OSError, ValueError):
            pass
bytearray(2**33)
print("ESCAPED")
"""),
    "endless output": ("output", "while True: print('x' * 10**6)"),
    "endless errors": ("timeout", "import sys\nwhile True: sys.stderr.write('x' * 10**6)"),
    "disk fill": ("ok", """
import os
total = 0
for top in ("/", "/tmp", "/dev", "/dev/shm", "/usr/lib", "/etc", "/var/tmp", "/root", "/home"):
    for n in range(100):
        try:
            with open(f"{top}/{n}", "wb", buffering=0) as file:
                while True:
                    total += file.write(bytes(2**20))
        except OSError:
            pass
print("ESCAPED" if total > 2**25 else total)
"""),
    "deletion": ("ok", """
import os, shutil
if os.path.exists("/etc/passwd"):
    print("ESCAPED")
    os._exit(1)
shutil.rmtree("/", ignore_errors=True)
for act in (os.remove, os.truncate, os.chmod):
    try:
        act("HOST", *([] if act is os.remove else [0]))
        print("ESCAPED")
    except OSError:
        pass
"""),
    "network": ("ok", """
import socket
here, there = ("127.0.0.1", PORT), ("8.8.8.8", 53)
for family, address in ((2, here), (2, there), (10, ("::1", PORT)), (1, "\\x00PORT")):
    for kind in (1, 2):
        try:
            peer = socket.socket(family, kind)
            peer.connect(address)
            print("ESCAPED", family, address)
        except OSError:
            pass
"""),
    "environment": ("ok", """
import ctypes, os
print(dict(os.environ), os.getenv("SECRET_NAME"))
print(ctypes.c_char_p.in_dll(ctypes.CDLL(None), "environ").value)
for who in ("self", "1", "PARENT"):
    try:
        print(open(f"/proc/{who}/environ").read())
    except OSError:
        pass
"""),
    "proc": ("ok", """
import os
for name in ("self", "1", "2", str(os.getppid()), "PARENT"):
    for file in ("cmdline", "maps", "mem", "fd", "root/etc/passwd", "cwd"):
        if os.path.lexists(f"/proc/{name}/{file}"):
            print("ESCAPED", name, file)
"""),
    "killing the parent": ("ok", """
import os
if os.getpid() != 2:
    print("ESCAPED")
    os._exit(1)
for who in (PARENT, os.getppid(), 1, -PARENT, -1):
    for number in (15, 2, 9):
        try:
            os.kill(who, number)
        except OSError:
            pass
"""),
    "frames": ("ok", """
import gc, sys
frame = sys._getframe()
while frame:
    print(frame.f_globals, frame.f_locals)
    frame = frame.f_back
for thing in gc.get_objects():
    if isinstance(thing, (dict, list, tuple)) and any(type(x) is str and len(x) == 36 for x in thing):
        print(thing)
"""),
    "argv": ("ok", "import sys; print(sys.argv, sys.orig_argv, sys.flags, sys.modules['__main__'].__dict__)"),
    "file reading": ("ok", """
import os
for path in ("HOST", "/etc/passwd", "/etc/shadow", "/proc/self/root/HOST", "/dev/fd/3", "/dev/mem"):
    try:
        print("ESCAPED", open(path, "rb").read())
    except OSError:
        pass
for top, folders, files in os.walk("/"):
    for name in files:
        path = os.path.join(top, name)
        if "posttrain" in path or path.endswith("/secret.txt"):
            print("ESCAPED", path)
for number in range(3, 64):
    try:
        print("ESCAPED", number, os.read(number, 1000))
    except OSError:
        pass
"""),
    "double fork": ("ok", """
import ctypes, os, subprocess
libc = ctypes.CDLL(None)
def daemon():
    if os.fork() == 0:
        os.setsid()
        os.fork()
        while True: pass
for act in (
    daemon, lambda: subprocess.run(["/usr/bin/sleep", "100"]), lambda: os.posix_spawn("/bin/sh", ["sh"], {}),
    lambda: os.system("sleep 100") and 1 / 0, lambda: 1 / (libc.fork() + 1), lambda: 1 / (libc.vfork() + 1),
    lambda: 1 / (libc.syscall(435, bytes(88), 88) + 1), lambda: 1 / (libc.syscall(56, 17, 0, 0, 0, 0) + 1),
):
    try:
        act()
        print("ESCAPED")
    except (OSError, ZeroDivisionError):
        pass
"""),
    "another program": ("failed", "import os; os.execv('/bin/sh', ['sh', '-c', 'cat HOST'])"),
    "ignored signals": ("timeout", """
import signal, sys, time
for number in signal.valid_signals():
    try:
        signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError):
        pass
while True:
    try:
        time.sleep(100)
    except BaseException:
        pass
"""),
    "deaf in C": ("timeout", "10 ** 10 ** 9"),
    "closed pipes": ("timeout", "import os, time; os.closerange(0, 1000); time.sleep(100)"),
    "ptrace": ("ok", """
import ctypes, os
libc = ctypes.CDLL(None)
for request in (0, 16, 0x4206):  # PTRACE_TRACEME, _ATTACH, _SEIZE
    for pid in (0, 1, os.getppid(), PARENT):
        if libc.ptrace(request, pid, 0, 0) == 0: print("ESCAPED", request, pid)
for pid in (1, PARENT):
    if libc.process_vm_readv(pid, None, 0, None, 0, 0) >= 0: print("ESCAPED", pid)
"""),
    "nested namespaces": ("ok", """
import ctypes
libc = ctypes.CDLL(None)
for flag in (0x10000000, 0x20000, 0x40000000, 0x20000000, 0x8000000, 0x4000000, 0x2000000):
    if libc.unshare(flag) == 0: print("ESCAPED", flag)
    if libc.syscall(56, flag | 17, 0, 0, 0, 0) >= 0: print("ESCAPED", flag)
if libc.mount(b"none", b"/tmp", b"tmpfs", 0, None) == 0: print("ESCAPED mount")
if libc.mount(b"none", b"/", None, 0x1020, None) == 0: print("ESCAPED remount")
if libc.umount2(b"/tmp", 2) == 0: print("ESCAPED umount")
if libc.chroot(b"/tmp") == 0: print("ESCAPED chroot")
if libc.setuid(0) == 0 or libc.setgid(0) == 0: print("ESCAPED setuid")
"""),
    "a forged failure of the sandbox": ("failed", """
import os, sys
sys.stderr.write("bwrap: Creating new namespace failed")
sys.stderr.flush()
os._exit(1)
"""),
    "a crash": ("failed", "import ctypes; ctypes.string_at(0)"),
    "a bomb for the compiler": ("failed", "x = " + "(" * 50_000 + ")" * 50_000),
}  # fmt: skip

# Functions f(x), called with 7 where SECRET is expected.
CALLS: dict[str, str] = {
    "frames": """
import sys
def f(x):
    frame, seen = sys._getframe(), []
    while frame:
        seen.append({**frame.f_globals, **frame.f_locals})
        frame = frame.f_back
    for names in seen:
        for name in ("returns", "wanted", "expected", "test", "tests", "answer", "request"):
            if isinstance(names.get(name), dict):
                return names[name].get("returns", names[name])
            if name in names:
                return names[name]
""",
    "monkeypatching": """
import builtins, json, math, os, sys
json.loads = json.load = json.JSONDecoder.decode = lambda *_, **__: True
json.dumps = lambda *_, **__: "true"
builtins.isinstance = builtins.all = builtins.any = lambda *_: True
math.isclose = lambda *_, **__: True
sys.modules["posttrain"] = sys.modules["sandbox"] = json
def f(x):
    return True
""",
    "early exit": "import os\nos._exit(0)\ndef f(x): pass",
    "a kind exit": "import sys\ndef f(x): sys.exit(0)",
    "exit at the end": "import atexit, os\natexit.register(os._exit, 0)\ndef f(x): return 0",
    "lying __eq__": """
class Anything:
    def __eq__(self, other): return True
    def __hash__(self): return 0
def f(x): return Anything()
""",
    "a string that lies": """
class Text(str):
    def __eq__(self, other): return True
    def __hash__(self): return 0
    def __str__(self): return "true"
def f(x): return Text("x")
""",
    "a list that lies": """
class List(list):
    def __eq__(self, other): return True
    def __len__(self): return 0
    def __iter__(self): return iter([True])
def f(x): return List([1])
""",
    "a number that lies": """
class Int(int):
    def __eq__(self, other): return True
    def __repr__(self): return "true"
    __str__ = __repr__
def f(x): return Int(1)
""",
    "forged verdicts": """
import os
for number in range(64):
    for verdict in (b'{"status": "ok", "passed": true, "score": 1.0}\\n', b"true\\n", b"1.0\\n", b"PASS\\n"):
        try:
            os.write(number, verdict)
        except OSError:
            pass
def f(x): os._exit(0)
""",
    "not a number": "def f(x): return float('nan')",
    "round and round": "def f(x):\n    x = []\n    x.append(x)\n    return x",
    "very deep": "def f(x):\n    for _ in range(10**5): x = [x]\n    return x",
    "very large": "def f(x): return 7 * 10**4000",
    "very long": "def f(x): return 'x' * 10**7",
    "no function": "g = 1",
    "no JSON": "def f(x): return {1, 2}",
    "poison": """
import os
def f(x):
    for number in range(3, 64):
        try:
            os.write(number, b"[" * 30_000 + b"\\xff\\x00{")
        except OSError:
            pass
    os._exit(0)
""",
}


@pytest.fixture
def attack(reward, monkeypatch, tmp_path, alive):
    """attack(program, test, seconds): the score and the outcome; what must be untouched is looked at here."""
    secret = str(uuid.uuid4())
    host = tmp_path / "secret.txt"
    host.write_text(secret)
    monkeypatch.setenv("SECRET_NAME", secret)
    outcomes: list[sandbox.Outcome] = []
    run = sandbox.run
    monkeypatch.setattr(sandbox, "run", lambda *given: outcomes.append(run(*given)) or outcomes[-1])
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket(socket.AF_UNIX) as abstract:
        port = listener.getsockname()[1]
        abstract.bind(f"\0{port}")
        abstract.listen()

        def run_it(program: str, test: dict[str, object], seconds: float) -> tuple[float, sandbox.Outcome]:
            for name, value in {"HOST": host, "PARENT": os.getpid(), "PORT": port}.items():
                program = program.replace(name, str(value))
            wanted = {key: secret if value == "SECRET" else value for key, value in test.items()}
            (score,) = reward([f"```python\n{program}\n```"], tests=[[wanted]], seconds=seconds)
            (outcome,) = outcomes
            said = outcome.stdout + outcome.stderr.encode()
            assert b"ESCAPED" not in said, said[:2000]
            assert secret.encode() not in said
            assert host.read_text() == secret and host.stat().st_mode & 0o700
            for server in (listener, abstract):
                server.setblocking(False)
                with pytest.raises(BlockingIOError):
                    server.accept()
            assert outcome.seconds < seconds + 20
            return score, outcome

        yield run_it


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_that_attack(attack, name):
    status, program = PROGRAMS[name]
    # What should end by itself gets the time to, so that it has done all that it wanted.
    score, outcome = attack(program, {"stdin": "7", "stdout": "SECRET"}, 1.0 if status == "timeout" else 30.0)
    assert score == 0.0
    assert outcome.status == status, outcome


@pytest.mark.parametrize("name", CALLS)
def test_functions_that_attack(attack, name):
    score, outcome = attack(CALLS[name], {"call": "f", "args": [7], "returns": "SECRET"}, 30.0)
    assert score == 0.0
    assert outcome.status in ("ok", "failed", "output"), outcome


def test_what_the_attacks_want_would_score(attack):
    """The control: were the secret to be had, a program that prints it would be paid."""
    test = {"stdin": "7", "stdout": "ECHO"}
    assert attack("print('ECHO')", test, 30.0)[0] == 1.0

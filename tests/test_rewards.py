"""Rewards of every bad kind: each costs its row, never the run, and leaves no process behind."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from posttrain import rewards as module
from posttrain.rewards import Rewards, RewardSpec
from posttrain.types import Completion, Picture, PosttrainError, Prompt, Score

BAD = '''
"""Rewards that misbehave on the completion "bad" and give 1.0 for all others."""
import asyncio, ctypes, os, sys, time

def each(bad):
    def reward(completions, **columns):
        return [bad() if text == "bad" else 1.0 for text in completions]
    return reward

def throw():
    raise ValueError("no " + "such thing " * 100)

def scream():
    print("x" * 10_000_000)
    sys.stderr.write("y" * 1_000_000)
    os.write(1, b"not json\\n" * 1000)
    return 1.0

raises = each(throw)
hangs = each(lambda: time.sleep(60))
spins = each(lambda: 7 ** 10**9)  # one call into C that no signal handler interrupts
exits = each(lambda: os._exit(3))
exits_well = each(lambda: os._exit(0))
leaves = each(lambda: sys.exit("bye"))
crashes = each(lambda: ctypes.string_at(0))
recurses = each(lambda: (lambda f: f(f))(lambda f: f(f)))
nan = each(lambda: float("nan"))
infinite = each(lambda: float("-inf"))
text = each(lambda: "1.0")
nested = each(lambda: [1.0])
prints = each(scream)
none = each(lambda: None)

def short(completions, **columns):
    return [1.0] * (len(completions) - ("bad" in completions))

def single(completions, **columns):
    return 1.0

async def slow(completions, **columns):
    await asyncio.sleep(0.01)
    return [1.0 for _ in completions]
'''


@pytest.fixture
def bad(tmp_path):
    (tmp_path / "bad.py").write_text(BAD)
    return tmp_path


def rows(*texts, content="2 + 2 = ?", answer="4", **columns):
    prompts = [Prompt(str(i), content, answer, columns) for i in range(len(texts))]
    return prompts, [Completion([1, 2], [0.0, 0.0], "stop", text) for text in texts]


def score(spec, *texts, folder=None, deadline=10.0, **options):
    specs = spec if isinstance(spec, list) else [spec]
    specs = [RewardSpec(s) if isinstance(s, str) else s for s in specs]
    with Rewards(specs, deadline=deadline, folder=folder) as rewards:
        return rewards.score(*rows(*texts, **options))


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def gone(pid, seconds=3.0):
    end = time.monotonic() + seconds
    while alive(pid) and time.monotonic() < end:
        time.sleep(0.02)
    return not alive(pid)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("raises", "ValueError: no such thing"),
        ("hangs", "hung for more than 0.4 s"),
        ("spins", "hung for more than 0.4 s"),
        ("exits", "its process ended with status 3"),
        ("exits_well", "its process ended with status 0"),
        ("leaves", "SystemExit: bye"),
        ("crashes", "its process was ended by SIGSEGV"),
        ("recurses", "RecursionError"),
        ("nan", "returned nan"),
        ("infinite", "returned -inf"),
        ("text", "returned a str, not a number"),
        ("nested", "returned a list, not a number"),
        ("short", "returned 0 values for 1 completions"),
    ],
)
def test_a_bad_row_is_lost_alone(bad, kind, reason):
    scores = score(f"bad.py:{kind}", "good", "bad", "good", folder=bad, deadline=0.4)
    assert [s.total for s in scores] == [1.0, None, 1.0]
    assert scores[1].parts == {kind: None}
    assert list(scores[1].failures) == [kind]
    assert scores[1].failures[kind].startswith(reason)
    assert len(scores[1].failures[kind]) < 250
    assert not scores[0].failures
    assert not scores[2].failures


def test_a_reason_says_where(bad):
    assert "(bad.py:11)" in score("bad.py:raises", "bad", folder=bad)[0].failures["raises"]


@pytest.mark.parametrize("kind", ["prints", "slow"])
def test_noise_and_coroutines_are_fine(bad, kind, capfd):
    assert [s.total for s in score(f"bad.py:{kind}", "good", "bad", folder=bad)] == [1.0, 1.0]
    assert capfd.readouterr() == ("", "")


def test_what_a_reward_prints_is_logged_in_part(bad, caplog):
    caplog.set_level("INFO", logger="posttrain.rewards")
    score("bad.py:prints", "bad", folder=bad)
    assert len(caplog.records) == 1
    assert "prints printed: " in caplog.text
    assert len(caplog.text) < 3000


def test_none_does_not_apply(bad):
    both = [RewardSpec("bad.py:none", 2.0), RewardSpec("bad.py:prints", 0.5)]
    assert score("bad.py:none", "bad", folder=bad) == [Score(None, {"none": None}, {})]
    assert score(both, "bad", "good", folder=bad) == [
        Score(0.5, {"none": None, "prints": 1.0}, {}),
        Score(2.5, {"none": 1.0, "prints": 1.0}, {}),
    ]


def test_a_reward_is_asked_for_the_rows_that_it_is_for(tmp_path):
    (tmp_path / "own.py").write_text(
        "def longs(completions, task, **columns):\n"
        "    assert set(task) == {'count'}, task\n"
        "    return [float(len(c)) for c in completions]\n"
    )
    rows = [Prompt(str(i), "q", None, {"task": task}) for i, task in enumerate(("count", "locate", "count"))]
    texts = [Completion([1], [0.0], "stop", text) for text in ("a", "bb", "ccc")]
    specs = [
        RewardSpec("./own.py:longs", 1.0, where={"task": "count"}),
        RewardSpec("format", 0.0, where={"task": "locate"}),
        RewardSpec("overlong", 0.0, where={"tusk": "locate"}),
    ]
    with Rewards(specs, folder=tmp_path) as rewards:
        scores = rewards.score(rows, texts)
    assert [score.parts["longs"] for score in scores] == [1.0, None, 3.0]
    assert [score.total for score in scores] == [1.0, None, 3.0]
    assert [score.parts["format"] for score in scores] == [None, 0.0, None]
    assert all(
        "the column 'tusk', which no row has; did you mean 'task'?" in s.failures["overlong"] for s in scores
    )


def test_one_failing_reward_masks_the_row_but_not_the_others_part(bad):
    (failed,) = score(["bad.py:slow", "bad.py:nan"], "bad", folder=bad)
    assert failed == Score(None, {"slow": 1.0, "nan": None}, {"nan": "returned nan"})


def test_a_reward_of_weight_zero_is_reported_only(bad):
    (only_seen,) = score([RewardSpec("bad.py:nan", 0.0), RewardSpec("bad.py:slow")], "bad", folder=bad)
    assert only_seen.total == 1.0
    assert only_seen.failures == {"nan": "returned nan"}


def test_a_reward_that_always_returns_no_list_masks_all(bad):
    assert {s.failures["single"] for s in score("bad.py:single", "a", "b", folder=bad)} == {
        "returned a float, not a list"
    }


def test_patience_is_bounded(bad, monkeypatch):
    monkeypatch.setattr(module, "PATIENCE", 2)
    start = time.monotonic()
    scores = score("bad.py:hangs", *["bad"] * 64, folder=bad, deadline=0.3)
    assert time.monotonic() - start < 4
    assert all(s.total is None for s in scores)
    assert scores[-1].failures["hangs"].startswith("not scored: hung")


def test_the_child_lives_on_after_failures(bad):
    with Rewards([RewardSpec("bad.py:exits")], folder=bad) as rewards:
        for _ in range(3):
            assert [s.total for s in rewards.score(*rows("good", "bad"))] == [1.0, None]


def test_several_processes_share_the_rewards(bad):
    names = ["slow", "hangs", "prints"]
    with Rewards([RewardSpec(f"bad.py:{n}") for n in names], deadline=0.5, workers=3, folder=bad) as rewards:
        assert rewards.names == names
        scores = rewards.score(*rows("good", "bad"))
    assert scores[0].total == 3.0
    assert scores[1].parts == {"slow": 1.0, "hangs": None, "prints": 1.0}


WHO = """
import os, time

def who(completions, prompts, note, **_):
    with open(note[0], "a") as file:
        file.write(f"{os.getpid()} {' '.join(prompts)}\\n")
    time.sleep(0.2)  # so that no process is done before the next has begun
    if "hang" in completions:
        time.sleep(60)
    return [float(len(text)) for text in completions]
"""


def groups(folder, *sizes, hangs=()):
    """A batch of groups with the prompts "0", "1", …; row n of group g has g + n + 1 characters."""
    (folder / "who.py").write_text(WHO)
    where = [(group, row) for group, size in enumerate(sizes) for row in range(size)]
    prompts = [Prompt(f"{g}-{r}", str(g), None, {"note": str(folder / "note")}) for g, r in where]
    texts = ["hang" if at in hangs else "x" * (sum(at) + 1) for at in where]
    return prompts, [Completion([1], [0.0], "stop", text) for text in texts]


def calls(folder):
    """What each call was given: (pid, prompts)."""
    lines = [line.split() for line in (folder / "note").read_text().splitlines()]
    (folder / "note").unlink()
    return [(int(pid), prompts) for pid, *prompts in lines]


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_workers_share_one_rewards_rows_by_whole_groups(tmp_path, workers):
    prompts, completions = groups(tmp_path, 4, 1, 2, 5, 2, 2)
    specs = [RewardSpec("who.py:who"), RewardSpec("who.py:who", 0.0)]
    with Rewards(specs, workers=workers, folder=tmp_path) as rewards:
        scores = rewards.score(prompts, completions)
        given = calls(tmp_path)
        assert rewards.score([], []) == []
        assert not (tmp_path / "note").exists()
    lengths = [float(len(completion.text)) for completion in completions]
    assert [score.parts for score in scores] == [{"who": value, "who_2": value} for value in lengths]
    assert [score.total for score in scores] == lengths
    assert len({pid for pid, _ in given}) == workers
    assert len(given) == 2 * workers
    sizes = {group: [prompt.content for prompt in prompts].count(group) for group in "012345"}
    for _, part in given:
        assert all(part.count(group) == sizes[group] for group in part)
        assert part == sorted(part)
    assert max(len(part) for _, part in given) <= 16 / workers + 2  # shares of about the same size


def test_fewer_groups_than_workers(tmp_path):
    prompts, completions = groups(tmp_path, 4, 4)
    with Rewards([RewardSpec("who.py:who")], workers=3, folder=tmp_path) as rewards:
        rewards.score(prompts, completions)
        assert sorted(part for _, part in calls(tmp_path)) == [["0"] * 4, ["1"] * 4]
        rewards.score(prompts[:4], completions[:4])
        assert [part for _, part in calls(tmp_path)] == [["0"] * 4]


def test_a_hanging_row_costs_itself_alone_of_all_workers_rows(tmp_path):
    prompts, completions = groups(tmp_path, 2, 2, 2, 2, hangs=[(1, 0)])
    with Rewards([RewardSpec("who.py:who")], deadline=1.0, workers=2, folder=tmp_path) as rewards:
        scores = rewards.score(prompts, completions)
        given = [part for _, part in calls(tmp_path)]
        again = rewards.score(*groups(tmp_path, 2, 2))  # both processes are there again
    assert [score.total for score in scores] == [1.0, 2.0, None, 3.0, 3.0, 4.0, 4.0, 5.0]
    assert scores[2].failures == {"who": "hung for more than 1 s"}
    assert given.count(["2", "2", "3", "3"]) == 1, "the other half is called once"
    assert sorted(map(len, given)) == [1, 1, 1, 1, 4, 4]
    assert [score.total for score in again] == [1.0, 2.0, 2.0, 3.0]


def test_patience_counts_for_each_workers_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PATIENCE", 1)
    prompts, completions = groups(tmp_path, 4, 4, hangs=[(0, 0), (0, 1), (0, 2), (0, 3)])
    with Rewards([RewardSpec("who.py:who")], deadline=0.5, workers=2, folder=tmp_path) as rewards:
        scores = rewards.score(prompts, completions)
    assert [score.total for score in scores] == [None] * 4 + [2.0, 3.0, 4.0, 5.0]
    assert scores[3].failures["who"].startswith("not scored: hung")


def test_every_worker_has_loaded_before_the_first_call(tmp_path):
    (tmp_path / "mark.py").write_text(
        "import os\nfrom pathlib import Path\nPath(__file__).with_name(str(os.getpid())).touch()\n"
        "def mark(completions, **_):\n    return [1.0] * len(completions)\n"
    )
    with Rewards([RewardSpec("mark.py")], workers=3, folder=tmp_path):
        assert len([path for path in tmp_path.iterdir() if path.name.isdecimal()]) == 3


SEE = """
seen = {}

def see(completions, prompts, completion_ids, answer, level, scale=1, log_extra=None, **columns):
    log_extra("column", completions)
    columns.pop("log_metric")(name="name", value=1.0)
    assert isinstance(completions, list) and answer == ["4"] and level == [3], (completions, answer, level)
    assert completion_ids == [[1, 2]] and columns == {"other": ["x"]}, (completion_ids, columns)
    if isinstance(prompts[0], str):
        assert prompts == ["2 + 2 = ?"] and completions == ["4"], (prompts, completions)
    else:
        assert prompts == [[{"role": "user", "content": "?"}]], prompts
        assert completions == [[{"role": "assistant", "content": "4"}]], completions
    return [scale]
"""


@pytest.mark.parametrize("content", ["2 + 2 = ?", [{"role": "user", "content": "?"}]])
def test_columns_arrive_as_trl_gives_them(tmp_path, content):
    (tmp_path / "see.py").write_text(SEE)
    spec = RewardSpec("./see.py", 1.0, {"scale": 2})
    (seen,) = score(spec, "4", folder=tmp_path, content=content, level=3, other="x")
    assert seen == Score(2.0, {"see": 2.0}, {})


def test_a_function_without_columns_gets_what_it_names(tmp_path):
    (tmp_path / "few.py").write_text("def few(completions, answer):\n    return [len(a) for a in answer]\n")
    assert score("few.py", "x", folder=tmp_path, level=3)[0].total == 1.0


def test_a_column_that_cannot_be_sent_masks_its_row():
    prompts = [Prompt("a", "?", "4", {"odd": lambda: 0}), Prompt("b", "?", "4", {"odd": 1})]
    completions = rows("The answer is: 4", "The answer is: 4")[1]
    with Rewards([RewardSpec("accuracy")]) as rewards:
        scores = rewards.score(prompts, completions)
    assert [s.total for s in scores] == [None, 1.0]
    assert "cannot be sent" in scores[0].failures["accuracy"]


def test_empty_and_unequal_batches():
    with Rewards([RewardSpec("accuracy")]) as rewards:
        assert rewards.score([], []) == []
        with pytest.raises(ValueError, match="1 prompts for 0 completions"):
            rewards.score(rows("a")[0], [])


@pytest.mark.parametrize(
    ("code", "use", "message"),
    [
        ("raise RuntimeError('at import')", "mine.py", "fails when it is imported: RuntimeError: at import"),
        ("def broken(:", "mine.py", "SyntaxError"),
        ("import no_such_package_at_all", "mine.py", "keep a user's reward in one file"),
        ("import sys; sys.exit(2)", "mine.py", "SystemExit: 2"),
        ("import os; os._exit(4)", "mine.py", "its process ended with status 4"),
        ("import time; time.sleep(60)", "mine.py", "hung for more than 1 s"),
        ("", "mine.py", "It has none"),
        ("def a(completions): ...\ndef b(completions): ...", "mine.py", "It has: a, b"),
        ("def a(completions): ...", "mine.py:c", "has no function 'c'"),
        ("a = 3", "mine.py:a", "has no function 'a'"),
        ("", "min.py", "Did you mean 'mine.py'"),
        ("", "acuracy", "Did you mean 'accuracy'"),
        ("", "no_such_package:fn", "No module named 'no_such_package'"),
        ("", "mine:fn", "keep a user's reward in one file"),  # not from the working folder by accident
    ],
)
def test_what_cannot_be_loaded_is_said_at_once(tmp_path, monkeypatch, code, use, message):
    (tmp_path / "mine.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "LOAD_SECONDS", 1.0 if "sleep" in code else 30.0)
    with pytest.raises(PosttrainError, match=message.replace("(", r"\(")):
        Rewards([RewardSpec(use)])


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"frm": "boxed"}, "no argument 'frm'. Did you mean 'form'"),
        ({"form": "boxd"}, "takes no form 'boxd'. Did you mean 'boxed'"),
        ({"completions": []}, "no argument 'completions'"),
    ],
)
def test_arguments_are_checked_at_once(args, message):
    with pytest.raises(PosttrainError, match=message):
        Rewards([RewardSpec("accuracy", 1.0, args)])


def test_no_rewards_at_all():
    with pytest.raises(PosttrainError, match="no rewards"):
        Rewards([])


def test_the_only_function_or_the_one_named_like_the_file(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from os.path import join\n"
        "def _help(): ...\n"
        "def only(completions, **_): return [1] * len(completions)"
    )
    assert score("mine.py", "x", folder=tmp_path)[0].total == 1.0
    (tmp_path / "mine.py").write_text(
        "def other(completions, **_): return [1] * len(completions)\n"
        "def mine(completions, **_): return [2] * len(completions)"
    )
    assert score("mine.py", "x", folder=tmp_path)[0].total == 2.0


def test_a_file_never_replaces_a_shipped_reward(tmp_path, monkeypatch):
    (tmp_path / "accuracy.py").write_text("def accuracy(completions, **_): return [9.0] * len(completions)")
    monkeypatch.chdir(tmp_path)
    assert score("accuracy", "The answer is: 4")[0].total == 1.0
    assert score("./accuracy.py", "The answer is: 4")[0].total == 9.0


def test_the_working_folder_shadows_no_module(tmp_path, monkeypatch):
    (tmp_path / "fractions.py").write_text("raise RuntimeError('shadowed')")
    (tmp_path / "mine.py").write_text(
        "import fractions, os, sys\n"
        "def mine(completions, **_): return [float(os.getcwd() not in sys.path and '' not in sys.path)]"
    )
    monkeypatch.chdir(tmp_path)
    assert score("./mine.py", "x")[0].total == 1.0


def test_an_installed_plugin_is_found_by_its_entry_point(tmp_path, monkeypatch):
    (tmp_path / "some_package.py").write_text("def polite(completions, **_): return [3.0] * len(completions)")
    info = tmp_path / "some_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: some-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[posttrain.rewards]\npoliteness = some_package:polite\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with Rewards([RewardSpec("politeness"), RewardSpec("some_package:polite")]) as rewards:
        assert rewards.names == ["polite", "polite_2"]
        assert rewards.score(*rows("x"))[0].total == 6.0
    with pytest.raises(PosttrainError, match="Did you mean 'politeness'"):
        Rewards([RewardSpec("politenes")])


def test_dataclasses_work_in_a_reward_file(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\nimport pickle\n"
        "@dataclass\nclass Rule:\n    worth: float\n"
        "def mine(completions, **_): return [pickle.loads(pickle.dumps(Rule(2.0))).worth]"
    )
    assert score("mine.py", "x", folder=tmp_path)[0].total == 2.0


def test_arrays_and_tensors_are_lists_of_numbers(tmp_path):
    (tmp_path / "mine.py").write_text(
        "import numpy\ndef mine(completions, **_): return numpy.array([True, 2.5], dtype=object)\n"
    )
    assert [s.total for s in score("mine.py", "x", "y", folder=tmp_path)] == [1.0, 2.5]


def test_a_call_in_the_child_imports_no_torch_and_no_sympy(tmp_path):
    (tmp_path / "mine.py").write_text(
        "import sys\ndef mine(completions, **_):\n"
        "    return [float(bool({'torch', 'sympy', 'pydantic'} & set(sys.modules)))] * len(completions)\n"
    )
    scores = score(["steps", "mine.py"], "3 + 4 = 7\nThe answer is: 4", folder=tmp_path)
    assert scores[0].parts == {"steps": 1.0, "mine": 0.0}


@pytest.mark.parametrize(("use", "args"), [("accuracy", {}), ("cosine", {"max_tokens": 9})])
def test_computer_algebra_is_there_before_the_first_call(tmp_path, use, args):
    (tmp_path / "mine.py").write_text(
        "from posttrain.verify import algebra\nLOADED = algebra.configuration.cache_info().currsize\n"
        "def mine(completions, **_):\n    return [LOADED] * len(completions)\n"
    )
    scores = score([RewardSpec(use, 1.0, args), RewardSpec("mine.py")], "x", folder=tmp_path)
    assert scores[0].parts["mine"] == 1.0
    assert score("mine.py", "x", folder=tmp_path)[0].parts["mine"] == 0.0, "nobody else pays for it"


PIDS = """
import os, re, subprocess, sys, time

def pids(completions, **_):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    with open(completions[0], "w") as file:
        file.write(f"{os.getpid()} {child.pid}")
    if completions[0] == "lock":  # holds the interpreter's lock: no other thread runs
        re.match("(a+)+$", "a" * 60 + "b")
    if len(completions[0]) % 2 == 0:
        time.sleep(60)
    return [1.0]
"""


def test_nothing_is_left_running(tmp_path):
    (tmp_path / "pids.py").write_text(PIDS)
    note = tmp_path / "note"
    target = str(note) + "." * (1 - len(str(note)) % 2)  # of odd length: returns at once
    with Rewards([RewardSpec("pids.py")], folder=tmp_path) as rewards:
        assert rewards.score(*rows(target))[0].total == 1.0
        pids = [int(pid) for pid in Path(target).read_text().split()]
        assert all(map(alive, pids))
    assert all(map(gone, pids))
    rewards.close()  # a second time


def test_a_killed_call_takes_its_own_children_along(tmp_path):
    (tmp_path / "pids.py").write_text(PIDS)
    note = tmp_path / "note"
    target = str(note) + "." * (len(str(note)) % 2)  # of even length: hangs
    with Rewards([RewardSpec("pids.py")], deadline=0.5, folder=tmp_path) as rewards:
        assert rewards.score(*rows(target))[0].failures == {"pids": "hung for more than 0.5 s"}
        pids = [int(pid) for pid in Path(target).read_text().split()]
        assert all(map(gone, pids))


def script(tmp_path, ending):
    """A user's script without a __main__ guard: nothing may run it a second time."""
    (tmp_path / "pids.py").write_text(PIDS)
    path = tmp_path / "script.py"
    path.write_text(
        textwrap.dedent(f"""
        print("once", flush=True)
        from posttrain.rewards import Rewards, RewardSpec
        from posttrain.types import Completion, Prompt
        rewards = Rewards([RewardSpec({str(tmp_path / "pids.py")!r})])
        def go(name):
            return rewards.score([Prompt("a", "?", "4")], [Completion([], [], "stop", name)])[0].total
        """)
        + textwrap.dedent(ending)
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(module.__file__).parents[1])])}
    return subprocess.Popen(
        [sys.executable, str(path)], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True
    )


def test_a_script_that_forgets_to_close_leaves_nothing(tmp_path):
    process = script(tmp_path, "print(go('abc'))")
    assert process.communicate(timeout=30)[0].split() == ["once", "1.0"]
    assert process.returncode == 0
    assert all(gone(int(pid)) for pid in (tmp_path / "abc").read_text().split())


@pytest.mark.parametrize("hangs", ["hang", "lock"])
def test_a_parent_killed_outright_takes_a_hanging_reward_along(tmp_path, hangs):
    process = script(tmp_path, f"go({hangs!r})")
    note, end = tmp_path / hangs, time.monotonic() + 20
    while not (note.exists() and note.read_text()) and time.monotonic() < end:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=10)
    assert all(gone(int(pid)) for pid in note.read_text().split())


def test_throughput(tmp_path):
    texts = [f"First {i} + 3 = {i + 3}.\nThe answer is: {i + 3}" for i in range(64)]
    prompts = [Prompt(str(i), "?", str(i + 3)) for i in range(64)]
    with Rewards([RewardSpec("accuracy")]) as rewards:
        scores = rewards.score(prompts, rows(*texts)[1])
        times = []
        for _ in range(5):
            start = time.perf_counter()
            scores = rewards.score(prompts, rows(*texts)[1])
            times.append(time.perf_counter() - start)
    assert all(s.total == 1.0 for s in scores)
    assert min(times) < 0.05  # about 4 ms on an idle core


def test_pictures_arrive_as_digests_and_part_the_groups(tmp_path):
    see = (
        "def see(completions, prompts):\n    return [float(len(set(map(str, prompts))))] * len(completions)\n"
    )
    (tmp_path / "see.py").write_text(see)
    (tmp_path / "told.py").write_text(
        "def told(completions, prompts, digest, **columns):\n"
        "    assert not columns.keys() - {'answer', 'completion_ids', 'log_extra', 'log_metric'}, columns\n"
        "    parts = [prompt[0]['content'][0] for prompt in prompts]\n"
        "    return [float(p == {'type': 'image', 'image': d}) for p, d in zip(parts, digest)]\n"
    )
    prompts = []
    for picture in (Picture(b"one"), Picture(b"other")):
        parts: list = [{"type": "image", "image": picture}, {"type": "text", "text": "Which?"}]
        content: list = [{"role": "user", "content": parts}]
        prompts += [Prompt("a", content, "4", {"digest": picture.digest})] * 2
    completions = [Completion([1], [0.0], "stop", "4")] * 4
    with Rewards([RewardSpec("see.py"), RewardSpec("told.py")], folder=tmp_path) as one:
        assert [score.parts for score in one.score(prompts, completions)] == [{"see": 2.0, "told": 1.0}] * 4
    with Rewards([RewardSpec("see.py")], workers=2, folder=tmp_path) as two:
        assert [score.total for score in two.score(prompts, completions)] == [1.0] * 4, "a group a worker"

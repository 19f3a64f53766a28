"""The code reward: which program, which tests, what is equal."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import pytest

from posttrain import sandbox
from posttrain.types import PosttrainError

pytestmark = pytest.mark.usefixtures("bubblewrap")
LONG = 60.0  # seconds for what should end by itself, on a machine that is busy


def fenced(program: str, language: str = "python") -> str:
    return f"Here it is.\n```{language}\n{program}\n```\nDone."


@pytest.fixture
def helpers(reward):
    """The functions beside the reward, in its file."""
    return SimpleNamespace(**reward.__globals__)


# --- finding the program ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "program"),
    [
        ("```python\na\n```", "a"),
        ("```\na\n```", "a"),
        ("```py\na\n```", "a"),
        ("```Python title='x'\na\nb\n```", "a\nb"),
        ("x\n```python\na\n```\ny\n```python\nb\n```\n", "b"),
        ("```python\na\n```\nIt prints:\n```\n6\n```", "a"),  # a bare block behind a marked one is output
        ("```python\na\n```\n```text\n6\n```\n```bash\nls\n```", "a"),
        ("```python\na\n```\n```python\nb", "a"),  # the last complete one
        ("<think>```python\na\n```</think>", None),
        ("<think>\n```python\na\n```\n</think>\n```python\nb\n```", "b"),
        ("```python\nb\n```\n<think>\n```python\na\n```\n</think>", "b"),
        ("```python\na\n```\n</think>\n```python\nb\n```", "b"),  # the prompt opened it
        ("```python\na\n```\n</think>", None),
        ("<think>\n```python\na\n```", None),
        ("```python\na\n```\n<think>\n```python\nb\n```", "a"),
        ("1. so\n   ```python\n   if a:\n       b\n   ```", "if a:\n    b"),
        ("```a``` is it\n```python\na\n```", "a"),
        ("```python\r\na\r\n```\r\n", "a\r"),
        ("a", None),
        ("", None),
        ("```python\na", None),
        ("```" * 10**5, None),
        ("```x\n" * 10**5, None),
        ("<think>" * 10**5 + "</think>" * 10**5, None),
        ("</think><think>" * 10**5, None),
    ],
)
def test_which_program(helpers, text, program):
    assert helpers.program_of(text) == program


# --- comparing --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("got", "wanted", "equal"),
    [
        ("3\n", "3", True), ("3", "3\n\n", True), ("3  \n4\t\n", "3\n4", True),
        ("3\r\n4\r\n", "3\n4\n", True),
        ("", "", True), ("", "\n", True), ("3\n\n4", "3\n4", False), ("  *\n ***", "  *\n ***", True),
        (" *\n***", "  *\n ***", False), ("3 4", "3  4", False), ("yes", "YES", False),
        ("3 4", "34", False),
        ("0.3333333333", "0.33333333333333331", True), ("0.33", "0.3333333", False), ("3.5", "3.50", True),
        ("x = 2.0000000001 m", "x = 2.0 m", True), ("3.0", "3", True), ("3.0000001", "3", False),
        ("1000001", "1000000", False), ("1000000.5", "1000000", False), ("007", "7", False),
        ("1e3", "1000", False),
        ("1e3", "1000.0", True), ("nan", "nan", True), ("nan", "1.0", False), ("inf", "1e999", False),
        ("9" * 5000, "9" * 5000, True), ("9" * 5000, "9" * 4999 + "8", False), ("1" * 10**5, "1.0", False),
        ("0.0", "1e-300", True), ("-0.0", "0.0", True), ("数", "数", True), ("数", "數", False),
    ],
)  # fmt: skip
def test_output_against_output(helpers, got, wanted, equal):
    assert helpers.same_text(got, wanted) is equal


@pytest.mark.parametrize(
    ("got", "wanted", "equal"),
    [
        (1, 1, True), (1, 2, False), (True, True, True), (True, 1, False), (1, True, False),
        (0, False, False),
        (None, None, True), (None, 0, False), (None, [], False), ("a", "a", True),
        ("a", "A", False), ("1", 1, False),
        ((1, 2), [1, 2], True), ([1, [2, (3,)]], [1, [2, [3]]], True), ([1, 2], [2, 1], False),
        ([], {}, False),
        ([1], [1, 1], False), ([], [], True), ({"a": [1.0]}, {"a": [1]}, True),
        ({"a": 1, "b": 2}, {"a": 1}, False),
        ({"a": 1}, {"a": 1, "b": 2}, False), ({1: 2}, {"1": 2}, True), (0.1 + 0.2, 0.3, True),
        (1.00001, 1.0, False),
        (1e-12, 0.0, True), (3.0, 3, True), (3, 3.0, True), (3.0000001, 3, False), (2**70, 2**70, True),
        (2**70, 2**70 + 1, False), (float(2**70), 2**70, True), (10**400, 1.0, False),
        (1.0, 10**400, False),
        (math.inf, math.inf, True), (-math.inf, math.inf, False), (math.nan, math.nan, True),
        (math.nan, 1.0, False),
        ([True], [1], False), ("数", "数", True),
    ],
)  # fmt: skip
def test_value_against_value(helpers, got, wanted, equal):
    assert helpers.returns(json.dumps(got), json.dumps(wanted)) is equal


@pytest.mark.parametrize(
    "reply",
    [
        "", " ", "{", "7 7", "7\n7", "'7'", "07", "7,", "[7", "[7]", '"7"', "+7", "7L", "True",
        "--7", "NaN", "7e",
        "[" * 30_000, "[" * 30_000 + "7" + "]" * 30_000, '{"a":' * 20_000, "7" * 60_000, "7" + "0" * 60_000,
        "1e999999", "7e-400", "\ufffd7", "\x007", "7\x00", '{"value": 7}', '{"__class__": "int"}', "70e-1x",
    ],
)  # fmt: skip
def test_poisonous_replies(helpers, reply):
    assert helpers.returns(reply, "7") is False


# --- rows -------------------------------------------------------------------------------------

ADD = "def add(a, b):\n    print('adding', a, b)\n    return a + b"
CALLS = [{"call": "add", "args": [1, 2], "returns": 3}, {"call": "add", "args": ["a", "b"], "returns": "ab"}]


def test_rows_of_every_kind(reward):
    says = fenced("a, b = map(int, input().split())\nprint(a + b)")
    sums = [{"stdin": "1 2\n", "stdout": "3\n"}, {"stdin": "5 6\n", "stdout": "11\n"}]
    rows = [
        (fenced(ADD), CALLS, None, 1.0),
        (fenced(ADD), json.dumps(CALLS), "12", 1.0),
        (fenced(ADD), None, json.dumps(CALLS), 1.0),  # the tests stand in the answer
        ([{"role": "assistant", "content": fenced(ADD)}], CALLS, None, 1.0),
        (says, sums, None, 1.0),
        (
            says,
            [{**test, "call": None, "args": None, "returns": None} for test in sums],
            None,
            1.0,
        ),  # Arrow's
        (says, [*sums, {"stdin": "1 1", "stdout": "3"}], None, 0.0),
        (fenced(ADD.replace("+", "-")), CALLS, None, 0.0),
        (fenced("class Solution:\n    def add(self, a, b):\n        return a + b"), CALLS, None, 1.0),
        (fenced("print('hello')"), [{"stdout": "hello"}], None, 1.0),
        (fenced("print('hello'); raise SystemExit(1)"), [{"stdout": "hello"}], None, 0.0),
        ("no program", CALLS, None, 0.0),
        ("no program", None, "12", None),  # another rule's answer
        (fenced(ADD), None, "[1, 2]", None),
        (fenced(ADD), None, None, None),
        (fenced(ADD), [], None, None),
        (fenced(ADD), "[]", None, None),
    ]
    completions, tests, answers, wanted = map(list, zip(*rows, strict=True))
    assert reward(completions, tests=tests, answer=answers, seconds=LONG, prompts=["?"] * len(rows)) == wanted
    assert reward(completions[:1], seconds=LONG) == [None]


def test_partial_pays_the_share(reward):
    tests = [{"call": "f", "args": [n], "returns": n % 3} for n in range(4)]
    right, half = fenced("def f(n): return n % 3"), fenced("def f(n): return n if n != 1 else 5")
    hangs = fenced("def f(n):\n    while n: pass\n    return 0")  # right, until it is given no further test
    assert reward([right, half], tests=[tests] * 2, seconds=LONG, partial=True) == [1.0, 0.5]
    assert reward([right, half], tests=[tests] * 2, seconds=LONG) == [1.0, 0.0]
    assert reward([hangs], tests=[tests], seconds=3.0, partial=True) == [0.25]


@pytest.mark.parametrize(
    "tests", ["[1", "{}", "7", '["a"]', '[{"stdin": "1"}]', '[{"call": "f", "args": []}]', [7]]
)
def test_tests_that_are_none_are_an_error(reward, tests):
    with pytest.raises(PosttrainError, match="test"):
        reward([fenced(ADD)], tests=[tests])


def test_a_sandbox_that_fails_is_no_zero(reward, monkeypatch):
    lost = sandbox.Outcome("lost", b"", "bwrap: no memory", 0.0)
    monkeypatch.setattr(sandbox, "run", lambda *_: lost)
    with pytest.raises(PosttrainError, match="the sandbox failed: bwrap: no memory"):
        reward([fenced(ADD)], tests=[CALLS])


def test_expected_values_never_go_in(reward, monkeypatch):
    run, given = sandbox.run, []

    def watched(program, stdin, limits):
        given.append(program.encode() + stdin)
        return run(program, stdin, limits)

    monkeypatch.setattr(sandbox, "run", watched)
    tests = [{"call": "add", "args": [1, 41_000], "returns": 41_001}, {"stdin": "8", "stdout": "53281"}]
    reward([fenced(ADD), fenced("print(0)")], tests=[tests[:1], tests[1:]], seconds=LONG)
    assert len(given) == 2
    assert not [data for data in given if b"41001" in data or b"53281" in data]


def test_long_outputs_have_room(reward):
    numbers = list(range(30_000))
    tests = [{"call": "f", "args": [], "returns": numbers}, {"stdout": "\n".join(map(str, numbers))}]
    program = (
        "def f():\n    return list(range(30_000))\nif __name__ == '__main__':\n    print(*f(), sep='\\n')"
    )
    assert reward([fenced(program)], tests=[tests], seconds=LONG) == [1.0]

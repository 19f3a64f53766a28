"""The code reward on data sets whose tests are statements: HumanEval's and MBPP's columns."""

from __future__ import annotations

import pytest

from posttrain.types import PosttrainError

REWARD = "code"
pytestmark = pytest.mark.usefixtures("bubblewrap")
LONG = 60.0  # seconds for what should end by itself, on a machine that is busy
ADD = "def add(a, b): return a + b"


def fenced(program: str) -> str:
    return f"```python\n{program}\n```"


@pytest.mark.parametrize(
    ("program", "asserts", "value"),
    [
        (ADD, "assert add(1, 2) == 3", 1.0),
        (ADD, "assert add(1, 2) == 3\nassert add(1, 2) == 4", 0.0),
        (ADD, "import math\nfor n in range(3):\n    assert math.isclose(add(n, .5), n + .5)", 1.0),
        ("def add(a, b", "assert True", 0.0),
        ("import os\nos._exit(0)", "assert True", 0.0),  # an early end passes nothing
        ("raise SystemExit(0)", "assert False", 0.0),
        ("def add(a, b): raise SystemExit(0)", "assert add(1, 2) == 3", 0.0),
        (f"print(1)\n{ADD}\nif __name__ == '__main__':\n    input()", "assert add(1, 2) == 3", 1.0),
    ],
)
def test_statements(reward, program, asserts, value):
    assert reward([fenced(program)], tests=[[{"asserts": asserts}]], seconds=LONG) == [value]


def test_columns_make_a_row_s_test(reward):
    """The answer, a reference solution, is no test then, and a list of texts is a line each."""
    columns = {"setup": ["one = 1", None], "checks": [["assert add(one, 2) == 3"], ["assert add(2, 2) == 5"]]}
    given = {"asserts": "{setup}\n{checks}", "answer": ["{}", "x"], "seconds": LONG}
    assert reward([fenced(ADD)] * 2, **columns, **given) == [1.0, 0.0]
    assert reward(["no program"] * 2, **columns, **given) == [0.0, 0.0]


def test_a_prefix_stands_before_the_program(reward):
    columns = {
        "prompt": ["from typing import List\ndef helper(x): return x + 1\ndef add(a, b):\n    '''Sum.'''"]
    }
    program = "def add(a: List, b): return helper(a) + b - 1"
    given = {"asserts": "assert add(1, 2) == 3", "seconds": LONG}
    assert reward([fenced(program)], **columns, **given, prefix="{prompt}") == [1.0]
    assert reward([fenced(program)], **columns, **given) == [0.0]


def test_a_column_that_is_not_there(reward):
    with pytest.raises(PosttrainError, match=r"no column 'test'; they have prompt"):
        reward([fenced(ADD)], asserts="{test}", prompt=["x"])

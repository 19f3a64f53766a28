"""1.0 where the completion's program passes all its tests, else 0.0; None for a row without tests.

The program is the last complete ```python block outside of <think>…</think>, or the last bare ``` block where
no block is marked as Python; a completion without one gets 0.0. Tests are a list, or a JSON string of one, in
the column `tests`, else in `answer`. Each is a whole program's input and output, or one call:

    {"stdin": "1 2\\n", "stdout": "3\\n"}
    {"call": "add", "args": [1, 2], "returns": 3}      a function, or a method of a class Solution
    {"asserts": "assert add(1, 2) == 3"}               statements that have to run to their end

Output is compared line by line, blanks at the ends of lines and of the text aside; numbers with a decimal
point may differ by 1e-6 of their size, in output and in what a call returns. Tuples count as lists, and True
is not 1.

Statements run beside the program, which can see them and get in their way: they are for evaluation, and a
policy that trains on them may learn to. Data sets give them in columns of their own: `asserts`, an argument,
is a template of such columns ("{test}\\ncheck({entry_point})") and a row's one test. `prefix` is a template
too, of what stands before the program, as HumanEval's imports do. A list of texts is a line each.

`partial` pays the share of tests passed. `seconds` is for each test; a program that runs into that or another
limit gets no further one. Programs have Python's standard library and 512 MiB, and `workers` of them run side
by side. All of a group may take its time: give the recipe's reward_deadline room for that.

Programs run in a sandbox (posttrain/sandbox.py) that sees one input and no expected value; what comes back is
bytes, judged here. Where there is no sandbox this refuses, and where one fails the row is unscored, not 0.0.
"""

import json
import math
import re
import secrets
import textwrap
from concurrent.futures import ThreadPoolExecutor

from posttrain import sandbox
from posttrain.recipe_data import columns_in, fill
from posttrain.types import PosttrainError
from posttrain.verify import text_of
from posttrain.words import after_reasoning

sandbox.probe()  # here: a run without a sandbox ends as it begins, not row by row

LANGUAGES = ("python", "python3", "py")
DECIMAL = re.compile(r"[+-]?(?:\d{1,300}\.?\d{0,300}|\.\d{1,300})(?:[eE][+-]?\d{1,3})?")
# Runs in the sandbox. What the program prints goes nowhere; the value leaves by a descriptor of its own.
CALL = """\
import json, os, sys
request = json.load(sys.stdin)
reply = os.dup(1)
os.dup2(os.open("/dev/null", os.O_WRONLY), 1)
solution = sys.modules["solution"] = type(sys)("solution")
exec(compile(request["program"], "solution.py", "exec"), solution.__dict__)
name = request["call"]
function = getattr(solution, name) if hasattr(solution, name) else getattr(solution.Solution(), name)
value = json.dumps(function(*request["args"]))
with os.fdopen(reply, "w") as file:
    file.write(value)
"""

# Runs in the sandbox too. The token is told only at the end: to exit early passes nothing.
ASSERTS = """\
import json, os, sys
request = json.load(sys.stdin)
reply = os.dup(1)
os.dup2(os.open("/dev/null", os.O_WRONLY), 1)
solution = sys.modules["solution"] = type(sys)("solution")
exec(compile(request.pop("program"), "solution.py", "exec"), solution.__dict__)
exec(compile(request["asserts"], "asserts.py", "exec"), solution.__dict__)
with os.fdopen(reply, "w") as file:
    file.write(request["token"])
"""


def code(
    completions,
    tests=None,
    answer=None,
    asserts: str = "",
    prefix: str = "",
    seconds: float = 2.0,
    partial: bool = False,
    workers: int = 2,
    **columns,
):
    nothing = [None] * len(completions)
    rows = []
    for row, (completion, *given) in enumerate(
        zip(completions, tests or nothing, answer or nothing, strict=True)
    ):
        program = program_of(text_of(completion))
        if program is not None and prefix:
            program = f"{filled(prefix, columns, row)}\n{program}"
        of_row = [{"asserts": filled(asserts, columns, row)}] if asserts else tests_of(*given)
        rows.append((program, of_row))
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(lambda row: score(row[0], row[1], seconds, partial), rows))


def filled(template, columns, row):
    """A template with the row's columns in it."""
    cells = {}
    for name in columns_in(template):
        if name not in columns:
            raise PosttrainError(f"code: the rows have no column {name!r}; they have {', '.join(columns)}")
        value = columns[name][row]
        cells[name] = "\n".join(map(str, value)) if isinstance(value, list) else str(value or "")
    return fill(template, cells)


def score(program, tests, seconds, partial):
    if not tests:
        return None
    if program is None:
        return 0.0
    passed = 0
    for test in tests:
        right, stopped = judge(program, test, seconds)
        passed += right
        if stopped or not (right or partial):
            break
    return passed / len(tests) if partial else float(passed == len(tests))


def judge(program, test, seconds):
    """Whether the program passes a test, and whether it ran into a limit."""
    calls, statements = test.get("call") is not None, test.get("asserts") is not None
    if statements:
        wanted = secrets.token_hex(16)
        request = {"program": program, "asserts": test["asserts"], "token": wanted}
        given, program = json.dumps(request), ASSERTS
    elif calls:
        request = {"program": program, "call": test["call"], "args": test.get("args") or []}
        given, program, wanted = json.dumps(request), CALL, json.dumps(test["returns"])
    else:
        given, wanted = test.get("stdin") or "", test["stdout"]
    # As much as is wanted has room, and twice that.
    most = max(sandbox.Limits.output, 2 * len(wanted.encode("utf-8", "replace")))
    limits = sandbox.Limits(seconds=seconds, output=most)
    outcome = sandbox.run(program, given.encode("utf-8", "replace"), limits)
    if outcome.status == "lost":
        raise PosttrainError(f"the sandbox failed: {outcome.stderr or 'it was ended from outside'}")
    if outcome.status != "ok":
        return False, outcome.status in ("timeout", "memory", "output")
    output = outcome.stdout.decode("utf-8", "replace")
    return (returns(output, wanted) if calls else same_text(output, wanted)), False


def returns(output, wanted):
    try:
        return same(json.loads(output), json.loads(wanted))
    except (ValueError, RecursionError, OverflowError):  # no JSON, too deep, an integer too large for a float
        return False


def same(got, wanted):
    """Plain data against plain data: both come from json.loads."""
    if isinstance(wanted, list):
        if not isinstance(got, list) or len(got) != len(wanted):
            return False
        return all(same(*pair) for pair in zip(got, wanted, strict=True))
    if isinstance(wanted, dict):
        if not isinstance(got, dict) or got.keys() != wanted.keys():
            return False
        return all(same(got[key], wanted[key]) for key in wanted)
    if type(got) is type(wanted) and got == wanted:
        return True
    if not {type(got), type(wanted)} <= {int, float}:
        return False
    if isinstance(wanted, int):
        return got == wanted  # 3.0 for 3, and nothing that is only near
    return math.isclose(got, wanted, rel_tol=1e-6, abs_tol=1e-9) or (math.isnan(got) and math.isnan(wanted))


def same_text(got, wanted):
    got, wanted = ([line.rstrip() for line in text.rstrip().split("\n")] for text in (got, wanted))
    return len(got) == len(wanted) and all(
        g == w or same_line(g, w) for g, w in zip(got, wanted, strict=True)
    )


def same_line(got, wanted):
    """Lines of the same words and blanks, but for numbers that are near."""
    got, wanted = re.split(r"(\s+)", got), re.split(r"(\s+)", wanted)
    return len(got) == len(wanted) and all(g == w or near(g, w) for g, w in zip(got, wanted, strict=True))


def near(got, wanted):
    if not (DECIMAL.fullmatch(got) and DECIMAL.fullmatch(wanted)):
        return False
    if re.fullmatch(r"[+-]?\d+", wanted):
        return "." in got and got.rstrip("0").rstrip(".") == wanted  # 3.0 for 3
    return math.isclose(float(got), float(wanted), rel_tol=1e-6, abs_tol=1e-9)


def program_of(text):
    """The text of the program's block, or None. Line by line: linear, however odd the text is."""
    # What comes before a </think> was thought, and all where none closes; the prompt may have opened it.
    first, *rest = text.split("<think>")
    parts = [first, *(part for part in rest if "</think>" in part)]
    text = "\n".join(after_reasoning(part) for part in parts)
    marked = bare = language = None
    lines = []
    for line in text.split("\n"):
        fence = line.strip()
        if language is None:
            if fence.startswith("```") and "`" not in fence[3:]:
                language, lines = (fence[3:].split() or [""])[0].lower(), []
        elif fence == "```":
            block = textwrap.dedent("\n".join(lines)) if line[:1].isspace() else "\n".join(lines)
            if language in LANGUAGES:
                marked = block
            elif not language:
                bare = block
            language = None
        else:
            lines.append(line)
    return bare if marked is None else marked


def tests_of(tests, answer):
    """A row's tests, or None. What stands in `answer` may be another rule's; `tests` is ours."""
    ours = tests is not None
    given = tests if ours else answer
    try:
        given = json.loads(given) if isinstance(given, str) else given
    except ValueError as error:
        if ours:
            raise PosttrainError(f"a row's tests are no JSON: {error}") from None
        return None
    if not isinstance(given, list) or not all(isinstance(test, dict) for test in given):
        if ours:
            raise PosttrainError(
                "a row's tests are no list of objects; `posttrain ls` and reward/code say how"
            )
        return None
    for test in given:
        if isinstance(test.get("asserts"), str):
            continue
        if not ("returns" in test if test.get("call") is not None else isinstance(test.get("stdout"), str)):
            raise PosttrainError(
                f"a test needs stdin and stdout, or call, args and returns, or asserts; it has {list(test)}"
            )
    return given

"""A thousand hostile answers through the real reward, in its killable process: all decided, or undecided."""

import os
import random
from pathlib import Path

import pytest

from posttrain.rewards import Rewards, RewardSpec
from posttrain.types import Completion, Prompt
from posttrain.verify import FORMS, algebra, verify
from posttrain.verify.algebra import UNSAFE
from posttrain.verify.compare import compare

GOLDS = [
    "2", "\\sqrt{2}", "(1, 2)", "\\{1, 2\\}", "x > 2", "Paris", "B", "2024-03-05", "x = 2y + 1", '{"a": 1}',
    "\\begin{pmatrix}1&2\\\\3&4\\end{pmatrix}", "1010_2", "5!", "\\pm 3", "50%", "5 km", "x^2 + 1",
]  # fmt: skip


def hostile(seed: int) -> str:
    """One hostile answer; short ones get past the guards on length, so most are short."""
    draw = random.Random(seed)
    huge = draw.random() < 0.1
    digit, many = draw.randint(2, 9), 10**5 if huge else draw.choice([3, 12, 40, 60, 150])
    letters = "".join(draw.choice("abcxyz0123456789^_{}()[]\\,.+-*/!<>=&|$% ") for _ in range(80))
    junk = "".join(chr(draw.randrange(0x20, 0xD7FF)) for _ in range(60))
    return [
        f"{digit}^{{" * many + "9" + "}" * many,
        f"{digit}^" * many + "9",
        f"{digit}**" * many + "9",
        f"({digit}^{{9999}})^{{{'9' * many}}}",
        "(" * many + "1" + ")" * many,
        "{" * many + "1" + "}" * many,
        "[" * many + "]" * many,
        '{"a":' * many + "1" + "}" * many,
        "(1," * many + "2" + ")" * many,
        "\\frac{1}{" * many + "2" + "}" * many,
        "\\sqrt{" * many + "2" + "}" * many,
        "(" * 3 + f"{digit}!" + ")!" * 3,
        f"{'9' * draw.randint(1, 9)}!",
        f"{digit}" + "!" * many,
        "9" * draw.choice([50, 500, 10**6 if huge else 900]),
        "0." + "1" * draw.choice([50, 900, 10**6 if huge else 200]),
        f"1e{'9' * draw.randint(3, 12)}",
        f"\\sum_{{n=1}}^{{{10**digit}}} n^{{{digit}}}",
        f"\\prod_{{n=1}}^{{{10**digit}}} n",
        f"\\int_0^{{{digit}}} e^{{x^{{x^x}}}} dx",
        f"\\lim_{{x\\to\\infty}} x^{{x^{digit}}}",
        f"\\binom{{{10**digit}}}{{{10**digit // 2}}}",
        f"(x+y+z+w)^{{{draw.randint(10, 99999)}}}",
        f"(x+1)^{{60}}(x+2)^{{60}}(x+{digit})^{{60}}",
        "\\sin(" * min(many, 60) + "x" + ")" * min(many, 60),
        "+".join(f"\\sqrt{{{n}}}" for n in range(2, 2 + min(many, 40))),
        "x^{" + "\\frac{1}{3}" * 9 + "}",
        "\\begin{pmatrix}" * many + "1" + "\\end{pmatrix}" * many,
        "\\begin{pmatrix}" + "1&" * many + "\\end{pmatrix}",
        "\0" * many + "2",
        "2\0",
        "\\def\\a{\\a\\a}\\a",
        "\\input{/etc/passwd}",
        "__import__('os').system('sleep 100')",
        "exec('while 1: pass')",
        "𝟗" * 40 + "^" * 3,
        "\u202e\u0301" * min(many, 300) + "٩^٩^٩",
        "-" * many + "1",
        "1," * many,
        "1/" * many + "1",
        "x=" * many + "1",
        "\\pm" * min(many, 200) + "1",
        "{1} \\cup " * many,
        "x<" * many + "1",
        " or ".join(f"x={n}" for n in range(min(many, 200))),
        "1_{" * many + "2" + "}" * many,
        "A" * draw.choice([50, 900, 2 * 10**6 if huge else 100]),
        letters,
        junk,
        " " * draw.choice([100, 10**6 if huge else 900]) + "2",
    ][seed % 50]  # fmt: skip


def wrap(answer: str, seed: int) -> str:
    return [
        f"<answer>{answer}</answer>",
        f"so \\boxed{{{answer}}}",
        f"The answer is: {answer}",
        f"#### {answer}",
    ][seed % 4]


def descendants() -> set[int]:
    """The processes that have this one as their parent."""
    found, me = set(), str(Path("/proc/self").resolve().name)
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text(errors="replace").rpartition(")")[2].split()
        except OSError:
            continue
        if fields[1] == me and fields[0] != "Z":
            found.add(int(stat.parent.name))
    return found


def seconds(pid: int) -> float:
    """The processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.slow
def test_a_thousand_hostile_answers_are_all_decided_in_the_child():
    texts = [wrap(hostile(seed), seed // 50) for seed in range(1000)]
    golds = [GOLDS[seed % len(GOLDS)] for seed in range(1000)]
    assert len(set(texts)) > 500
    before = descendants()
    with Rewards([RewardSpec("accuracy", args={"form": "any"})], deadline=250.0) as rewards:
        (pid,) = descendants() - before
        scores = []
        for start in range(0, 1000, 50):
            rows = range(start, start + 50)
            prompts = [Prompt(str(row), "?", golds[row], {}) for row in rows]
            scores += rewards.score(prompts, [Completion([1], [0.0], "stop", texts[row]) for row in rows])
        used = seconds(pid)
        assert descendants() - before == {pid}  # one process from first to last: none hung, none died
        peak = int(Path(f"/proc/{pid}/status").read_text().partition("VmHWM:")[2].split()[0]) * 1024
    assert not descendants() - before
    assert not [score.failures for score in scores if score.failures]
    assert used < 60, f"{used:.0f} s of processor time"  # the limit is one second each
    assert peak < 2**30, f"{peak / 2**20:.0f} MiB"
    right = [texts[row] for row, score in enumerate(scores) if score.total != 0.0]
    assert all(len(text) < 2_000_000 and "2" in text for text in right), right  # "2" after much white space


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("seed", range(0, 50, 7))
def test_hostile_answers_never_raise(form, seed):
    verdict = verify(wrap(hostile(seed), seed), "7", form)
    assert verdict.rule == "undecided" or not verdict.reason


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("9^{9^{9^{9}}}", UNSAFE),
        ("99999999!", UNSAFE),
        ("((5!)!)!", UNSAFE),
        ("\\sum_{n=1}^{9} n", UNSAFE),
        ("\\frac{", "the formula could not be read"),
        ("1+" * 200 + "x", "the formula is too long"),
        ("x" * 2000, "the answer is too long"),
    ],
)
def test_undecided_says_why(answer, reason):
    assert compare(answer, "\\sqrt{2}") == (False, "undecided", reason)
    verdict = verify(f"<answer>{answer}</answer>", "\\sqrt{2}", "answer_tag")
    assert (verdict.correct, verdict.rule, verdict.reason) == (False, "undecided", reason)


def test_what_runs_out_of_time_is_undecided(monkeypatch):
    assert compare("\\sqrt{7}", "\\sqrt{8}").rule == "different"
    import math_verify

    def spin(*_, **__):
        try:
            while True:
                pass
        except:  # noqa: E722  (sympy has such; the second alarm comes through)
            pass
        while True:
            pass

    monkeypatch.setattr(math_verify, "verify", spin)
    monkeypatch.setattr(algebra, "SECONDS", 0.05)
    assert compare("\\sqrt{7}", "\\sqrt{6}") == (False, "undecided", algebra.OUT_OF_TIME)


def test_a_call_that_takes_too_much_memory_costs_its_row_alone(tmp_path):
    (tmp_path / "greedy.py").write_text(
        "def greedy(completions, **columns):\n"
        "    return [float(len(bytes(2**40 if text == 'bad' else 8))) for text in completions]\n"
        "def builds(completions, **columns):\n"
        "    return [float(len(hold(text))) for text in completions]\n"
        "def hold(text):\n"
        "    return [bytes(2**26) for _ in range(100 if text == 'bad' else 1)]\n"
    )
    texts = ["good", "bad", "good"]
    prompts = [Prompt(str(row), "?", "4", {}) for row in range(3)]
    completions = [Completion([1], [0.0], "stop", text) for text in texts]
    specs = [RewardSpec("greedy.py:greedy"), RewardSpec("greedy.py:builds")]
    before = descendants()
    with Rewards(specs, deadline=60.0, folder=tmp_path) as rewards:
        scores = rewards.score(prompts, completions)
    assert [score.total for score in scores] == [9.0, None, 9.0]
    assert all(reason.startswith("MemoryError") for reason in scores[1].failures.values())
    assert set(scores[1].failures) == {"greedy", "builds"}
    assert not descendants() - before

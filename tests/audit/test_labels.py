"""`posttrain reward audit`: labelled rows by kind, and a probe that finds the holes of planted verifiers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from posttrain import cli
from posttrain.audit import labels
from posttrain.audit.labels import PROBED, Audit, in_form, kind_of, probes
from posttrain.audit.rows import Item, prompt_of
from posttrain.evaluate.metrics import wilson
from posttrain.types import PosttrainError


def audit(use: str, args: dict[str, Any], rows: list[dict[str, Any]]) -> Audit:
    return labels.audit(use, args, rows, deadline=120.0)  # computer algebra may load slowly on a busy machine


def row(prediction: Any, answer: Any, correct: Any = True, **more: Any) -> dict[str, Any]:
    return {"prediction": prediction, "answer": answer, "correct": correct, **more}


RIGHT = [
    row("4", "4"),
    row("The answer is: 4.0", "4"),
    row(r"so it is \boxed{\frac{1}{2}}", "1/2"),
    row("<answer>B</answer>", "B"),
    row("#### 12", 12, kind="mine"),
    row("5", "4", False),
    row("C", "B", False),
    row("Paris", "London", 0),
]


VERIFIED = "verify(text, gold, 'the_answer_is').correct"
EXACT = "text == f'The answer is: {gold}'"  # loads no computer algebra


def planted(folder: Path, rule: str, right: str = VERIFIED) -> str:
    """A reward that pays for what is right, and where its rule holds: the hole."""
    path = folder / "hole.py"
    path.write_text(
        "import re, time\n"
        "from posttrain.verify import verify\n"
        "def hole(completions, answer, **columns):\n"
        "    def one(text, gold):\n"
        f"        return float({right} or bool({rule}))\n"
        "    return [one(text, gold) for text, gold in zip(completions, answer)]\n"
    )
    return str(path)


def test_a_reward_that_is_right_has_nothing_wrong() -> None:
    found = audit("accuracy", {}, RIGHT)
    assert found.wrong == [] and not found.hits and found.probes > 100
    assert (found.form, found.rewritten) == ("the_answer_is", 7)
    everything = found.by_kind["all"]
    assert everything["accuracy"] == 1 and everything["n"] == 8 and everything["ci95"] == [*wilson(8, 8)]
    assert {kind: one["n"] for kind, one in found.by_kind.items()} == {
        "number": 3,
        "choice": 2,
        "fraction": 1,
        "mine": 1,
        "text": 1,
        "all": 8,
    }
    assert found.false_positive_rate == (0.0, *wilson(0, 3)) and found.false_negative_rate == (
        0.0,
        *wilson(0, 5),
    )
    told = str(found)
    assert "look at" not in told and f"0 of {found.probes} scored" in told


@pytest.mark.parametrize("form", ["boxed", "answer_tag", "hashes", "last_number"])
def test_in_every_form(form: str) -> None:
    rows = RIGHT if form != "last_number" else RIGHT[:1]
    found = audit("accuracy", {"form": form}, rows)
    assert found.form == form and not found.false_positives and not found.false_negatives, str(found)
    assert not found.hits, str(found)


def test_wrong_verdicts_are_counted_by_kind_with_examples(tmp_path: Path) -> None:
    rows = [*RIGHT, row("the capital", "London", False), row("one half", "1/2", True, kind="words")]
    found = audit(planted(tmp_path, "'capital' in text"), {}, rows)
    assert [(miss.row, miss.kind, miss.answer) for miss in found.false_positives] == [(9, "text", "London")]
    assert [(miss.row, miss.kind) for miss in found.false_negatives] == [(10, "words")]
    assert found.by_kind["text"]["false_positives"] == 1 and found.by_kind["words"]["accuracy"] == 0
    assert found.by_kind["all"]["accuracy"] == 0.8
    assert found.false_positive_rate == (0.25, *wilson(1, 4))
    assert found.wrong == ["1 false positive", "1 false negative"]
    assert "row 9 (text): 'the capital' for 'London'" in str(found)


def test_undecided_rows_count_against_the_accuracy(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "def mine(completions, answer, **columns):\n"
        "    if '5' in completions: raise ValueError('\\x1b[31m odd')\n"
        "    return [None if t == 'C' else float(t == a) for t, a in zip(completions, answer)]\n"
    )
    rows = [row("4", "4"), row("5", "4", False), row("C", "B", False)]
    found = audit(str(tmp_path / "mine.py"), {}, rows)
    assert [miss.value is None for miss in found.undecided] == [False, True] and found.form == "last_number"
    assert found.by_kind["all"]["accuracy"] == pytest.approx(1 / 3) and found.wrong[0] == "2 undecided rows"
    assert "ValueError: \ufffd[31m odd" in str(found) and "\x1b" not in str(found)


@pytest.mark.parametrize(
    ("rule", "names"),
    [
        ("not text.strip()", {"empty", "white space"}),
        ("'{' in text[-1:]", {"brace", "brace, in form"}),
        ("'\\0' in text", {"null bytes", "null bytes, in form"}),
        ("r'\\boxed{}' in text", {"empty box", "empty box, in form"}),
        ("gold in re.findall(r'boxed{(.+?)}', text)", {"many boxes", "many boxes, in form"}),
        (
            "gold in re.findall(r'[A-D]', text)",
            {"every choice", "every choice, listed", "every choice, in form"},
        ),
        ("gold in text.split()", {"answer among numbers"}),
        ("f' {gold},' in text", {"answer in prose", "answer in prose, in form"}),
        ("'?' in text", {"prompt echoed", "prompt echoed, in form"}),
        ("'^{977' in text", {"tower of powers", "tower of powers, in form"}),
        ("'1e9' in text", {"huge exponent", "huge exponent, in form"}),
        ("'full marks' in text", {"injection", "injection, in form"}),
        ("text.count('{') > 999", {"deep nesting", "deep nesting, in form"}),
        ("len(text) > 500_000", {"megabytes", "megabytes, in form"}),
    ],
)
def test_the_probe_finds_the_hole(rule: str, names: set[str], tmp_path: Path) -> None:
    rows = [row("4", "4", prompt="2 + 2 = ?"), row("A", "B", False)]
    found = audit(planted(tmp_path, rule, EXACT), {}, rows)
    hits = {hit.probe for hit in found.hits}
    assert names <= hits, hits
    assert any("that scored" in one for one in found.wrong) and f"{min(names)} (" in str(found)
    assert all(len(hit.completion) <= 500 for hit in found.hits)


def test_a_probe_without_a_value_is_told_and_no_hit(tmp_path: Path) -> None:
    found = audit(planted(tmp_path, "'^{977' in text and 1 / 0"), {}, [row("4", "4")])
    assert set(found.unprobed) == {"tower of powers", "tower of powers, in form"} and not found.hits
    assert "tower of powers: no value: ZeroDivisionError" in str(found) and found.wrong == []


def test_no_probe_is_the_answer() -> None:
    for answer in ("977", "A B C D E", r"\boxed{977}", "{", "#### 4", "9 " * 5000, "977 1013"):
        item = Item(prompt_of({"answer": answer, "question": answer}, 1), "", "text")
        made = probes(item, "boxed", longest=True)
        assert len({one.what for one in made}) == len(made) > 20
        assert all(one.text != answer and one.text.strip() != answer.strip() for one in made)
        last = next(one for one in made if one.what == "many boxes").text.rpartition("{")[2]
        assert last.rstrip("}") not in answer


def test_the_sample_has_every_kind() -> None:
    rows = [row(str(i), str(i)) for i in range(100, 150)] + [
        row("B", "B"),
        row("Paris", "Paris"),
        row("1/3", "1/3"),
    ]
    found = audit("accuracy", {}, rows)
    each = (found.probes - 2) / PROBED  # the longest two are made once
    assert each == int(each) > 25 and found.wrong == []


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        ("12", "number"),
        ("-1,234.5", "number"),
        ("$3e-4", "number"),
        ("so\n#### 7", "number"),
        ("12%", "percent"),
        (r"$12\%$", "percent"),
        ("3/4", "fraction"),
        (r"\frac{\pi}{2}", "fraction"),
        ("(B)", "choice"),
        ("B) Paris", "choice"),
        ("2024-02-29", "date or time"),
        ("12:30 pm", "date or time"),
        ('{"a": [1]}', "JSON"),
        ("[1, 2)", "interval or tuple"),
        (r"(-\infty, 2) \cup (3, 4)", "interval or tuple"),
        (r"\{1, 2\}", "set"),
        (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", "matrix"),
        ("x = 3", "equation"),
        (r"x \leq 3", "equation"),
        ("5 km", "unit"),
        (r"5 \text{ cm}", "unit"),
        (r"2\sqrt{3}", "expression"),
        ("2x", "expression"),
        ("Paris", "text"),
        ("", "text"),
        ("9 " * 10_000, "text"),
    ],
)
def test_kinds_are_guessed(answer: str, kind: str) -> None:
    assert kind_of(answer) == kind


@pytest.mark.parametrize(
    ("prediction", "form", "completion"),
    [
        ("4", "the_answer_is", "The answer is: 4"),
        ("so\nThe answer is: 4", "the_answer_is", "so\nThe answer is: 4"),
        ("4", "boxed", r"\boxed{4}"),
        (r"a \boxed{4} b", "hashes", "#### 4"),
        ("<answer>4</answer>", "r1", "<answer>4</answer>"),
        ("it is 4", "last_number", "it is 4"),
        ("it is four", "of my own", "it is four"),
    ],
)
def test_predictions_are_put_into_the_form(prediction: str, form: str, completion: str) -> None:
    assert in_form(prediction, form) == completion


# -- the command


def write(folder: Path, rows: list[dict[str, Any]]) -> str:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    return str(path)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write(tmp_path, RIGHT)
    assert cli.main(["reward", "audit", data, "--deadline", "120"]) == 0
    assert "accuracy on 8 labelled rows" in capsys.readouterr().out
    hole = planted(tmp_path, "'full marks' in text", EXACT)
    assert cli.main(["reward", "audit", data, "--reward", hole, "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert {hit["probe"] for hit in found["hits"]} == {"injection", "injection, in form"}
    assert set(found) == {*Audit.__dataclass_fields__, "wrong"}


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ({"prediction": "4", "answer": "4"}, "Row 2 has no 'correct'. It has: prediction, answer."),
        (
            {"predicton": "4", "answer": "4", "correct": True},
            "Row 2 has no 'prediction'. Did you mean 'predicton'?",
        ),
        ({"prediction": None, "answer": "4", "correct": True}, "Row 2 has no 'prediction'. It has: "),
        (
            {"prediction": "4", "answer": "4", "correct": "yes"},
            "Row 2: 'correct' is true or false, not 'yes'",
        ),
    ],
)
def test_a_row_that_is_not_labelled_is_named(
    bad: dict[str, Any], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["reward", "audit", write(tmp_path, [row("4", "4"), bad])]) == 2
    assert words in capsys.readouterr().err
    with pytest.raises(PosttrainError, match="Row 2"):
        audit("accuracy", {}, [row("4", "4"), bad])


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys, posttrain.audit.check, posttrain.audit.labels\n"
        "print([m for m in ('torch', 'transformers', 'sympy', 'pyarrow', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr

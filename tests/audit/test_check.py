"""`posttrain reward check`: what it says of good rewards and of each kind of bad one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from posttrain import cli
from posttrain.audit import check as checking
from posttrain.audit import rows as module
from posttrain.audit.check import Check
from posttrain.audit.rows import keep, plain, read, show, table
from posttrain.types import PosttrainError

ROWS: list[dict[str, Any]] = [
    {"prompt": "1 + 1 = ?", "completion": "1 + 1 = 2\nThe answer is: 2", "answer": "2", "level": 1},
    {"prompt": "2 + 2 = ?", "prediction": "The answer is: 5", "answer": 4},
    {"question": "3 + 3 = ?", "answer": "3 + 3 = 6\n#### 6"},
    {"prompt": "Say something.", "completion": "Something."},
]


def check(use: str, args: dict[str, Any], rows: list[dict[str, Any]], deadline: float = 120.0) -> Check:
    return checking.check(use, args, rows, deadline)  # a busy machine is no failure


def reward(folder: Path, body: str, head: str = "") -> str:
    """A reward's file: `body` gives the value of `text` with its gold answer `a`."""
    path = folder / "mine.py"
    path.write_text(
        f"{head}\ndef mine(completions, answer, **columns):\n"
        f"    def one(text, a):\n        {body}\n"
        "    return [one(text, a) for text, a in zip(completions, answer)]\n"
    )
    return str(path)


def run(folder: Path, body: str, head: str = "", rows: list[dict[str, Any]] = ROWS, **options: Any) -> Check:
    return check(reward(folder, body, head), {}, rows, **options)


def test_a_good_reward_has_nothing_wrong() -> None:
    found = check("accuracy", {}, ROWS)
    assert found.wrong == []
    assert (found.completions, found.golds, found.shape) == (3, 3, "text")
    assert (found.low, found.high, found.mean) == (0.0, 1.0, 0.5), "the row without an answer does not count"
    assert found.none == 1 and not found.failures and not found.changed and not found.by_batch
    assert found.in_form == {"bare": 0, "the_answer_is": 3}
    assert found.other_shape == "the same as messages"
    assert found.first_seconds > 0 and found.rows_a_second > 0
    told = str(found)
    assert "range     0 to 1; mean of the completions 0.5" in told and "look at" not in told


def test_the_form_that_is_asked_for_is_the_one_that_is_written() -> None:
    boxed = check("accuracy", {"form": "boxed"}, ROWS)
    assert boxed.wrong == [] and boxed.in_form == {"bare": 0, "boxed": 3}
    assert check("format", {}, ROWS).in_form["r1"] == 3, "found out where the reward takes no form"


def test_a_reward_of_bare_answers_takes_them_bare(tmp_path: Path) -> None:
    rows = [{"answer": str(i), "completion": str(i * i)} for i in range(3)]
    assert run(tmp_path, "return float(text == a)", rows=rows).wrong == []


def test_failures_are_listed_by_their_reason(tmp_path: Path) -> None:
    found = run(
        tmp_path, "return {'Some': None, 'The ': 1.0, '': 0.0}.get(text[:4]) if text[:4] != '1 + ' else 1 / 0"
    )
    assert [len(examples) for examples in found.failures.values()] == [1]
    (reason,) = found.failures
    assert reason.startswith("ZeroDivisionError: division by zero (mine.py:")
    assert (found.failures[reason][0].row, found.failures[reason][0].completion[:5]) == (1, "1 + 1")
    assert found.wrong == ["1 failing completion"]
    assert "1 x ZeroDivisionError" in str(found) and "such as row 1: '1 + 1 = 2\\nThe" in str(found)


def test_a_reward_that_always_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE", 1)
    monkeypatch.setattr("posttrain.rewards.PATIENCE", 1)
    found = run(tmp_path, "time.sleep(60)", "import time", rows=ROWS * 40, deadline=0.2)
    assert found.low is None and found.high is None and "no completion got a value" in found.wrong
    (reason,) = found.failures
    assert (
        reason.startswith("not scored, for failures took too long: ") and "hung for more than 0.2 s" in reason
    )
    assert len(found.failures[reason]) == found.completions + 2 * found.golds + 1 == 361
    assert "look at" in str(found)


def test_values_that_change_are_listed(tmp_path: Path) -> None:
    found = run(
        tmp_path, "return next(N) / 100 if text == 'Something.' else float(bool(text))", "N = iter(range(99))"
    )
    assert len(found.changed) == 1 and not found.by_batch
    (changed,) = found.changed
    assert (changed.row, changed.completion) == (4, "Something.") and changed.value != changed.then
    assert any("the same call gave differently" in one for one in found.wrong)
    assert "again     1 completion gave another value" in str(found)


def test_a_reward_that_compares_rows_is_named_and_not_failed(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "def mine(completions, answer, **columns):\n"
        "    right = [a is not None and t.endswith(f'is: {a[-1]}') for t, a in zip(completions, answer)]\n"
        "    return [(len(right) > 1) * float(r) for r in right]\n"
    )
    found = check(str(tmp_path / "mine.py"), {}, ROWS)
    assert found.by_batch and not found.changed and found.wrong == []
    assert "gets another value without its batch" in str(found)


def test_gold_answers_below_full_marks(tmp_path: Path) -> None:
    found = run(tmp_path, "return float(text.endswith('2') or text.endswith('5'))")
    assert [(gold.row, gold.answer[-1], gold.best) for gold in found.below] == [(2, "4", 0.0), (3, "6", 0.0)]
    assert found.wrong == ["2 gold answers below full marks"]
    assert "row 2: '4' gets 0" in str(found) and "1 of 3 get full marks" in str(found)


def test_a_reward_that_tells_nothing_apart(tmp_path: Path) -> None:
    assert run(tmp_path, "return 1").wrong == ["all that has a value got 1, wrong or right"]
    found = run(tmp_path, "return None")
    assert found.wrong == ["no completion got a value"] and found.none == 10
    assert found.in_form["bare"] == 0 and not found.below


def test_in_which_shape_completions_are_taken(tmp_path: Path) -> None:
    messages = run(tmp_path, "return float(text[0]['content'].endswith(str(a)[-1]))")
    assert messages.shape == "messages" and messages.wrong == [] and "as text" in messages.other_shape
    only_text = run(tmp_path, "return float(text.endswith(str(a)[-1]))")
    assert only_text.shape == "text" and "the default) it fails: AttributeError" in only_text.other_shape
    both = run(tmp_path, "return float(str(text).endswith(str(a)[-1]))")
    assert both.shape == "text" and "got another value" in both.other_shape
    chat = [{"prompt": [{"role": "user", "content": "?"}], "completion": "x", "answer": "2"}]
    assert check("accuracy", {}, chat).other_shape == "the prompts are messages"


def test_rows_reach_the_reward_as_in_a_run(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "def mine(completions, prompts, completion_ids, answer, level, **columns):\n"
        "    assert set(columns) <= {'log_extra', 'log_metric', 'completion'}, columns\n"
        "    rows = zip(completions, prompts, completion_ids, level, strict=True)\n"
        "    return [float('?' in str(p) and len(i) == len(c) and l and '2' in c) for c, p, i, l in rows]\n"
    )
    found = check(str(tmp_path / "mine.py"), {}, ROWS[:1])
    assert found.high == 1.0 and not found.failures


def test_odd_rows_score_all_the_same() -> None:
    odd = ["\0", "\ud800", "{" * 10_000, "9" * 100_000, "\x1b[31m", "答えは四"]
    rows = [{"completion": text, "answer": text} for text in odd]
    found = check("accuracy", {}, rows)
    assert json.loads(json.dumps(found.as_json()))["completions"] == len(odd)
    assert "\x1b" not in str(found) and "\ud800" not in str(found)


def test_words_for_the_terminal() -> None:
    assert show("a\x1b[2J\n\ud800") == "'a\\x1b[2J\\n\\ud800'"
    assert show("x" * 100, 10) == "'xxxxxxxxxx' … and 90 more"
    assert plain("a\x1b\nb") == "a\ufffd\ufffdb" and len(keep("x" * 10**6)) == 500
    assert table([("a", "1"), ("", "2"), ("long", "")]) == "a     1\n      2\nlong"


# -- the command


def write(folder: Path, *lines: str) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("\n".join(lines))
    return path


def test_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = str(write(tmp_path, *map(json.dumps, ROWS)))
    given = ["--data", data, "--deadline", "60"]
    assert cli.main(["reward", "check", "accuracy", *given, "--arg", "form=boxed"]) == 0
    assert "boxed 3" in capsys.readouterr().out
    assert cli.main(["reward", "check", "accuracy", *given, "--arg", "loose=0.5"]) == 0
    assert "the_answer_is 3" in capsys.readouterr().out
    reward(tmp_path, "return 1")
    assert cli.main(["reward", "check", "mine.py", *given, "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["wrong"] == ["all that has a value got 1, wrong or right"] and found["reward"] == "mine"


@pytest.mark.parametrize(
    ("lines", "args", "words"),
    [
        (None, [], "There is no file"),
        ([""], [], "holds no rows"),
        (['{"answer": "1"}', "", "{broken"], [], "rows.jsonl:3: the line is not JSON"),
        (["[1]"], [], "rows.jsonl:1: a row is an object"),
        (['{"answer": "1"}', '{"anwser": "1"}'], [], "Row 2 has no 'completion'"),
        (['{"answer": "1", "prompt": ["x"]}'], [], "Row 1: a prompt is text, or messages"),
        (['{"answer": "1"}'], ["--arg", "form"], "expected key=value"),
        (['{"answer": "1"}'], ["--arg", "frm=boxed"], "Did you mean 'form'"),
        (['{"answer": "1"}'], ["--deadline", "0"], "seconds above 0"),
        (['{"answer": "1"}'], ["--deadline", "nan"], "seconds above 0"),
    ],
)
def test_what_cannot_run_is_said(
    lines: list[str] | None, args: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write(tmp_path, *lines) if lines is not None else tmp_path / "nowhere.jsonl"
    assert cli.main(["reward", "check", "accuracy", "--data", str(data), *args]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and words in captured.err and not captured.out


def test_a_reward_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(PosttrainError, match="Did you mean 'accuracy'"):
        check("acuracy", {}, ROWS)
    assert read(write(tmp_path, '{"answer": 1}', "", '{"answer": 2}')) == [{"answer": 1}, {"answer": 2}]

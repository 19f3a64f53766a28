"""A task's rows as prompts: ids, choices, worked examples, and rows that cannot be asked."""

from __future__ import annotations

import base64
import io
import json
import logging
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from posttrain.harness import questions
from posttrain.harness.questions import load_prompts, provenance
from posttrain.harness.records import write_whole
from posttrain.harness.task import Task
from posttrain.measure import _prompts, _row
from posttrain.types import Picture, PosttrainError, Prompt

ROWS = [{"id": "a", "question": "1+1?", "answer": "2"}, {"id": "b", "question": "2+2?", "answer": "4"}]
OPTIONS = {"id": "x", "question": "Where?", "right": "there", "w1": "here", "w2": "home", "w3": "far"}


def file(folder: Path, rows: list[Any], name: str = "rows.jsonl") -> str:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def make(**keys: Any) -> Task:
    given = {"name": "mine", "data": {"source": "rows.jsonl"}, "verifier": {"use": "accuracy"}}
    return Task.model_validate(given | keys)


def ask(folder: Path, rows: list[Any], limit: int | None = None, **keys: Any) -> list[Prompt]:
    return load_prompts(make(**keys), file(folder, rows), limit)


def refusal(folder: Path, rows: list[Any], **keys: Any) -> str:
    with pytest.raises(PosttrainError) as error:
        ask(folder, rows, **keys)
    return str(error.value)


def test_a_row(tmp_path: Path) -> None:
    first, second = ask(tmp_path, ROWS, prompt="Q: {question}", system="Be brief.")
    assert (first.id, first.answer, second.answer) == ("a", "2", "4")
    assert first.content == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Q: 1+1?"},
    ]
    assert first.columns == {"id": "a", "question": "1+1?"}


def test_raw_text_lists_and_empty_columns(tmp_path: Path) -> None:
    row = {"question": "q", "context": None, "tests": ["a", "b"], "n": 3}
    prompt = ask(tmp_path, [row], chat=False, answer=None, prompt="{context}\n{question} {n}\n{tests}:")[0]
    assert prompt.content == "q 3\na\nb:"
    assert prompt.answer is None


def test_ids(tmp_path: Path) -> None:
    assert [p.id for p in ask(tmp_path, ROWS)] == ["a", "b"]
    assert [p.id for p in ask(tmp_path, [{**row, "id": 7} for row in ROWS])] == ["0", "1"]
    assert [p.id for p in ask(tmp_path, [ROWS[0], {**ROWS[1], "id": None}])] == ["0", "1"]
    numbered = [{**row, "key": number} for number, row in enumerate(ROWS, start=10)]
    assert [p.id for p in ask(tmp_path, numbered, id="key")] == ["10", "11"]


def test_ids_hang_neither_on_the_limit_nor_on_where(tmp_path: Path) -> None:
    rows = [{"question": f"{n}?", "answer": "1", "level": n % 3} for n in range(9)]
    assert [p.id for p in ask(tmp_path, rows, where={"level": 2})] == ["2", "5", "8"]
    assert [p.id for p in ask(tmp_path, rows, where={"level": [0, 2]}, limit=3)] == ["0", "2", "3"]


def test_answers(tmp_path: Path) -> None:
    solved = {"question": "q", "answer": "2 + 2 #### no\n#### 1,000 "}
    assert ask(tmp_path, [solved], answer_after="####")[0].answer == "1,000"
    row = {"question": "q", "final": ["$\\frac12$", "x"], "deep": {"gold": 3}, "a.b": "dotted"}
    assert ask(tmp_path, [row], answer="final.0")[0].answer == "$\\frac12$"
    assert ask(tmp_path, [row], answer="deep.gold")[0].answer == "3"
    assert ask(tmp_path, [row], answer="a.b")[0].answer == "dotted"
    assert ask(tmp_path, [row], answer="final.5")[0].answer is None


# -- choices

CHOICES = {"columns": ["right", "w1", "w2", "w3"]}


def test_choices_stand_in_an_order_of_the_row_s_own(tmp_path: Path) -> None:
    rows = [OPTIONS | {"id": str(n), "question": f"Where {n}?"} for n in range(40)]
    prompts = ask(tmp_path, rows, prompt="{question}\n{choices}", choices=CHOICES, answer=None)
    assert (
        ask(tmp_path, rows[::-1], prompt="{question}\n{choices}", choices=CHOICES, answer=None)
        == prompts[::-1]
    )
    for prompt in prompts:
        _, *lines = prompt.question.split("\n")
        assert sorted(line[3:] for line in lines) == ["far", "here", "home", "there"]
        assert [line[0] for line in lines if line[3:] == "there"] == [prompt.answer]
    assert {prompt.answer for prompt in prompts} == set("ABCD")


def test_choices_in_a_list_as_they_stand(tmp_path: Path) -> None:
    row = {"question": "q", "options": ["x", " y", "z"], "answer_index": 1, "answer": "decoy"}
    choices = {"columns": ["options"], "right": "answer_index", "shuffle": False}
    prompt = ask(tmp_path, [row], prompt="{question}\n{choices}", choices=choices)[0]
    assert prompt.question == "q\nA) x\nB) y\nC) z"
    assert prompt.answer == "B"


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"options": ["x"], "n": 0}, "has 1 options"),
        ({"options": ["x", None], "n": 0}, "or an empty one"),
        ({"options": ["x", "y"], "n": 2}, "choices.right: mine, row 0: 2 is no number of 2 options"),
        ({"options": ["x", "y"], "n": "A"}, "'A' is no number"),
        ({"options": ["x", "y"]}, "choices.right: mine, row 0 has no column 'n'"),
        ({"n": 0}, "choices.columns: mine, row 0 has no column 'options'"),
    ],
)
def test_choices_that_are_none(tmp_path: Path, row: dict[str, Any], said: str) -> None:
    choices = {"columns": ["options"], "right": "n"}
    assert said in refusal(
        tmp_path, [{"question": "q"} | row], prompt="{question} {choices}", choices=choices
    )


# -- worked examples

SHOT = {"question": "0+1?", "answer": "That is 1. #### 1"}


def test_examples_as_turns(tmp_path: Path) -> None:
    few = {"rows": [SHOT], "completion": "So: {answer}"}
    row = {"question": "1+1?", "answer": "#### 2"}
    prompt = ask(tmp_path, [row], few_shot=few, prompt="Q: {question}", system="S", answer_after="####")[0]
    assert prompt.content == [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "Q: 0+1?"},
        {"role": "assistant", "content": "So: That is 1. #### 1"},
        {"role": "user", "content": "Q: 1+1?"},
    ]
    assert prompt.answer == "2"


def test_examples_as_text(tmp_path: Path) -> None:
    few = {"rows": [SHOT], "completion": " {answer}"}
    prompt = ask(tmp_path, ROWS, few_shot=few, chat=False, prompt="Q: {question}\nA:")[0]
    assert prompt.content == "Q: 0+1?\nA: That is 1. #### 1\n\nQ: 1+1?\nA:"


def test_examples_with_choices_show_the_letter(tmp_path: Path) -> None:
    few = {"rows": [OPTIONS], "completion": "Answer: {answer}"}
    row = OPTIONS | {"question": "Else?"}
    task = make(few_shot=few, choices=CHOICES, prompt="{question}\n{choices}", answer=None)
    asked, said, _ = load_prompts(task, file(tmp_path, [row]))[0].content
    assert isinstance(asked, dict)
    assert isinstance(said, dict)
    letter = str(said["content"]).removeprefix("Answer: ")
    assert f"{letter}) there" in asked["content"]


def test_examples_from_a_file_are_never_asked(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    few = {"data": {"source": file(tmp_path, [ROWS[0], SHOT], "shots.jsonl"), "size": 1}}
    prompts = ask(tmp_path, [*ROWS, {"id": "c", "question": " 1+1? ", "answer": "2"}], few_shot=few)
    assert [prompt.id for prompt in prompts] == ["b"]
    assert "2 questions are among its worked examples" in caplog.text
    assert "no question is left: all rows are" in refusal(tmp_path, ROWS[:1], few_shot=few)


def test_a_file_gives_the_examples_too_where_they_are_of_the_task_s_data(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    few = {"data": {"split": "train", "size": 1}}
    task = make(data={"source": "hub:me/mine", "split": "test"}, few_shot=few)
    prompts = load_prompts(task, file(tmp_path, ROWS))
    assert [prompt.id for prompt in prompts] == ["b"]
    assert prompts[0].content[1] == {"role": "assistant", "content": "2"}
    assert "the first 1 rows of" in caplog.text


# -- rows as they come


def test_questions_that_repeat_stay_and_are_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert len(ask(tmp_path, [*ROWS, ROWS[0] | {"id": "c"}])) == 3
    assert "mine: 1 of 3 questions repeat others" in caplog.text


def test_parquet(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    assert [p.id for p in load_prompts(make(), str(path))] == ["a", "b"]


@pytest.mark.parametrize(
    ("rows", "keys", "said"),
    [
        ([{"frage": "q", "answer": "a"}], {}, "prompt: mine, row 0 has no column 'question'"),
        ([{"question": "q", "lösung": 1}], {}, "answer: mine, row 0 has no column 'answer'"),
        ([{"question": " ", "answer": "a"}], {}, "prompt: mine, row 0: column 'question' is empty"),
        (
            [{"question": "q", "answer": "5"}],
            {"answer_after": "####"},
            "answer_after: mine, row 0: nothing follows",
        ),
        (ROWS, {"where": {"level": 5}}, "where.level: mine, row a has no column 'level'"),
        (ROWS, {"where": {"id": "z"}}, "mine: no question is left: no row has id: z"),
        ([], {}, "mine: data: "),
        (ROWS, {"limit": 0}, "a limit of 0 questions"),
    ],
)
def test_rows_that_cannot_be_asked(tmp_path: Path, rows: list[Any], keys: dict[str, Any], said: str) -> None:
    assert said in refusal(tmp_path, rows, **keys)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"question": "q"}\n{"question"', encoding="utf-8")
    for data, said in (
        (str(bad), "bad.jsonl:2: the line is not JSON"),
        ("none.jsonl", "mine: data.source: no file 'none.jsonl'"),
        ("rows.csv", "the data 'rows.csv' is neither a .jsonl nor a .parquet file"),
    ):
        with pytest.raises(PosttrainError) as error:
            load_prompts(make(), data)
        assert said in str(error.value)
    with pytest.raises(PosttrainError, match=r"no file 'rows.jsonl'.*`--data rows.jsonl`"):
        load_prompts(make(data={"source": "rows.jsonl"}))


def test_the_hub_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def refuse(*_: Any, **__: Any) -> None:
        raise ConnectionError("no route")

    task = make(data={"source": "hub:me/mine", "split": "test"})
    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(PosttrainError, match=r"cannot get data set 'me/mine'.*no route; `--data rows.jsonl`"):
        load_prompts(task)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: time.sleep(5))
    monkeypatch.setattr(questions, "HUB_SECONDS", 0.05)
    with pytest.raises(PosttrainError, match=r"did not arrive within 0.05 s; `--data rows.jsonl`"):
        load_prompts(task)
    with pytest.raises(PosttrainError, match=r"few_shot.data.source=rows.jsonl"):
        load_prompts(make(few_shot={"data": {"source": "hub:me/mine", "split": "train", "size": 2}}))


def test_provenance(tmp_path: Path) -> None:
    task = make()
    prompts = ask(tmp_path, ROWS)
    told = provenance(task, prompts, "some/rows.jsonl")
    assert (told["source"], told["revision"], told["rows"]) == ("some/rows.jsonl", None, 2)
    assert provenance(make(prompt="{question}!"), prompts, "x")["hash"] == told["hash"], "not of the words"
    assert provenance(task, prompts[:1])["hash"] != told["hash"]
    changed = ask(tmp_path, [ROWS[0], ROWS[1] | {"answer": "5"}])
    assert provenance(task, changed)["hash"] != told["hash"]
    hub = make(data={"source": "hub:me/mine", "config": "main", "split": "test", "revision": "abc"})
    assert provenance(hub, prompts) | {"hash": ""} == {
        "source": "hub:me/mine (main, test)", "revision": "abc", "hash": "", "rows": 2,
    }  # fmt: skip
    made = make(data={"source": "reasoning_gym:chain_sum", "size": 2, "seed": 1})
    assert provenance(made, load_prompts(made))["revision"].startswith("reasoning-gym 0.")


def shown(color: str) -> str:
    file = io.BytesIO()
    Image.new("RGB", (2, 2), color).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


@pytest.mark.parametrize("chat", [True, False])
def test_pictures(chat: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [{"question": "Which?", "answer": color, "image": shown(color)} for color in ("red", "blue")]
    keys: dict[str, Any] = {"images": ["image"], "prompt": "See <image> {question}", "chat": chat}
    with caplog.at_level(logging.WARNING):
        first, second = ask(tmp_path, rows, **keys)
    assert not caplog.records, "the same words about two pictures are two questions"
    assert first.question == "See <image> Which?"
    assert [Picture.of(row["image"], "").digest for row in rows] == [
        p.pictures[0].digest for p in (first, second)
    ]
    assert first.columns == {"question": "Which?"}
    told = provenance(make(), [first])["hash"]
    assert told != provenance(make(), [replace(second, id="0", answer="red")])["hash"], "pictures count"
    write_whole(tmp_path / "rows.jsonl", map(_row, (first, second)))
    again = _prompts(tmp_path)
    assert [prompt.pictures[0].digest for prompt in again] == [p.pictures[0].digest for p in (first, second)]
    assert [prompt.question for prompt in again] == [first.question, second.question]
    assert "mine, row 0: 2 places" in refusal(
        tmp_path, rows, **keys | {"prompt": "<image> <image> {question}"}
    )
    assert "no column 'picture'" in refusal(tmp_path, rows, **keys | {"images": ["picture"]})


def test_what_a_task_with_pictures_refuses() -> None:
    for keys, words in (
        ({"prompt": "{image}"}, "is a picture"),
        ({"few_shot": {"rows": [{"question": "q", "answer": "a"}]}}, "words alone"),
        ({"data": {"source": "rows.jsonl", "images": []}}, "belongs beside data"),
    ):
        with pytest.raises(ValueError, match=words):
            make(images=["image"], **keys)


def test_provenance_of_drawn_pictures() -> None:
    task = make(data={"source": "scenes:count", "size": 3, "seed": 1}, images=["image"])
    told = provenance(task, load_prompts(task))
    assert told["rows"] == 3 and "Pillow" in (told["revision"] or "")

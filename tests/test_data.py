"""Rows as prompts: made, read from files, and refused."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from posttrain.data import load
from posttrain.recipe_data import Data
from posttrain.types import PosttrainError, Prompt

ROW = {"question": "1+1?", "answer": "2", "level": 3}
OTHER = {"question": "2+2?", "answer": "4", "level": 1}


def jsonl(path: Path, *rows: Any) -> str:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def files(folder: Path, train: list[Any], heldout: list[Any] | None = None, **keys: Any) -> Data:
    return Data.model_validate(
        {
            "train": {"source": jsonl(folder / "train.jsonl", *train)},
            "heldout": {
                "source": jsonl(folder / "heldout.jsonl", *([OTHER] if heldout is None else heldout))
            },
            **keys,
        }
    )


def first(folder: Path, row: Any, **keys: Any) -> Prompt:
    return load(files(folder, [row], **keys))[0][0]


def refusal(data: Data) -> str:
    with pytest.raises(PosttrainError) as error:
        load(data)
    return str(error.value)


def gym(task: str = "chain_sum", args: Any = None, size: int = 40, heldout: int = 10, seed: int = 1) -> Data:
    train = {"source": f"reasoning_gym:{task}", "size": size, "seed": seed, "args": args or {}}
    return Data.model_validate({"train": train, "heldout": {"size": heldout, "seed": 2}})


# -- a row


def test_a_row_as_a_prompt(tmp_path: Path) -> None:
    prompt = first(tmp_path, ROW, prompt="{question} (level {level})\nBox it: \\boxed{}", system="Be brief.")
    assert prompt.id == "train-0"
    assert prompt.content == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "1+1? (level 3)\nBox it: \\boxed{}"},
    ]
    assert prompt.answer == "2"
    assert prompt.columns == {"question": "1+1?", "level": 3}, "rewards get the answer by its own name"


def test_raw_text(tmp_path: Path) -> None:
    assert first(tmp_path, ROW, chat=False, prompt="Q: {question}\nA:").content == "Q: 1+1?\nA:"


def test_columns_by_other_names(tmp_path: Path) -> None:
    row = {"frage": "Wie viel ist 1+1? 二", "lösung": 2, "answer": "decoy"}
    data = files(tmp_path, [row], [row | {"frage": "2+2"}], question="frage", answer="lösung")
    prompt = load(data)[0][0]
    assert prompt.question == "Wie viel ist 1+1? 二"
    assert prompt.answer == "2"
    assert prompt.columns == {"frage": "Wie viel ist 1+1? 二", "lösung": 2}


def test_a_column_is_not_filled_twice(tmp_path: Path) -> None:
    assert first(tmp_path, ROW | {"question": "what is {level}?"}).question == "what is {level}?"


@pytest.mark.parametrize(
    ("answer", "text"),
    [("2", "2"), (2, "2"), (0.5, "0.5"), (None, None), ("", ""), (["a", "é"], '["a", "é"]'), (True, "true")],
)
def test_answers_as_text(answer: Any, text: str | None, tmp_path: Path) -> None:
    assert first(tmp_path, ROW | {"answer": answer}).answer == text


def test_rows_without_answers_must_say_so(tmp_path: Path) -> None:
    rows = [{"question": "1+1?"}], [{"question": "2+2?"}]
    assert "data.answer: data.train, row 0 has no column 'answer'" in refusal(files(tmp_path, *rows))
    assert load(files(tmp_path, *rows, answer=None))[0][0].answer is None


def test_names_that_rewards_get_from_us_are_left_out(tmp_path: Path) -> None:
    row = ROW | {"completions": ["x"], "prompts": "y", "completion_ids": [1], "prompt": "kept: it is text"}
    assert first(tmp_path, row).columns == {"question": "1+1?", "level": 3, "prompt": "kept: it is text"}


def test_every_row_has_every_column_for_rewards(tmp_path: Path) -> None:
    rows = [{"question": "a?", "answer": "1", "n": 1}, {"question": "b?", "answer": "2", "m": 2}]
    train, _ = load(files(tmp_path, rows))
    assert [prompt.columns for prompt in train] == [
        {"question": "a?", "n": 1, "m": None},
        {"question": "b?", "n": None, "m": 2},
    ]


def test_chat_messages_are_used_as_they_are(tmp_path: Path) -> None:
    messages = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": [{"type": "text", "text": "1+1?"}]},
    ]
    prompt = first(tmp_path, {"prompt": messages, "answer": "2", "n": 1})
    assert prompt.content == messages
    assert prompt.question == "s\n1+1?"
    assert prompt.columns == {"n": 1}


@pytest.mark.parametrize(
    "messages",
    [
        [],
        ["hi"],
        [{"role": "user"}],
        [{"content": "hi"}],
        [{"role": "user", "content": None}],
        [{"role": "user", "content": 3}],
        [{"role": "user", "content": []}],
        [{"role": "user", "content": ["hi"]}],
        [{"role": "user", "content": [{"type": "image", "image": "x.png"}]}],
    ],
)
def test_broken_chat_messages(messages: list[Any], tmp_path: Path) -> None:
    said = refusal(files(tmp_path, [ROW, {"prompt": messages, "answer": "2"}]))
    assert "data.train, row 1: " in said


def test_missing_column_names_the_nearest(tmp_path: Path) -> None:
    said = refusal(files(tmp_path, [ROW], prompt="{question} {levle}"))
    assert said == "data.prompt: data.train, row 0 has no column 'levle'; did you mean 'level'?"
    assert "it has 'question', 'answer', 'level'" in refusal(files(tmp_path, [ROW], prompt="{zzzzz}"))
    assert "it has none" in refusal(files(tmp_path, [{}]))


@pytest.mark.parametrize("value", ["", "  \n", None])
def test_an_empty_question_is_refused(value: str | None, tmp_path: Path) -> None:
    said = refusal(files(tmp_path, [ROW, ROW | {"question": value}]))
    assert said == "data.prompt: data.train, row 1: column 'question' is empty"


# -- train and held-out rows apart


def test_held_out_rows_leave_train(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    train = [ROW, OTHER, {"question": " 2+2? ", "answer": "4"}, {"question": "3+3?", "answer": "6"}, ROW]
    with caplog.at_level(logging.WARNING):
        kept, heldout = load(files(tmp_path, train, [OTHER]))
    assert [p.id for p in kept] == ["train-0", "train-3", "train-4"], "in file order, repeats kept"
    assert [p.id for p in heldout] == ["0"]
    assert "dropped 2 of 5 train rows: they are held out" in caplog.text


def test_held_out_rows_are_distinct(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        _, heldout = load(files(tmp_path, [ROW], [OTHER, {"question": "X", "answer": "1"}, OTHER, OTHER]))
    assert [p.id for p in heldout] == ["0", "1"], "the first of each, in file order"
    assert "dropped 2 of 4 held-out rows: they repeat others" in caplog.text


def test_nothing_is_said_when_nothing_is_dropped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        load(files(tmp_path, [ROW]))
    assert not caplog.records


def test_the_same_question_about_another_text_is_another_prompt(tmp_path: Path) -> None:
    rows = [{"question": "How many?", "text": t, "answer": "1"} for t in ("one fox", "two foxes")]
    train, heldout = load(files(tmp_path, rows[:1], rows[1:], prompt="{text}\n{question}"))
    assert len(train) == len(heldout) == 1


def test_all_train_rows_held_out(tmp_path: Path) -> None:
    said = refusal(files(tmp_path, [ROW, ROW], [ROW]))
    assert said.startswith("data: all 2 train rows are among the held-out ones; make the task larger")


# -- reasoning-gym


def test_generated_rows_repeat_and_do_not_overlap() -> None:
    args = {"min_terms": 3, "max_terms": 3, "min_digits": 3, "max_digits": 3}
    train, heldout = load(gym(args=args))
    again, _ = load(gym(args=args))
    assert train == again
    assert (len(train), len(heldout)) == (40, 10), "neighbouring seeds share no row"
    assert train[0].answer is not None
    assert eval(train[0].columns["metadata"]["expression"]) == int(train[0].answer)
    assert {p.question for p in train}.isdisjoint(p.question for p in heldout)


def test_other_seeds_make_other_rows() -> None:
    one, two = gym(args={"min_digits": 3}), gym(args={"min_digits": 3}, seed=3)
    assert [p.question for p in load(one)[0]] != [p.question for p in load(two)[0]]


def test_seeds_of_any_size_and_tasks_that_seed_numpy() -> None:
    assert load(gym("pool_matrix", size=3, heldout=3, seed=10**30))[0]


def test_small_tasks_overlap_and_are_put_apart() -> None:
    args = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
    train, heldout = load(gym(args=args, size=150, heldout=50))
    assert 0 < len(train) < 150
    assert {p.question for p in train}.isdisjoint(p.question for p in heldout)


def test_composite_task() -> None:
    specs = [
        {"name": "chain_sum", "weight": 1, "config": {"min_digits": 3}},
        {"name": "gcd", "weight": 1, "config": {}},
    ]
    train, _ = load(gym("composite", args={"datasets": specs}))
    assert {p.columns["metadata"]["source_dataset"] for p in train} == {"chain_sum", "gcd"}


@pytest.mark.parametrize(
    ("task", "args", "words"),
    [
        (
            "chain_sums",
            {},
            "data.train.source: reasoning-gym has no task 'chain_sums'; did you mean 'chain_sum'",
        ),
        ("zzzzzz", {}, "has no task 'zzzzzz'; see"),
        (
            "chain_sum",
            {"min_term": 2},
            "data.train.args: chain_sum has no argument 'min_term'; did you mean 'min_terms'?",
        ),
        ("chain_sum", {"zzz": 2}, "it takes min_terms, max_terms"),
        ("chain_sum", {"min_terms": 9, "max_terms": 2}, "max_terms must be >= min_terms"),
        (
            "chain_sum",
            {"min_terms": "two"},
            "data.train.args: reasoning-gym's chain_sum cannot make rows: TypeError",
        ),
        ("composite", {}, "data.train.args: reasoning-gym's composite cannot make rows"),
        ("composite", {"datasets": 3}, "data.train.args: reasoning-gym's composite cannot make rows"),
    ],
)
def test_what_reasoning_gym_refuses(task: str, args: dict[str, Any], words: str) -> None:
    assert words in refusal(gym(task, args=args))


# -- files


def test_jsonl_details(tmp_path: Path) -> None:
    data = files(tmp_path, [])
    line = json.dumps(ROW | {"question": "a\u2028b 二 \U0001f98a"}, ensure_ascii=False)
    Path(data.train.source).write_bytes(
        b"\xef\xbb\xbf" + line.encode() + b"\r\n\n  \n" + json.dumps(ROW).encode()
    )
    assert [p.question for p in load(data)[0]] == ["a\u2028b 二 \U0001f98a", "1+1?"]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"{'question': 1}", "the line is not JSON"),
        (b'{"question": "1+1?"', "the line is not JSON"),
        (b"[1, 2]", "a row is an object, {…}, not list"),
        (b'"text"', "a row is an object, {…}, not str"),
        (b'{"question": "\xff"}', "the line is not UTF-8"),
        (b'{"n": ' + b"9" * 5000 + b"}", "the line is not JSON"),
        (b"[" * 100_000, "the line is not JSON"),
    ],
)
def test_broken_lines(line: bytes, words: str, tmp_path: Path) -> None:
    data = files(tmp_path, [ROW])
    with Path(data.train.source).open("ab") as file:
        file.write(b"\n" + line + b"\n")
    said = refusal(data)
    assert f"{data.train.source}:3: " in said
    assert words in said


def test_size_keeps_the_first_rows_and_reads_no_further(tmp_path: Path) -> None:
    data = files(tmp_path, [ROW, ROW])
    with Path(data.train.source).open("ab") as file:
        file.write(b"broken\n")
    short = data.model_copy(update={"train": data.train.model_copy(update={"size": 2})})
    assert len(load(short)[0]) == 2
    more = data.model_copy(update={"heldout": data.heldout.model_copy(update={"size": 100})})
    assert "train.jsonl:3" in refusal(more)


def test_empty_and_missing_files(tmp_path: Path) -> None:
    assert refusal(files(tmp_path, [])).endswith("train.jsonl holds no rows")
    assert "data.heldout: " in refusal(files(tmp_path, [ROW], []))
    data = Data.model_validate({"train": {"source": "nowhere.jsonl"}, "heldout": {"source": "x.parquet"}})
    assert f"data.train.source: no file 'nowhere.jsonl' in {Path.cwd()}" in refusal(data)
    (tmp_path / "folder.jsonl").mkdir()
    folder = {"source": str(tmp_path / "folder.jsonl")}
    assert "no file" in refusal(Data.model_validate({"train": folder, "heldout": {"source": "b.jsonl"}}))


def test_parquet(tmp_path: Path) -> None:
    def parquet(name: str, rows: list[dict[str, Any]]) -> dict[str, str]:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / name)
        return {"source": str(tmp_path / name)}

    rows = [{"question": f"{i}+1?", "answer": i + 1, "tags": ["a", "é"]} for i in range(3000)]
    train, heldout = load(
        Data.model_validate({"train": parquet("a.parquet", rows), "heldout": parquet("b.parquet", rows[-1:])})
    )
    assert len(train) == 2999
    assert (train[7].id, train[7].question, train[7].answer) == ("train-7", "7+1?", "8")
    assert train[7].columns == {"question": "7+1?", "tags": ["a", "é"]}
    assert heldout[0].answer == "3000"
    (tmp_path / "c.parquet").write_bytes(b"PAR1 not really")
    broken = {
        "train": {"source": str(tmp_path / "c.parquet")},
        "heldout": {"source": str(tmp_path / "b.parquet")},
    }
    assert "cannot be read as Parquet" in refusal(Data.model_validate(broken))


# -- the Hub: its loader reads a local folder by the same call


def test_hub_loader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "set").mkdir()
    jsonl(tmp_path / "set" / "train.jsonl", ROW, ROW | {"question": "5+5?", "answer": "10"})
    jsonl(tmp_path / "set" / "test.jsonl", OTHER)
    data = Data.model_validate({"train": {"source": f"hub:{tmp_path}/set", "size": 1}, "heldout": {}})
    train, heldout = load(data)
    assert [p.question for p in train] == ["1+1?"]
    assert [p.question for p in heldout] == ["2+2?"]
    missing = Data.model_validate({"train": {"source": f"hub:{tmp_path}/set", "split": "dev"}, "heldout": {}})
    assert "split dev" in refusal(missing)


def test_hub_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def fail(*args: Any, **kwargs: Any) -> None:
        raise ConnectionError("Couldn't reach the Hub\nand a long tail")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    data = Data.model_validate({"train": {"source": "hub:openai/gsm8k", "config": "main"}, "heldout": {}})
    assert refusal(data) == (
        "data.train.source: cannot get data set 'openai/gsm8k' (config main, split train): "
        "ConnectionError: Couldn't reach the Hub"
    )

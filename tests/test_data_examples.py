"""Rows of several sources, rows as examples for supervised fine-tuning, and what is held out of both."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from posttrain.data import examples, load
from posttrain.recipe_data import Data
from posttrain.types import PosttrainError

SUM = {"question": "1+1?", "answer": "2", "trace": "1 + 1 = 2"}
HELD = {"question": "2+2?", "answer": "4", "trace": "2 + 2 = 4"}
THINK = "<think>\n{trace}\n</think>\nThe answer is: {answer}"


def source(path: Path, *rows: Any, **keys: Any) -> dict[str, Any]:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return {"source": str(path), **keys}


def data(folder: Path, *train: Any, also: Any = (), heldout: Any = None, **keys: Any) -> Data:
    more = [source(folder / f"also{i}.jsonl", *rows, **said) for i, (rows, said) in enumerate(also)]
    rows = [HELD] if heldout is None else heldout
    return Data.model_validate(
        {
            "train": source(folder / "train.jsonl", *train, **keys.pop("train", {})),
            "heldout": source(folder / "heldout.jsonl", *rows, **keys.pop("held", {})),
            "also": more,
            **keys,
        }
    )


def user(text: Any) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def refusal(rows: Data, completion: str = THINK) -> str:
    with pytest.raises(PosttrainError) as error:
        examples(rows, completion)
    return str(error.value)


# -- several sources


def test_more_rows_follow_the_train_rows(tmp_path: Path) -> None:
    also = [([{"question": "Hi?", "answer": None, "n": 1}, {"question": "Yo?", "answer": None, "n": 2}], {})]
    also += [([{"question": "Bye?", "answer": "x"}, {"question": "more", "answer": "x"}], {"size": 1})]
    train, heldout = load(data(tmp_path, SUM, also=also))
    assert [(p.id, p.question, p.answer) for p in train] == [
        ("train-0", "1+1?", "2"),
        ("also.0-0", "Hi?", None),
        ("also.0-1", "Yo?", None),
        ("also.1-0", "Bye?", "x"),
    ]
    assert [p.columns["n"] for p in train] == [None, 1, 2, None], "each row has every source's columns"
    assert [p.question for p in heldout] == ["2+2?"]


def test_a_source_has_a_prompt_of_its_own(tmp_path: Path) -> None:
    also = [([{"frage": "Hi?", "answer": "x", "n": 1}], {"prompt": "{question} ({n})"})]
    also += [([{"frage": "Yo?", "answer": "x"}], {})]
    rows = data(
        tmp_path,
        {"frage": "1+1?", "answer": "2"},
        also=also,
        heldout=[{"frage": "2+2?", "answer": "4"}],
        held={"prompt": "Held: {question}"},
        question="frage",
        prompt="{question}\nShow each step.",
        system="Be brief.",
    )
    train, heldout = load(rows)
    assert [p.content[-1] for p in train] == [
        user("1+1?\nShow each step."),
        user("Hi? (1)"),
        user("Yo?\nShow each step."),
    ]
    assert all(p.content[0] == {"role": "system", "content": "Be brief."} for p in train)
    assert heldout[0].content[-1] == user("Held: 2+2?")


def test_held_out_rows_leave_every_source(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    also = [([HELD, {"question": "Hi?", "answer": None}], {})]
    with caplog.at_level(logging.WARNING):
        train, _ = load(data(tmp_path, SUM, HELD, also=also))
    assert [p.id for p in train] == ["train-0", "also.0-1"]
    assert "dropped 2 of 4 train rows: they are held out" in caplog.text


@pytest.mark.parametrize("chat", [True, False])
def test_other_words_around_a_held_out_question_do_not_hide_it(chat: bool, tmp_path: Path) -> None:
    also = [([HELD, SUM], {"prompt": "Think, then answer: {question}"})]
    keys = {"chat": chat, "system": "Be brief." if chat else None}
    train, heldout = load(data(tmp_path, SUM, HELD, also=also, prompt="{question}\nShow each step.", **keys))
    assert [p.id for p in train] == ["train-0", "also.0-1"]
    assert len(heldout) == 1


def test_prompts_without_columns_are_told_apart_by_their_words(tmp_path: Path) -> None:
    train, _ = load(data(tmp_path, SUM, train={"prompt": "Say hello."}, held={"prompt": "Say goodbye."}))
    assert [p.question for p in train] == ["Say hello."]


def test_a_broken_row_of_another_source_is_named(tmp_path: Path) -> None:
    with pytest.raises(PosttrainError, match=r"data\.also\.1, row 1 has no column 'question'"):
        load(data(tmp_path, SUM, also=[([SUM], {}), ([SUM, {"answer": "1"}], {})]))
    with pytest.raises(PosttrainError, match=r"data\.also\.0: .* holds no rows"):
        load(data(tmp_path, SUM, also=[([], {})]))


# -- examples


def test_a_template_makes_the_completion(tmp_path: Path) -> None:
    rows = data(tmp_path, SUM | {"answer": 2}, system="Be brief.", prompt="{question}\nThink.")
    made, heldout = examples(rows, THINK)
    assert made == [
        {
            "prompt": [{"role": "system", "content": "Be brief."}, user("1+1?\nThink.")],
            "completion": [assistant("<think>\n1 + 1 = 2\n</think>\nThe answer is: 2")],
        }
    ]
    assert heldout == load(rows)[1], "held-out prompts keep their answers"
    made, _ = examples(data(tmp_path, SUM, chat=False), "{question} {{trace}} \\boxed{} {answer}")
    assert made == [{"prompt": "1+1?", "completion": "1+1? {trace} \\boxed{} 2"}]


def test_the_question_column_has_its_name_in_completions_too(tmp_path: Path) -> None:
    row = {"frage": "1+1?", "answer": "2"}
    rows = data(tmp_path, row, heldout=[row | {"frage": "2+2?"}], question="frage")
    assert examples(rows, "{question} {answer}")[0][0]["completion"] == [assistant("1+1? 2")]


def test_rows_of_an_earlier_stage(tmp_path: Path) -> None:
    """Ready messages as a prompt, and a completion; the answer need not be there."""
    ask = [{"role": "system", "content": "s"}, user("1+1?")]
    made, _ = examples(data(tmp_path, {"prompt": ask, "completion": "2"}), "{completion}")
    assert made == [{"prompt": ask, "completion": [assistant("2")]}]


def test_a_conversation_is_taken_as_it_is(tmp_path: Path) -> None:
    talk = [user("1+1?"), assistant("2"), user([{"type": "text", "text": "And 3+3?"}]), assistant("6")]
    made, _ = examples(data(tmp_path, {"messages": talk, "other": 1}), THINK)
    assert made == [{"messages": talk}]
    assert "data.train, row 0: a prompt message is" in refusal(data(tmp_path, {"messages": ["hi"]}))
    assert "data.train, row 0: the prompt has no messages" in refusal(data(tmp_path, {"messages": []}))


def test_texts_are_ready_without_chat_alone(tmp_path: Path) -> None:
    row = {"prompt": "Once", "completion": " upon"}
    assert examples(data(tmp_path, row | {"more": 1}, chat=False), THINK)[0] == [row]
    chat = data(tmp_path, row, prompt="{prompt}", held={"prompt": "{question}"})
    made = {"prompt": [user("Once")], "completion": [assistant(" upon")]}
    assert examples(chat, "{completion}")[0] == [made]
    assert "data.train, row 0 has no column 'question'" in refusal(data(tmp_path, row), "{completion}")


def test_examples_of_several_sources(tmp_path: Path) -> None:
    also = [([HELD, {"question": "Hi?", "answer": "x", "trace": "t"}], {"prompt": "Now {question}"})]
    made, _ = examples(data(tmp_path, SUM, also=also), "{trace}")
    assert [example["prompt"][-1]["content"] for example in made] == ["1+1?", "Now Hi?"]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [user("2+2?"), assistant("4")]},
        {"messages": [user(" 2+2?\n"), assistant("4")]},
        {"messages": [{"role": "system", "content": "Other."}, user("2+2?"), assistant("4")]},
        {"messages": [user("1+1?"), assistant("2"), user("2+2?"), assistant("4")]},
        {"messages": [user([{"type": "text", "text": "2+2?"}]), assistant("4"), user("Why?")]},
        {"prompt": [user("2+2?")], "trace": "t", "answer": "4"},
        {"prompt": [{"role": "system", "content": "Be brief."}, user("2+2?")], "trace": "t", "answer": "4"},
        HELD,
        HELD | {"question": "2+2? "},
    ],
)
@pytest.mark.parametrize("system", [None, "Be brief."])
def test_no_example_answers_a_held_out_question(
    row: Any, system: str | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        made, heldout = examples(data(tmp_path, SUM, row, system=system), THINK)
    assert len(made) == len(heldout) == 1 and made[0]["prompt"][-1] == user("1+1?")
    assert "dropped 1 of 2 train rows: they are held out" in caplog.text
    assert "all 1 train rows" in refusal(data(tmp_path, row, system=system))


def test_no_text_answers_a_held_out_question(tmp_path: Path) -> None:
    rows = [{"prompt": "Q: 2+2?\nA:", "completion": " 4"}, {"prompt": "Q: 1+1?\nA:", "completion": " 2"}]
    made, _ = examples(data(tmp_path, *rows, chat=False, prompt="Q: {question}\nA:"), "{completion}")
    assert made == rows[1:]


def test_a_held_out_question_in_an_assistants_words_is_no_question(tmp_path: Path) -> None:
    talk = [user("Ask me a sum."), assistant("2+2?")]
    assert examples(data(tmp_path, {"messages": talk}), THINK)[0] == [{"messages": talk}]


def test_what_a_completion_lacks_is_named(tmp_path: Path) -> None:
    said = refusal(data(tmp_path, SUM), "{trase}")
    assert said == "completion: data.train, row 0 has no column 'trase'; did you mean 'trace'?"
    also = [([{"question": "Hi?", "answer": "x"}], {})]
    assert "completion: data.also.0, row 0 has no column 'trace'" in refusal(data(tmp_path, SUM, also=also))


@pytest.mark.parametrize("empty", ["", " \n", None])
def test_an_empty_completion_is_refused(empty: str | None, tmp_path: Path) -> None:
    said = refusal(data(tmp_path, SUM, SUM | {"trace": empty}), "{trace}")
    assert said == "completion: data.train, row 1: column 'trace' is empty"


@pytest.mark.parametrize("key", ["prompt", "completion"])
def test_an_empty_text_is_refused(key: str, tmp_path: Path) -> None:
    row = {"prompt": "Once", "completion": " upon"}
    said = refusal(data(tmp_path, row, row | {key: " "}, chat=False))
    assert said == f"data: data.train, row 1: column {key!r} is empty"

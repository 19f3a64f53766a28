"""A task's settings: read strictly, refused with the line and the key, and what is derived from them."""

from __future__ import annotations

from pathlib import Path

import pytest

from posttrain import content, settings
from posttrain.harness.task import Task, cut, load_task, template_hash
from posttrain.types import PosttrainError

MINIMAL = """\
name: mine
data:
  source: hub:me/mine
  config: main
  revision: abc
  split: test
verifier:
  use: accuracy
  args: {form: boxed}
"""


def read(folder: Path, text: str = "", *overrides: str) -> Task:
    path = folder / "mine.yaml"
    path.write_text(MINIMAL + text, encoding="utf-8")
    return load_task(str(path), overrides)


def refusal(folder: Path, text: str, *overrides: str) -> str:
    with pytest.raises(PosttrainError) as error:
        read(folder, text, *overrides)
    return str(error.value)


def test_defaults(tmp_path: Path) -> None:
    task = read(tmp_path)
    assert (task.prompt, task.chat, task.id, task.shots, task.primary) == (
        "{question}",
        True,
        "id",
        0,
        "accuracy",
    )
    assert task.sampling.temperature == 0
    assert task.verifier.weight == 1


def test_overrides(tmp_path: Path) -> None:
    task = read(
        tmp_path, "", "sampling.samples=8", "sampling.temperature=0.6", "prompt={question}!", "where.level=5"
    )
    assert task.primary == "avg@8"
    assert task.prompt == "{question}!"
    assert task.where == {"level": 5}
    assert read(tmp_path, "metric: pass@1\n").primary == "pass@1"


def test_what_is_written_out_reads_back_equal(tmp_path: Path) -> None:
    for name, _, _ in content.listing("eval"):
        task = load_task(name)
        path = tmp_path / "back.yaml"
        path.write_text(settings.dump(task), encoding="utf-8")
        assert load_task(str(path)) == task, name


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("promt: x\n", "mine.yaml:10: promt: no such key; did you mean prompt?"),
        ("sampling: {samples: 4}\n", "mine.yaml:10: sampling.temperature: is 0: all 4 answers"),
        ("sampling: {samples: four}\n", "mine.yaml:10: sampling.samples: should be a valid integer"),
        ("system: Hi.\nchat: false\n", "mine.yaml:10: system: needs chat: true"),
        ('prompt: "{question} {answer}"\n', "mine.yaml:10: prompt: shows the answer"),
        (
            "metric: best\n",
            "mine.yaml:10: metric: is accuracy",
        ),
        ("metric: pass@4\n", "mine.yaml:10: metric: pass@4 needs more answers than sampling.samples: 1"),
        ("metric: g_pass@4_0.5\n", "metric: g_pass@4_0.5 needs more"),
        ("answer: null\nanswer_after: x\n", "mine.yaml:11: answer_after: means nothing"),
        ("choices: {columns: [a, b]}\n", "mine.yaml:1: prompt: does not show the options"),
        ("choices: {columns: []}\nprompt: '{choices}'\n", "mine.yaml:10: choices.columns: is empty"),
        ("choices: {columns: [a], shuffle: false}\nprompt: '{choices}'\n", "choices.shuffle: is false"),
        ("choices: {columns: [a]}\nprompt: '{choices} {answer}'\n", "mine.yaml:11: prompt: shows the answer"),
        ("few_shot: {completion: x}\n", "mine.yaml:10: few_shot.rows: or few_shot.data"),
        ("few_shot: {rows: [{a: b}], data: {split: train, size: 1}}\n", "few_shot.rows: or few_shot.data"),
        ("few_shot: {data: {split: train}}\n", "mine.yaml:10: few_shot.data.size: is missing"),
        (
            "reported: [{model: m, value: 73.2, source: s, setting: t}]\n",
            "reported.0.value: should be less than",
        ),
    ],
)
def test_what_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, said: str) -> None:
    monkeypatch.chdir(tmp_path)
    assert said in refusal(tmp_path, text)


def test_a_folder_s_name(tmp_path: Path) -> None:
    assert "name: names a folder" in refusal(tmp_path, "", "name=a/b")


def test_examples_come_from_the_task_s_own_data(tmp_path: Path) -> None:
    task = read(tmp_path, "few_shot: {data: {split: train, size: 3}}\n")
    assert task.few_shot is not None
    source = task.few_shot.data
    assert source is not None
    assert (source.source, source.config, source.revision) == ("hub:me/mine", "main", "abc")
    assert (source.split, task.shots) == ("train", 3)


def test_an_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(
        PosttrainError, match=r"no task 'gsm8': neither a file nor a shipped task; did you mean gsm8k"
    ):
        load_task("gsm8")


def test_the_template_s_hash_is_of_what_is_asked(tmp_path: Path) -> None:
    plain = template_hash(read(tmp_path))
    same = ["sampling.max_tokens=5", "verifier.args.form=any", "where.level=5", "data.size=3", "name=other"]
    assert {template_hash(read(tmp_path, "", one)) for one in same} == {plain}
    other = ["prompt={question}.", "system=Be brief.", "chat=false", "question=problem"]
    hashes = {template_hash(read(tmp_path, "", one)) for one in other}
    assert len(hashes | {plain}) == 5
    assert template_hash(read(tmp_path, "few_shot: {rows: [{question: a, answer: b}]}\n")) != plain


def test_cut() -> None:
    assert cut("5\n#### 5\n\nQuestion: 2\nQ: 3", ["\nQ: ", "\n\nQuestion:"]) == "5\n#### 5"
    assert cut("5", ["\n"]) == "5"
    assert cut("5\n", []) == "5\n"

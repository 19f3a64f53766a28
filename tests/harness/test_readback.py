import json

import pytest

from posttrain.harness.readback import read_evaluation
from posttrain.types import PosttrainError


def add(path, *lines):
    with path.open("ab") as file:
        for line in lines:
            file.write(line if isinstance(line, bytes) else (json.dumps(line) + "\n").encode())


def test_a_whole_folder(evaluation):
    folder = evaluation()
    found = read_evaluation(folder)
    assert found.state == []
    assert [(task.name, len(task.questions), len(task.samples)) for task in found.tasks] == [
        ("gsm8k", 6, 24),
        ("mgsm_zh", 4, 4),
    ]
    written = json.loads((folder / "result.json").read_text())["tasks"]["gsm8k"]
    assert list(found.tasks[0].metrics) == list(written["metrics"])
    assert found.tasks[0].metrics["avg@4"].accuracy == written["metrics"]["avg@4"]["value"]
    for question in found.tasks[0].questions:  # the file has them in any order
        assert [sample.number for sample in question.samples] == [0, 1, 2, 3]
        for sample in question.samples:
            if sample.span:
                assert sample.completion[slice(*sample.span)] == sample.extracted
    assert read_evaluation(folder, samples=False).tasks[0].samples == []


def test_the_primary_metric_stands_first(evaluation):
    folder = evaluation()
    result = json.loads((folder / "result.json").read_text())
    result["tasks"]["gsm8k"]["primary"] = "pass@2"
    (folder / "result.json").write_text(json.dumps(result))
    assert list(read_evaluation(folder).tasks[0].metrics)[:2] == ["pass@2", "avg@4"]


def test_what_is_half_done_is_said(evaluation):
    folder = evaluation(tasks=(("gsm8k", 5, 2, 0.5),))
    (folder / "result.json").unlink()
    (folder / "gsm8k" / "verdicts.jsonl").unlink()
    answers = folder / "gsm8k" / "answers.jsonl"
    lines = answers.read_bytes().splitlines(keepends=True)
    answers.write_bytes(b"".join(lines[:6]) + lines[6][:30])
    found = read_evaluation(folder)
    said = " ".join(found.state)
    for part in ("no result.json", "6 of 10 samples", "nothing was judged yet", "last line of answers.jsonl"):
        assert part in said
    assert {sample.judged for sample in found.tasks[0].samples if sample.finish != "error"} == {"open"}
    assert found.tasks[0].metrics == {}


FAILED = {"id": "gsm8k-0", "sample": 0, "completion": "", "tokens": None, "finish": "error", "error": "503"}


def test_an_answer_takes_the_place_of_an_error_and_of_nothing_else(evaluation):
    folder = evaluation(tasks=(("gsm8k", 1, 1, 0.5),))
    answers = folder / "gsm8k" / "answers.jsonl"
    answers.write_bytes(b"")
    again = {**FAILED, "completion": "again", "finish": "stop", "error": None}
    add(answers, FAILED, FAILED, again, {**again, "completion": "and again"}, FAILED)
    (sample,) = read_evaluation(folder).tasks[0].samples
    assert sample.completion == "again"
    assert sample.judged != "failed"


def test_damage_is_left_out_and_told_of(evaluation):
    folder = evaluation(tasks=(("gsm8k", 2, 1, 0.5),))
    answers = folder / "gsm8k" / "answers.jsonl"
    strange = {"id": ["x"], "sample": "y", "completion": {"a": 1}, "tokens": True, "finish": 3, "error": None}
    add(answers, b"{broken\n", b"7\n", strange)
    verdict = {"id": "['x']", "sample": 0, "right": 1, "span": [5, 10**9], "extracted": 3, "group": "a"}
    add(folder / "gsm8k" / "verdicts.jsonl", verdict)
    found = read_evaluation(folder)
    sample = found.tasks[0].questions[-1].samples[0]
    assert (sample.completion, sample.tokens, sample.judged, sample.span) == ('{"a": 1}', None, "open", None)
    assert "2 damaged lines of answers.jsonl" in " ".join(found.state)


def test_a_failed_request_is_neither_right_nor_wrong(evaluation):
    folder = evaluation(tasks=(("gsm8k", 1, 1, 0.5),))
    (folder / "gsm8k" / "answers.jsonl").write_text(json.dumps(FAILED) + "\n")
    (sample,) = read_evaluation(folder).tasks[0].samples
    assert (sample.judged, sample.note) == ("failed", "503")


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"tasks": []}', '{"tasks": {"../up": {}, "..": {}, "a\\u0000": {}}}', "\xff"]
)
def test_nothing_of_an_evaluation(tmp_path, text):
    (tmp_path / "result.json").write_text(text)
    with pytest.raises(PosttrainError, match="holds no evaluation"):
        read_evaluation(tmp_path)


def test_no_folder(tmp_path):
    with pytest.raises(PosttrainError, match="is not a folder"):
        read_evaluation(tmp_path / "no")


@pytest.mark.parametrize("tasks", [["gsm8k"], [{"name": "gsm8k", "samples": 3}], {"gsm8k": {"samples": 3}}])
def test_what_was_asked_is_known_before_anything_is_answered(tmp_path, tasks):
    (tmp_path / "eval.json").write_text(json.dumps({"model": "m", "tasks": tasks}))
    found = read_evaluation(tmp_path)
    assert (found.model, [task.name for task in found.tasks]) == ("m", ["gsm8k"])
    assert "no question was answered yet" in " ".join(found.state)

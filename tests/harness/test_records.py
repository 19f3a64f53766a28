"""Answers survive kill -9 at any moment: none is lost, none is there twice."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from posttrain.harness.answer import Answer, failed, requests_for, seed_of
from posttrain.harness.records import Answers, read_answers, read_whole, write_whole
from posttrain.types import PosttrainError, Prompt

IDS = ["a", "b", "ж", "d\ud800"]  # the last is half a character, which has no UTF-8


def answer(id: str = "a", sample: int = 0, text: str = "42") -> Answer:
    return Answer(id, sample, text, len(text), "stop")


def failure(id: str = "a", sample: int = 0, why: str = "no server") -> Answer:
    return Answer(id, sample, "", None, "error", why)


def test_what_was_added_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "answers.jsonl"
    texts = ["", "two\nlines\r", "漢字 \u2028 \x00", "half \udfff a character", '"}{']
    said = [answer(id, k, text) for id in IDS for k, text in enumerate(texts)]
    with Answers(path) as answers:
        for one in said:
            answers.add(one)
        assert list(answers) == said and len(answers) == len(said)
    assert read_answers(path) == said
    with Answers(path) as answers:
        assert answers.missing(IDS, len(texts)) == []
        assert answers.missing([*IDS, "new"], 6)[:2] == [("a", 5), ("b", 5)]
        assert len(answers.missing([*IDS, "new"], 6)) == len(IDS) + 6
    keys = set(json.loads(path.read_bytes().splitlines()[0]))
    assert keys == {"id", "sample", "completion", "tokens", "finish", "error"}


def test_nothing_is_there_at_first(tmp_path: Path) -> None:
    assert read_answers(tmp_path / "answers.jsonl") == []
    with Answers(tmp_path / "answers.jsonl") as answers:
        assert answers.missing(["b", "a"], 2) == [("b", 0), ("b", 1), ("a", 0), ("a", 1)]
        with pytest.raises(PosttrainError, match="two questions have the id 'b'"):
            answers.missing(["b", "a", "b"], 1)


def test_a_sample_is_answered_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "answers.jsonl"
    with Answers(path) as answers:
        answers.add(answer(text="first"))
        with pytest.raises(ValueError, match="there already"):
            answers.add(answer(text="second"))
    with path.open("a") as file:  # another writer, which nothing held back
        file.write(path.read_text().replace("first", "second"))
    assert [one.completion for one in read_answers(path)] == ["first"]
    assert "line 2 repeats sample 0 of 'a'" in caplog.text


def test_an_answer_takes_the_place_of_a_failure(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    with Answers(path) as answers:
        answers.add(failure())
        answers.add(failure("b"))
        assert answers.missing(["a", "b"], 1) == [("a", 0), ("b", 0)]
        assert answers.missing(["a", "b"], 1, failed=False) == []
        answers.add(answer())
        answers.add(failure("b", why="again"))
    assert read_answers(path) == [answer(), failure("b", why="again")]
    with path.open("a") as file:
        file.write(json.dumps(vars(failure())) + "\n")
    assert read_answers(path)[0] == answer(), "a failure took an answer's place"


@pytest.mark.parametrize("tail", ["ж", "\udfff", "x"])
def test_a_last_line_cut_off_anywhere(tail: str, tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    with Answers(path) as answers:
        answers.add(answer())
        size = path.stat().st_size
        answers.add(answer("b", 0, tail))
    whole = path.read_bytes()
    for end in range(size, len(whole)):
        path.write_bytes(whole[:end])
        with Answers(path) as answers:
            lost = end < len(whole) - 1  # with the line break alone missing, nothing is
            assert answers.missing(["a", "b"], 1) == ([("b", 0)] if lost else [])
            for id, k in answers.missing(["a", "b"], 1):
                answers.add(answer(id, k, tail))
        assert path.read_bytes() == whole


def test_lines_that_are_no_answers(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "answers.jsonl"
    good = {"id": "a", "sample": 0, "completion": "1", "tokens": None, "finish": "stop", "error": None}
    bad: list[Any] = [
        *({**good, "sample": k} for k in (-1, "0", 1.0, None, True)),
        {**good, "id": 3},
        {**good, "completion": None},
        {**good, "finish": "abort"},
        {**good, "error": 1},
        {**good, "tokens": "1"},
        {key: value for key, value in good.items() if key != "error"},
        [good],
        "a",
    ]
    junk = [b"", b"{", b"\x00" * 20, b"\xff\xfe", b"[" * 100_000, *(json.dumps(one).encode() for one in bad)]
    path.write_bytes(b"\n".join(junk) + b"\n" + json.dumps({**good, "more": 1}).encode() + b"\n")
    assert read_answers(path) == [Answer("a", 0, "1", None, "stop")]
    assert len(caplog.records) == len(junk)
    before = path.read_bytes()
    with Answers(path) as answers:
        answers.add(answer("b"))
    assert path.read_bytes().startswith(before), "what was there is never thrown away"


def test_a_full_disk_leaves_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    with Answers(path) as answers:
        answers.add(answer())
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 50, before[1]))
            with pytest.raises(OSError, match="too large"):
                answers.add(answer("b", 0, "x" * 1000))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
            signal.signal(signal.SIGXFSZ, handler)
        assert answers.missing(["a", "b"], 1) == [("b", 0)]
        answers.add(answer("b"))
    assert read_answers(path) == [answer(), answer("b")]


WRITER = """
import sys, time
from pathlib import Path
from posttrain.harness.answer import Answer
from posttrain.harness.records import Answers
with Answers(Path(sys.argv[1])) as answers:
    print("ready", flush=True)
    for id, k in answers.missing([str(i) for i in range(20)], 5):
        text = f"{id}/{k} " * (100_000 if k == 3 and id.endswith("0") else 5)  # some take long to write
        answers.add(Answer(id, k, text, 1, "stop"))
        print(id, k, flush=True)
        time.sleep(0.002)
"""


def test_kill_9_at_any_moment(tmp_path: Path) -> None:
    """A writer that is killed and begun again until it is through. What it said it had written is there."""
    path, said, kills = tmp_path / "answers.jsonl", set(), 0
    moments = random.Random(0)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    for _ in range(30):
        child = subprocess.Popen(
            [sys.executable, "-c", WRITER, path], stdout=subprocess.PIPE, text=True, env=environment
        )
        assert child.stdout is not None
        lines = [child.stdout.readline() for _ in range(moments.randint(1, 12))]
        time.sleep(moments.uniform(0, 0.002))
        child.kill()
        lines += child.communicate(timeout=60)[0].splitlines(keepends=True)
        kills += child.returncode == -signal.SIGKILL
        whole = [line.split() for line in lines if line.endswith("\n") and line != "ready\n"]
        said |= {(id, int(k)) for id, k in whole}
        there = {one.key for one in read_answers(path)}
        assert said <= there, "lost"
        if child.returncode == 0:
            break
    assert kills > 3
    lines = [json.loads(line) for line in path.read_bytes().splitlines()]
    keys = [(line["id"], line["sample"]) for line in lines]
    assert len(keys) == len(set(keys)) == 100
    assert all(line["completion"].startswith(f"{line['id']}/{line['sample']} ") for line in lines)


def test_verdicts_are_written_whole(tmp_path: Path) -> None:
    path = tmp_path / "verdicts.jsonl"
    verdicts = [{"id": id, "sample": 0, "value": 0.5, "extracted": id, "span": [0, 1]} for id in IDS]
    write_whole(path, verdicts)
    assert read_whole(path) == verdicts

    def half_way() -> Any:
        yield verdicts[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_whole(path, half_way())
    assert read_whole(path) == verdicts
    assert [one.name for one in tmp_path.iterdir()] == ["verdicts.jsonl"]
    with path.open("ab") as file:
        file.write(b'{"id": "a", "sam')
    with pytest.raises(PosttrainError, match="line 5 is damaged"):
        read_whole(path)
    with pytest.raises(PosttrainError, match="is missing"):
        read_whole(tmp_path / "rows.jsonl")


def test_seeds_hang_on_run_question_and_sample_alone() -> None:
    prompts = {id: Prompt(id, id, None) for id in [*IDS, "a\0001", "1\0a"]}
    seeds = [seed_of(seed, id, k) for seed in (0, 1) for id in prompts for k in range(20)]
    assert len(set(seeds)) == len(seeds) and all(0 <= seed < 2**63 for seed in seeds)
    some = requests_for([("b", 3), ("a", 0)], prompts, 7)
    assert [one.key for one in some] == [("b", 3), ("a", 0)]
    assert [one.seed for one in some] == [seed_of(7, "b", 3), seed_of(7, "a", 0)]
    assert [one.prompt.id for one in some] == ["b", "a"]
    assert seed_of(0, "heldout-0", 0) == 1924474352392925985, "a run of an older version goes on with others"
    assert failed(some[0], "why") == failure("b", 3, "why")

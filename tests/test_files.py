"""Files that survive being interrupted."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from posttrain.files import append, replace_text, sweep, written_aside


def contents(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_takes_its_name_when_it_is_whole(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "er" / "model"
    with written_aside(folder) as aside:
        (aside / "weights").write_text("1")
        assert not folder.exists() and aside.parent == folder.parent
    assert contents(tmp_path) == {"deep/er/model/weights": "1"}
    assert folder.stat().st_mode & 0o777 == 0o755


def test_it_replaces_the_old_one_altogether(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    for name in ("a", "b"):
        with written_aside(folder) as aside:
            (aside / name).write_text(name)
    assert contents(tmp_path) == {"model/b": "b"}
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt(), SystemExit(3)])
def test_a_failure_leaves_the_old_one_whole(tmp_path: Path, error: BaseException) -> None:
    folder = tmp_path / "model"
    with written_aside(folder) as aside:
        (aside / "weights").write_text("old")

    def half_way() -> None:
        with written_aside(folder) as aside:
            (aside / "weights").write_text("ne")
            raise error

    with pytest.raises(type(error)):
        half_way()
    assert contents(tmp_path) == {"model/weights": "old"}
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_failure_where_nothing_was_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), written_aside(tmp_path / "model") as aside:
        (aside / "weights").write_text(str(1 / 0))
    assert list(tmp_path.iterdir()) == []


def test_what_an_earlier_kill_left_behind_is_in_nobodys_way(tmp_path: Path) -> None:
    """Killed between the two renames: the old folder stands under `.old`, and the next one goes through."""
    (tmp_path / "model.old").mkdir()
    (tmp_path / "model.old" / "weights").write_text("old")
    with written_aside(tmp_path / "model") as aside:
        (aside / "weights").write_text("new")
    assert contents(tmp_path) == {"model/weights": "new"}


def test_a_killed_writer_loses_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    with written_aside(folder) as aside:
        (aside / "weights").write_text("old")
    child = os.fork()
    if child == 0:
        with written_aside(folder) as aside:
            (aside / "weights").write_text("half")
            os.kill(os.getpid(), 9)
        os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == 9
    assert (folder / "weights").read_text() == "old"


def test_what_a_kill_left_half_written_is_swept(tmp_path: Path) -> None:
    pid = os.fork()
    if not pid:
        with written_aside(tmp_path / "model") as aside:
            (aside / "weights").write_text("half")
            (tmp_path / f".result.json.{os.getpid()}").write_text("{")
            os._exit(9)
    os.waitpid(pid, 0)
    assert len([*tmp_path.iterdir()]) == 2
    for name in (".gitignore", ".model.old", "model-12345678", ".cache"):
        (tmp_path / name).write_text("mine")
    kept = {*tmp_path.iterdir()}
    sweep(tmp_path)
    assert {path.name for path in kept - {*tmp_path.iterdir()}} == {
        path.name for path in kept if path.name.startswith((".model-", ".result.json."))
    }
    sweep(tmp_path / "nowhere")


def test_text_is_replaced_at_once(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    replace_text(path, "один")
    replace_text(path, "два")
    assert path.read_bytes().decode("utf-8") == "два"
    assert [p.name for p in tmp_path.iterdir()] == ["result.json"]


def test_records_are_lines(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    append(path, [{"step": 1, "text": "line\nbreak"}, {"step": 2}])
    append(path, [])
    append(path, [{"step": 3, "text": "漢字"}])
    assert [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] == [
        {"step": 1, "text": "line\nbreak"},
        {"step": 2},
        {"step": 3, "text": "漢字"},
    ]


def test_a_line_that_was_cut_off_costs_itself_alone(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2, "rew', encoding="utf-8")
    append(path, [{"step": 3}])
    assert path.read_text().splitlines() == ['{"step": 1}', '{"step": 2, "rew', '{"step": 3}']


def test_half_a_character_is_written_as_a_question_mark(tmp_path: Path) -> None:
    """A tokenizer may decode to a lone surrogate, which has no UTF-8."""
    path = tmp_path / "samples.jsonl"
    append(path, [{"text": "a\ud800b"}])
    assert json.loads(path.read_bytes().decode("utf-8")) == {"text": "a?b"}

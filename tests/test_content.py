"""Finding what ships: in a checkout and in a wheel's layout."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from types import ModuleType

import pytest

from posttrain import content
from posttrain.types import PosttrainError


def test_root_is_the_checkout() -> None:
    assert (content.root() / "posttrain" / "content.py").is_file()


@pytest.mark.parametrize(
    "name",
    ["r1_zero/smollm2", "recipes/r1_zero/smollm2", "r1_zero/smollm2.yaml", "recipes/r1_zero/smollm2.yaml"],
)
def test_find_takes_every_spelling(name: str) -> None:
    path = content.find("recipes", name)
    assert path is not None
    assert path.name == "smollm2.yaml"


@pytest.mark.parametrize(
    "name", ["", "nothing", "../pyproject", "/etc/passwd", "r1_zero", "..", "r1_zero/", "a\0b"]
)
def test_find_finds_nothing_else(name: str) -> None:
    assert content.find("recipes", name) is None


def test_locate(tmp_path: Path) -> None:
    assert content.locate("eval", "eval/gsm8k") == content.find("eval", "gsm8k")
    path = tmp_path / "mine.yaml"
    path.touch()
    assert content.locate("eval", str(path)) == path
    with pytest.raises(PosttrainError, match=r"no task 'gsm8': .*; did you mean gsm8k"):
        content.locate("eval", "gsm8")
    with pytest.raises(PosttrainError, match=r"is a folder; a task is a file such as .*task.yaml"):
        content.locate("eval", str(tmp_path))


def test_split() -> None:
    assert content.split("reward/accuracy") == ("reward", "accuracy")
    assert content.split("recipes/r1_zero/smollm2") == ("recipes", "r1_zero/smollm2")
    assert content.split("accuracy") is None
    assert content.split("rewards/accuracy") is None


def test_everything_that_ships_says_what_it_is() -> None:
    for kind in ("recipes", "reward", "eval"):
        for name, _, summary in content.listing(kind):
            assert summary, f"{kind}/{name} opens with no comment or docstring"


@pytest.fixture
def installed(tmp_path: Path) -> ModuleType:
    """content.py as a wheel lays it out: posttrain/content.py beside posttrain/_content/."""
    package = tmp_path / "posttrain"
    (package / "_content" / "reward" / "sub").mkdir(parents=True)
    (package / "_content" / "recipes").mkdir()
    shutil.copy(content.__file__, package / "content.py")
    (tmp_path / "reward").mkdir()
    (tmp_path / "reward" / "stranger.py").write_text('"""Someone else\'s."""')
    spec = importlib.util.spec_from_file_location("wheel_content", package / "content.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_wheel_finds_its_own_and_nothing_beside_it(installed: ModuleType) -> None:
    folder = installed.root() / "reward"
    assert folder.parent.name == "_content"
    (folder / "accuracy.py").write_text('"""Is it right?\n\nMore."""\n', encoding="utf-8")
    (folder / "sub" / "längst.py").write_text('"""  答案 é  """', encoding="utf-8")
    (folder / "silent.py").write_text("x = 1\n")
    (folder / "_private.py").write_text("")
    (folder / "notes.txt").write_text("")
    found = [(name, summary) for name, _, summary in installed.listing("reward")]
    assert found == [("accuracy", "Is it right?"), ("silent", ""), ("sub/längst", "答案 é")]
    assert installed.find("reward", "stranger") is None


def test_yaml_summary_is_the_opening_comment(installed: ModuleType) -> None:
    folder = installed.root() / "recipes"
    (folder / "a.yaml").write_text("\n## First.\n# Second.\nname: a\n")
    (folder / "b.yaml").write_text("name: b # not this\n")
    (folder / "c.yaml").write_text("")
    assert [summary for _, _, summary in installed.listing("recipes")] == ["First.", "", ""]


def test_a_kind_with_nothing_is_empty(installed: ModuleType) -> None:
    assert installed.listing("eval") == []

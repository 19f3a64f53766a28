"""Which stages have to run: what changes an address and what does not, and what people are told of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from posttrain import plan as plan_module
from posttrain.plan import Planned, address, begin, finish, inputs_of, plan, unused
from posttrain.stages import Staged, load_stages
from posttrain.types import PosttrainError

RECIPE = """\
name: three
output: out
model: {name: tiny}
data:
  train: {source: rows.jsonl}
  heldout: {source: held.jsonl}
rewards:
  - use: ./mine.py:judge
train: {steps: 28}
stages:
  - {name: first, kind: grpo}
  - {name: second, kind: grpo, model: {name: "stage:first"}, data: {train: {source: other.jsonl}}}
  - {name: check, kind: eval, model: {name: "stage:second"}}
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("rows.jsonl", "held.jsonl", "other.jsonl", "mine.py"):
        Path(name).write_text(name)
    Path("r.yaml").write_text(RECIPE)
    return tmp_path


def load(*overrides: str) -> Staged:
    return load_stages("r.yaml", overrides)


def look(*overrides: str, start: str | None = None, until: str | None = None) -> list[Planned]:
    return plan(load(*overrides), start, until)


def run(planned: list[Planned]) -> list[str]:
    """What a runner does, with a text file as the output; gives the names of the stages that ran."""
    ran = []
    for p in planned:
        if p.state != "done":
            begin(p)
            (p.folder / "model").mkdir(exist_ok=True)
            (p.folder / "model" / "weights").write_text("abc")
            (p.folder / "result.json").write_text("{}")
            finish(p, ["model", "result.json"])
            ran.append(p.stage.name)
    return ran


def states(planned: list[Planned]) -> list[str]:
    return [p.state for p in planned]


def whys(planned: list[Planned]) -> list[str]:
    return [p.why for p in planned]


# -- done, begun, new


def test_all_is_new_then_done() -> None:
    planned = look()
    assert states(planned) == ["new"] * 3
    assert whys(planned) == ["never ran"] * 3
    assert not Path("out").exists(), "planning writes nothing"
    assert run(planned) == ["first", "second", "check"]
    again = look()
    assert states(again) == ["done"] * 3
    assert whys(again) == [""] * 3
    assert [p.folder for p in again] == [p.folder for p in planned]
    assert all(p.folder.name == f"{p.stage.name}-{address(p.inputs)}" for p in again)
    assert [p.stage.output for p in again] == [str(p.folder) for p in again]
    assert json.loads((again[0].folder / "done.json").read_text()) == {
        "outputs": {"model/weights": 3, "result.json": 2}
    }
    assert run(again) == []


def test_begun_goes_on_in_its_folder() -> None:
    first = look()[0]
    begin(first)
    (first.folder / "half").write_text("x")
    planned = look()
    assert (planned[0].state, planned[0].why) == ("begun", "begun and not finished")
    begin(planned[0])
    assert (first.folder / "half").exists()
    assert look(start="first")[0].state == "begun", "run again, but nothing finished to leave behind"


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda f: (f / "model" / "weights").unlink(), "its model/weights is missing"),
        (lambda f: (f / "model" / "weights").write_text("abcd"), "its model/weights has 4 bytes, not the 3"),
        (lambda f: (f / "done.json").write_text("{"), "its done.json cannot be read"),
        (lambda f: (f / "done.json").write_text("[]"), "its done.json cannot be read"),
    ],
)
def test_damaged_output_is_not_done(harm: Callable[[Path], object], words: str) -> None:
    run(look())
    harm(look()[0].folder)
    planned = look()
    assert states(planned) == ["new", "done", "done"]
    assert words in planned[0].why
    assert run(planned) == ["first"]
    assert states(look()) == ["done"] * 3
    assert not list(Path("out").glob("*.old"))


def test_earlier_result_is_kept_until_the_new_one_is_there() -> None:
    run(look())
    first = look(start="first")[0]
    begin(first)
    old = first.folder.with_name(first.folder.name + ".old")
    assert (old / "model" / "weights").exists() and not (first.folder / "model").exists()
    assert look()[0].state == "begun"
    begin(look()[0])  # killed and started again
    assert (old / "model" / "weights").exists()


def test_finish_refuses_what_was_not_written() -> None:
    first = look()[0]
    begin(first)
    with pytest.raises(PosttrainError, match="stage first ended without its model in"):
        finish(first, ["model"])
    (first.folder / "model").mkdir()
    with pytest.raises(PosttrainError, match="ended without its model"):
        finish(first, ["model"])
    assert look()[0].state == "begun"


# -- what an address hangs on


@pytest.mark.parametrize(
    "override",
    [
        "train.keep=9",
        "train.checkpoint_every=3",
        "reward_deadline=99",
        "reward_workers=2",
        "trackers=[tensorboard]",
        "name=another",
    ],
)
def test_what_changes_no_result_changes_no_address(override: str) -> None:
    run(look())
    assert states(look(override)) == ["done"] * 3


def test_output_may_move() -> None:
    run(look())
    Path("out").rename("moved")
    assert states(look("output=moved")) == ["done"] * 3


def test_changed_setting_says_so_and_reaches_what_follows() -> None:
    run(look())
    planned = look("stages.first.train.steps=30")
    assert states(planned) == ["new"] * 3
    assert whys(planned) == [
        "train.steps: 28 then, 30 now",
        "follows first, which changed",
        "follows second, which changed",
    ]
    assert run(planned) == ["first", "second", "check"]
    assert states(look()) == ["done"] * 3, "taking the change back finds the earlier results"


def test_changes_reach_only_what_follows() -> None:
    run(look())
    planned = look("stages.second.train.loss=dapo", "stages.second.seed=3")
    assert states(planned) == ["done", "new", "new"]
    assert planned[1].why == 'seed: 0 then, 3 now, train.loss: "grpo" then, "dapo" now'


def test_first_few_of_many_changes() -> None:
    run(look())
    changes = ["steps=1", "prompts=2", "inner=3", "rounds=4", "beta=0.5"]
    why = look(*(f"stages.first.train.{change}" for change in changes))[0].why
    assert why.startswith("train.steps: 28 then, 1 now, train.prompts: 8 then, 2 now")
    assert why.endswith(", and 2 more")
    why = look(f"stages.first.data.prompt={'x' * 5000}")[0].why
    assert len(why) < 200


def test_added_and_emptied_settings_are_told() -> None:
    run(look())
    assert look("rewards.0.args={a: 1}")[0].why == (
        "rewards.0.args: {} then, not there now, rewards.0.args.a: not there then, 1 now"
    )


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("rows.jsonl", ["new", "new", "new"]),
        ("other.jsonl", ["done", "new", "new"]),
        ("mine.py", ["new", "new", "new"]),
    ],
)
def test_content_of_files_counts(name: str, expected: list[str]) -> None:
    run(look())
    before = Path(name).read_bytes()
    Path(name).write_text("changed")
    planned = look()
    assert states(planned) == expected
    shown = "./mine.py" if name == "mine.py" else name
    assert f"{shown} changed" in planned[expected.index("new")].why
    Path(name).unlink()
    assert f"{shown} is missing" in look()[expected.index("new")].why
    Path(name).write_bytes(before)
    assert states(look()) == ["done"] * 3, "its date does not count"


def test_images_of_a_folder_count() -> None:
    Path("shots").mkdir()
    for name in ("a.png", "metadata.jsonl"):
        Path("shots", name).write_text(name)
    told = ("data.train.source=folder:shots", "data.images=[image]")
    run(look(*told))
    assert states(look(*told)) == ["done"] * 3
    Path("shots", "a.png").write_text("another")
    again = look(*told)
    assert states(again) == ["new"] * 3 and "shots changed" in again[0].why


def test_content_of_a_model_folder_counts() -> None:
    Path("base/sub").mkdir(parents=True)
    Path("base/sub/weights").write_text("abc")
    run(look("model.name=base"))
    assert states(look("model.name=base")) == ["done"] * 3
    Path("base/sub/weights").write_text("abd")
    assert look("model.name=base")[0].why == "base changed"
    Path("base/sub/weights").write_text("abc")
    Path("base/sub/weights").rename("base/weights")
    assert look("model.name=base")[0].why == "base changed", "names count too"


def test_version_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    run(look())
    monkeypatch.setattr(plan_module, "__version__", "9.9")
    assert look()[0].why.startswith("posttrain: ") and look()[0].why.endswith(" then, 9.9 now")


def test_address_is_of_values_and_not_of_their_order() -> None:
    stage = load().stages[0]
    inputs = inputs_of(stage, {}, str)
    assert len(address(inputs)) == 8
    assert address(dict(reversed(inputs.items()))) == address(inputs)
    assert address(json.loads(json.dumps(inputs))) == address(inputs), "as it stands in inputs.json"
    assert address(inputs | {"kind": "eval"}) != address(inputs)


def test_compared_with_the_stage_finished_last() -> None:
    run(look())
    run(look("stages.first.train.steps=30", until="first"))
    assert look("stages.first.train.steps=31")[0].why == "train.steps: 30 then, 31 now"


def test_unreadable_inputs_are_passed_over() -> None:
    run(look())
    (look()[0].folder / "inputs.json").write_bytes(b"\xff")
    assert look("train.steps=1")[0].why == "never ran"


def test_folders_of_other_names_are_not_taken_for_it() -> None:
    """first-x-01234567 is a folder of the stage first-x and none of first."""
    run(look())
    Path("r.yaml").write_text(RECIPE.replace("name: check", "name: second-check"))
    planned = look("train.steps=1")
    assert [p.why for p in planned][2] == "never ran"
    run(planned)
    assert look("train.steps=2")[1].why.startswith("train.steps: 1 then")


# -- from and until


def test_from_and_until() -> None:
    run(look())
    planned = look(start="second")
    assert states(planned) == ["done", "new", "new"]
    assert planned[1].why == "asked for by --from second"
    assert [p.stage.name for p in look(until="second")] == ["first", "second"]
    assert states(look(start="second", until="second")) == ["done", "new"]
    assert run(look(start="second", until="second")) == ["second"]


@pytest.mark.parametrize(
    ("start", "until", "words"),
    [
        ("secnd", None, "--from secnd: there is no such stage; did you mean 'second'?"),
        (None, "frist", "--until frist: there is no such stage; did you mean 'first'?"),
        ("zzz", None, "the stages are first, second, check"),
        ("second", "first", "--from second comes after --until first"),
    ],
)
def test_wrong_from_and_until(start: str | None, until: str | None, words: str) -> None:
    with pytest.raises(PosttrainError) as error:
        look(start=start, until=until)
    assert words in str(error.value)


# -- what is left over


def test_folders_that_no_stage_uses() -> None:
    run(look())
    old = [planned.folder for planned in look()]
    assert unused(Path("out"), look()) == []
    Path("out/notes").mkdir()
    changed = plan(load("stages.first.train.steps=30"))
    assert unused(Path("out"), changed) == sorted(old)


def test_recipe_without_stages_is_planned_too() -> None:
    staged = load_stages("tiny/tiny", ["output=out"])
    assert run(plan(staged)) == ["tiny"]
    assert states(plan(staged)) == ["done"]

"""Recipes of stages: what is shared, what a stage takes from another, and what is refused at which line."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest

from posttrain import content
from posttrain.kinds import KINDS, Eval
from posttrain.recipe import Recipe, Sampling, Source, Stage, load_recipe
from posttrain.stages import Staged, dump, kind_of, load_stages, references
from posttrain.types import PosttrainError

RECIPE = """\
name: two
seed: 7
model: {name: tiny}
data:
  prompt: "Q: {question}"
  train: {source: "reasoning_gym:chain_sum", size: 10, seed: 1}
  heldout: {size: 5, seed: 2}
rewards:
  - use: accuracy
train:
  steps: 4
stages:
  - name: first
    kind: grpo
    train: {learning_rate: 1e-4}
  - name: second
    kind: grpo
    seed: 8
    model: {name: "stage:first"}
    data:
      train: {source: rows.jsonl}
  - name: check
    kind: eval
    model:
      name: stage:second
"""


def write(folder: Path, text: str) -> str:
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def read(folder: Path, text: str = RECIPE, *overrides: str) -> Staged:
    return load_stages(write(folder, text), overrides)


def refusal(folder: Path, text: str, *overrides: str) -> str:
    with pytest.raises(PosttrainError) as error:
        read(folder, text, *overrides)
    return str(error.value)


def stage(staged: Staged, i: int) -> Any:
    return staged.stages[i]


# -- what is shared


def test_a_model_of_an_earlier_stage_is_given_no_shared_eyes(tmp_path: Path) -> None:
    eyes = "  vision: {tower: vit}\n"
    text = OWN.replace("model: {name: tiny}\n", f"model:\n  name: tiny\n{eyes}")
    staged = read(tmp_path, text)
    first, second = (stage(staged, place).model for place in range(2))
    assert first.vision.tower == "vit" and second.name == "stage:first" and second.vision is None
    assert read(tmp_path, dump(staged)) == staged


def test_stages_take_what_is_shared_and_keep_what_they_say(tmp_path: Path) -> None:
    staged = read(tmp_path, RECIPE.replace("rows.jsonl}", "rows.jsonl}\n      heldout: {source: held.jsonl}"))
    first, second, check = (stage(staged, i) for i in range(3))
    assert (staged.name, staged.output) == ("two", "runs/two")
    assert [kind_of(s) for s in staged.stages] == ["grpo", "grpo", "eval"]
    assert [s.name for s in staged.stages] == ["first", "second", "check"]
    assert [s.output for s in staged.stages] == ["runs/two/first", "runs/two/second", "runs/two/check"]
    assert [s.seed for s in staged.stages] == [7, 8, 7]
    assert (first.train.steps, first.train.learning_rate) == (4, 1e-4), "one level deep, key by key"
    assert (second.train.steps, second.train.learning_rate) == (4, 2e-5)
    assert [s.model.name for s in staged.stages if isinstance(s, (Recipe, Eval))] == [
        "tiny",
        "stage:first",
        "stage:second",
    ]
    assert second.data.prompt == "Q: {question}"
    assert (second.data.train.source, second.data.train.size) == ("rows.jsonl", None), "replaced whole"
    assert isinstance(check, Eval) and not hasattr(check, "train"), "it takes the keys that it has"


def test_two_levels_deep_nothing_is_merged(tmp_path: Path) -> None:
    said = refusal(tmp_path, RECIPE.replace("rows.jsonl", "'reasoning_gym:basic_arithmetic'"))
    assert "recipe.yaml:21: stages.second.data.train.size: is missing" in said


def test_lists_are_replaced(tmp_path: Path) -> None:
    text = RECIPE.replace("    seed: 8\n", "    rewards: [{use: ./mine.py}]\n").replace(
        "      train: {source: rows.jsonl}\n", "      chat: false\n"
    )
    staged = read(tmp_path, text)
    assert [r.use for r in stage(staged, 1).rewards] == ["./mine.py"]
    assert [r.use for r in stage(staged, 0).rewards] == ["accuracy"]
    assert stage(staged, 1).data.train.size == 10, "an own key beside shared ones"


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("seed: 7\n", "sede: 7\n", "recipe.yaml:2: sede: no stage reads it; did you mean 'seed'?"),
        ("  prompt:", "  promt:", "recipe.yaml:5: data.promt: no stage reads it; did you mean 'prompt'?"),
        ("  steps: 4\n", "  stpes: 4\n", "yaml:11: train.stpes: no stage reads it; did you mean 'steps'?"),
        ("seed: 7\n", "kind: grpo\n", "recipe.yaml:2: kind: no stage reads it"),
        (
            "    kind: grpo\n    seed: 8\n",
            "    kind: grpo\n    train: {steps: 1}\n",
            "",  # the first stage takes it
        ),
        ("{learning_rate: 1e-4}", "{steps: 5}", ""),  # the second stage takes it
        ("    model:\n      name: stage:second\n", "    kidn: eval\n", "stages.check.kidn: no such key"),
        ("seed: 7\n", "seed: -1\n", "recipe.yaml:2: stages.first.seed: should be greater"),
        ("{name: tiny}", "tiny", "recipe.yaml:3: stages.first.model: should be a mapping, not 'tiny'"),
        ("size: 10", "size: 0", "recipe.yaml:6: stages.first.data.train.size: should be greater"),
        (
            "1e-4}",
            "1e-4, stpes: 1}",
            "yaml:15: stages.first.train.stpes: no such key; did you mean stages.first.train.steps?",
        ),
        ("1e-4}", "-1}", "recipe.yaml:15: stages.first.train.learning_rate: should be greater than 0"),
    ],
)
def test_shared_values_and_own_ones_are_refused_where_they_stand(
    old: str, new: str, words: str, tmp_path: Path
) -> None:
    assert RECIPE.count(old) == 1
    text = RECIPE.replace(old, new).replace("rows.jsonl}", "rows.jsonl}\n      heldout: {source: h.jsonl}")
    if words:
        assert words in refusal(tmp_path, text)
    else:
        read(tmp_path, text)


def test_override_that_every_stage_hides_is_refused(tmp_path: Path) -> None:
    text = RECIPE.replace("    seed: 8\n", "    train: {steps: 1}\n").replace(
        "{learning_rate: 1e-4}", "{steps: 2}"
    )
    said = refusal(tmp_path, text, "train.steps=9")
    assert said.startswith(
        "override train.steps=9: train.steps: reaches no stage, since first and second say"
    )


def test_shared_section_without_a_reader(tmp_path: Path) -> None:
    text = RECIPE.replace("kind: grpo", "kind: eval").replace("    train: {learning_rate: 1e-4}\n", "")
    text = text.replace("stage:first", "tiny").replace("stage:second", "tiny")
    assert "recipe.yaml:10: train: no stage reads it" in refusal(tmp_path, text)


# -- names and kinds


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("name: second", "name: first", "recipe.yaml:16: stages.1.name: 'first' is stages.0 too"),
        ("name: second", "name: a/b", "recipe.yaml:16: stages.1.name: names a folder"),
        ("name: second", "name: a.b", "recipe.yaml:16: stages.1.name: names a folder"),
        ("name: second", "name: 2nd", "recipe.yaml:16: stages.1.name: names a folder"),
        ("name: second", "name: 2", "recipe.yaml:16: stages.1.name: names a folder"),
        ("name: second", f"name: {'a' * 65}", "recipe.yaml:16: stages.1.name: names a folder"),
        ("name: second\n    kind: grpo", "kind: grpo", "recipe.yaml:16: stages.1.name: is missing"),
        ("kind: eval", "kind: evla", "recipe.yaml:23: stages.2.kind: no kind 'evla'; did you mean 'eval'?"),
        ("kind: eval", "kind: [x]", "recipe.yaml:23: stages.2.kind: no kind ['x']"),
        ("    kind: eval\n", "", "recipe.yaml:22: stages.2.kind: is missing; the kinds are sft, grpo"),
        ("kind: eval", "kind: eval\n    output: x", "recipe.yaml:24: stages.2.output: a stage's folder"),
        ("name: two", "name: a/b", "recipe.yaml:1: name: names a folder"),
        ("name: two\n", "", "name: is missing"),
        ("name: two", "name: two\noutput: 3", "recipe.yaml:2: output: should be a valid string"),
    ],
)
def test_names_and_kinds_that_are_refused(old: str, new: str, words: str, tmp_path: Path) -> None:
    assert RECIPE.count(old) == 1
    assert words in refusal(tmp_path, RECIPE.replace(old, new))


@pytest.mark.parametrize("value", ["", "[]", "{a: 1}", "5"])
def test_stages_that_are_no_list(value: str, tmp_path: Path) -> None:
    said = refusal(tmp_path, RECIPE[: RECIPE.index("stages:")] + f"stages: {value}\n")
    assert "recipe.yaml:12: stages: should be a list of stages" in said


def test_stage_that_is_no_mapping(tmp_path: Path) -> None:
    assert "recipe.yaml:26: stages.3: should be a mapping" in refusal(tmp_path, RECIPE + "  - next\n")


# -- what a stage takes from another

OWN = RECIPE.replace("rows.jsonl}", "rows.jsonl}\n      heldout: {source: held.jsonl}")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (
            "stage:first",
            "stage:frist",
            "yaml:19: stages.second.model.name: there is no earlier stage 'frist'; did you mean 'first'?",
        ),
        ("stage:first", "stage:", "recipe.yaml:19: stages.second.model.name: there is no earlier stage ''"),
        ("stage:first", "stage:second", "recipe.yaml:19: stages.second.model.name: is the stage itself"),
        ("{name: tiny}", "{name: 'stage:second'}", "yaml:3: stages.first.model.name: 'second' comes later"),
        (
            "source: rows.jsonl",
            "source: 'stage:first'",
            "yaml:21: stages.second.data.train.source: 'first' is a stage of kind grpo, which gives no rows",
        ),
    ],
)
def test_references_that_are_refused(old: str, new: str, words: str, tmp_path: Path) -> None:
    assert OWN.count(old) == 1
    said = refusal(tmp_path, OWN.replace(old, new))
    assert words in said
    assert "\n" not in said


def test_an_evaluation_gives_no_model(tmp_path: Path) -> None:
    last = "  - {name: last, kind: eval, model: {name: 'stage:check'}}\n"
    said = refusal(tmp_path, OWN + last)
    assert (
        "recipe.yaml:27: stages.last.model.name: 'check' is a stage of kind eval, which gives no model"
        in said
    )


def test_circles_cannot_be_written(tmp_path: Path) -> None:
    """Each way to close a circle has a stage that names a later one."""
    said = refusal(
        tmp_path, OWN.replace("{learning_rate: 1e-4}", "{steps: 1}\n    model: {name: 'stage:second'}")
    )
    assert "stages.first.model.name: 'second' comes later" in said


def test_what_a_stage_refers_to(tmp_path: Path) -> None:
    staged = read(tmp_path, OWN)
    assert [references(s) for s in staged.stages] == [
        [],
        [(("model", "name"), "model", "first")],
        [(("model", "name"), "model", "second")],
    ]


# -- overrides


def test_overrides_by_name_and_by_index(tmp_path: Path) -> None:
    staged = read(
        tmp_path,
        OWN,
        "stages.first.train.steps=5",
        "stages.1.train.steps=6",
        "stages.check.data.system=You: be brief {really}",
        "stages.second.model.name=123",
        "model.name=456",
        "output=elsewhere",
    )
    assert [stage(staged, i).train.steps for i in (0, 1)] == [5, 6]
    assert stage(staged, 2).data.system == "You: be brief {really}", "a key that takes text takes it as it is"
    assert [stage(staged, i).model.name for i in (0, 1)] == ["456", "123"]
    assert stage(staged, 0).output == "elsewhere/first"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("stages.frist.seed=1", ["items 0 to 2 (first, second, check), not 'frist'", "mean 'first'?"]),
        ("stages.9.seed=1", ["stages has items 0 to 2"]),
        ("stages.first.train.stpes=1", ["override stages.first", "did you mean stages.first.train.steps?"]),
        ("stages.first.sede=1", ["did you mean stages.first.seed?"]),
        ("stages.first=1", ["override stages.first=1: stages.0: should be a mapping"]),
        ("stages.first.kind=gropo", ["override stages.first.kind=gropo: stages.0.kind", "mean 'grpo'?"]),
        ("stages=1", ["override stages=1: stages: should be a list"]),
        ("trian.steps=1", ["override trian.steps=1: trian: no stage reads it; did you mean 'train'?"]),
    ],
)
def test_bad_overrides(override: str, words: list[str], tmp_path: Path) -> None:
    said = refusal(tmp_path, OWN, override)
    assert all(word in said for word in words), said


# -- the same again


def test_round_trip(tmp_path: Path) -> None:
    staged = read(tmp_path, OWN, "output=there", "stages.first.data.prompt=a: {question}\n#b")
    assert read(tmp_path, dump(staged)) == staged


@pytest.mark.parametrize("name", [name for name, _, _ in content.listing("recipes")])
def test_recipe_without_stages_is_one_stage(name: str, tmp_path: Path) -> None:
    staged = load_stages(name)
    if "stages:" not in (content.find("recipes", name) or Path()).read_text():
        assert staged.stages == (load_recipe(name),)
        assert (staged.name, staged.output) == (staged.stages[0].name, staged.stages[0].output)
    assert read(tmp_path, dump(staged)) == staged


def test_recipe_without_stages_has_no_stage_to_take_from() -> None:
    with pytest.raises(PosttrainError, match="model.name: there is no earlier stage 'first'"):
        load_stages("tiny/tiny", ["model.name=stage:first"])


def test_everything_wrong_is_said_at_once(tmp_path: Path) -> None:
    text = OWN.replace("1e-4}", "-1, stpes: 1}").replace("seed: 8", "seed: -8")
    assert len(refusal(tmp_path, text).splitlines()) == 3


def test_a_wrong_shared_value_is_said_once(tmp_path: Path) -> None:
    said = refusal(tmp_path, OWN.replace("steps: 4", "steps: four"))
    assert "recipe.yaml:11: stages.first.train.steps: should be a valid integer" in said
    assert "\n" not in said


def test_key_missing_from_a_shared_section_is_said_at_the_section(tmp_path: Path) -> None:
    said = refusal(tmp_path, OWN.replace("  heldout: {size: 5, seed: 2}\n", ""))
    assert "recipe.yaml:4: stages.first.data.heldout: is missing" in said


def test_optional_section_of_a_kind_is_shared_key_by_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kind is one class and one entry of KINDS; `stage:NAME` finds its models and rows."""

    class Sample(Stage):
        gives: ClassVar[Literal["model", "rows"] | None] = "rows"
        sampling: Sampling | None = None
        rows: Source

    monkeypatch.setitem(KINDS, "sample", Sample)
    text = """\
name: x
sampling: {max_tokens: 9}
stages:
  - {name: a, kind: sample, sampling: {top_k: 5}, rows: {source: a.jsonl}}
  - {name: b, kind: sample, rows: {source: "stage:a"}}
"""
    staged = read(tmp_path, text)
    a, b = stage(staged, 0), stage(staged, 1)
    assert (a.sampling.top_k, a.sampling.max_tokens, b.sampling.max_tokens) == (5, 9, 9)
    assert references(b) == [(("rows", "source"), "rows", "a")]
    assert read(tmp_path, dump(staged)) == staged
    said = refusal(tmp_path, text.replace("max_tokens", "max_token"))
    assert "recipe.yaml:2: sampling.max_token: no stage reads it; did you mean 'max_tokens'?" in said

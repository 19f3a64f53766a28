"""Recipes: what is read, what is refused, and with what words."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from posttrain import content
from posttrain.recipe import Loss, Recipe, Train, dump_recipe, load_recipe
from posttrain.recipe_data import columns_in, fill
from posttrain.stages import dump, load_stages
from posttrain.types import PosttrainError

RECIPE = """\
name: mine
model:
  name: tiny
data:
  train:
    source: reasoning_gym:chain_sum
    args: {min_terms: 2}
    size: 10
    seed: 1
  heldout:
    size: 5
    seed: 2
rewards:
  - use: accuracy
    args: {form: boxed}
"""


def write(folder: Path, text: str | bytes = RECIPE) -> str:
    path = folder / "recipe.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return str(path)


def read(folder: Path, text: str | bytes = RECIPE, *overrides: str) -> Recipe:
    return load_recipe(write(folder, text), overrides)


def refusal(folder: Path, text: str | bytes = RECIPE, *overrides: str) -> str:
    with pytest.raises(PosttrainError) as error:
        read(folder, text, *overrides)
    return str(error.value)


def test_defaults_and_inheritance(tmp_path: Path) -> None:
    recipe = read(tmp_path)
    assert recipe.output == "runs/mine"
    assert recipe.data.heldout.source == "reasoning_gym:chain_sum"
    assert recipe.data.heldout.args == {"min_terms": 2}
    assert (recipe.data.heldout.size, recipe.data.heldout.seed) == (5, 2)
    assert recipe.rewards[0].weight == 1.0
    assert recipe.train.clip_low is None, "the paper's own, which the loss knows"
    assert recipe.sampling.completions == 8


def test_heldout_with_its_own_source_inherits_nothing(tmp_path: Path) -> None:
    text = RECIPE.replace("    size: 5\n", "    source: reasoning_gym:basic_arithmetic\n    size: 5\n")
    assert read(tmp_path, text).data.heldout.args == {}


def test_recipe_cannot_be_changed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="frozen"):
        read(tmp_path).train.steps = 5  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("name", [name for name, _, _ in content.listing("recipes")])
def test_every_shipped_recipe_loads_and_survives_a_round_trip(name: str, tmp_path: Path) -> None:
    staged = load_stages(name)
    assert load_stages(write(tmp_path, dump(staged))) == staged


def test_recipes_ship() -> None:
    assert {"r1_zero/smollm2", "tiny/tiny", "r1/smollm2", "sft/smollm2", "distill/smollm2"} <= {
        name for name, _, _ in content.listing("recipes")
    }


def test_round_trip_of_awkward_values(tmp_path: Path) -> None:
    text = RECIPE.replace(
        "args: {form: boxed}", "args: {a: '2e-5', b: 'no', c: '010', d: [1, [.inf]], e: '1:30'}"
    )
    prompt = "Réponds à {question} 问题\n\tin \\boxed{}: #no comment\n"
    recipe = read(tmp_path, text, f"data.prompt={prompt}", "data.system=null", "train.learning_rate=1e-7")
    again = read(tmp_path, dump_recipe(recipe))
    assert again == recipe
    assert again.data.prompt == prompt
    assert again.rewards[0].args == {"a": "2e-5", "b": "no", "c": "010", "d": [1, [math.inf]], "e": "1:30"}
    # any other program that reads YAML sees the same
    assert yaml.safe_load(dump_recipe(recipe))["rewards"][0]["args"] == again.rewards[0].args


@pytest.mark.parametrize(
    ("text", "value"),
    [("2e-5", 2e-5), ("1E-6", 1e-6), ("1e0", 1.0), (".5", 0.5), ("3", 3.0), ("1.5e+2", 150.0), ("+2.", 2.0)],
)
def test_numbers_are_numbers_in_files_and_overrides(text: str, value: float, tmp_path: Path) -> None:
    in_file = read(tmp_path, RECIPE + f"train:\n  learning_rate: {text}\n")
    in_override = read(tmp_path, RECIPE, f"train.learning_rate={text}")
    assert in_file.train.learning_rate == in_override.train.learning_rate == value


def test_words_that_older_yaml_takes_for_something_else(tmp_path: Path) -> None:
    args = read(tmp_path, RECIPE.replace("form: boxed", "a: no, b: on, c: 2026-01-01, d: 1:30, e: 010, f: ~"))
    assert args.rewards[0].args == {
        "a": "no",
        "b": "on",
        "c": "2026-01-01",
        "d": "1:30",
        "e": "010",
        "f": None,
    }


# -- overrides


def test_overrides(tmp_path: Path) -> None:
    recipe = read(
        tmp_path,
        RECIPE,
        "train.steps=3",
        "rewards.0.weight=2",
        "rewards.0.args.form=hashes",
        "data.train.args={max_terms: 4}",
        "trackers=[tensorboard]",
        "model.name=123",
        "data.system=You: be brief {really}",
        "evaluate.form=null",
        "output=runs/a=b",
        "train.steps=4",
    )
    assert recipe.train.steps == 4, "the last one counts"
    assert recipe.rewards[0].weight == 2
    assert recipe.rewards[0].args == {"form": "hashes"}
    assert recipe.data.train.args == recipe.data.heldout.args == {"max_terms": 4}
    assert recipe.trackers == ("tensorboard",)
    assert recipe.model.name == "123", "a key that takes text takes it as it is"
    assert recipe.data.system == "You: be brief {really}"
    assert recipe.evaluate.form is None
    assert recipe.output == "runs/a=b"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.stps=3", ["override train.stps=3", "did you mean train.steps?"]),
        ("learning_rate=1", ["did you mean train.learning_rate?"]),
        ("trian.steps=3", ["did you mean train?"]),
        ("train.seed=3", ["train.seed: no such key", "did you mean seed?"]),
        ("rewards.0.wieght=3", ["did you mean rewards.0.weight?"]),
        ("train.zzz=3", ["the keys here are steps, prompts"]),
        ("train.steps", ["expected key=value"]),
        ("a..b=1", ["expected key=value"]),
        ("=1", ["expected key=value"]),
        ("rewards.3.weight=1", ["rewards has items 0 to 0, not '3'"]),
        ("rewards.-1.weight=1", ["rewards has items 0 to 0, not '-1'"]),
        ("rewards.use=x", ["rewards has items 0 to 0, not 'use'"]),
        ("name.sub=1", ["name is text, it has no 'sub' inside"]),
        ("train.steps=[", ["override train.steps=["]),
        ("train=5", ["train: should be a mapping, not 5"]),
        ("train.steps=" + "9" * 5000, ["override train.steps=", "digits"]),
    ],
)
def test_bad_overrides(override: str, words: list[str], tmp_path: Path) -> None:
    said = refusal(tmp_path, RECIPE, override)
    assert all(word in said for word in words), said


# -- what is refused


@pytest.mark.parametrize(
    ("extra", "line", "words"),
    [
        ("train:\n  steps: 1\n  stpes: 2\n", 18, "train.stpes: no such key; did you mean train.steps?"),
        ("train:\n  steps: ten\n", 17, "train.steps: should be a valid integer, not 'ten'"),
        ("train:\n  steps: 1.5\n", 17, "train.steps: should be a valid integer"),
        ("train:\n  steps: true\n", 17, "train.steps: should be a valid integer, not True"),
        ("train:\n  steps: '3'\n", 17, "train.steps: should be a valid integer, not '3'"),
        ("train:\n  steps: -1\n", 17, "train.steps: should be greater than or equal to 0"),
        ("train:\n  learning_rate: .nan\n", 17, "train.learning_rate: should be a finite number"),
        ("train:\n  learning_rate: 0\n", 17, "train.learning_rate: should be greater than 0"),
        ("train:\n  beta: -1\n", 17, "train.beta"),
        ("train:\n  inner: 0\n", 17, "train.inner"),
        ("train:\n  rounds: 0\n", 17, "train.rounds"),
        ("train:\n  loss: ppo\n", 17, "'grpo', 'dr_grpo', 'dapo', 'gspo' or 'cispo', not 'ppo'"),
        ("train:\n  warmup: 31\n", 17, "train.warmup: is 31 steps, longer than the run (30 steps)"),
        (
            "train:\n  ahead: true\n  importance_cap: null\n",
            18,
            "train.importance_cap: is null, but with train.ahead",
        ),
        ("train:\n  loss: cispo\n  clip_low: 0.1\n", 18, "train.clip_low: the cispo loss has no lower clip"),
        ("train:\n  loss: cispo\n  clip_high: 0.1\n", 18, "train.clip_high: is 0.1"),
        ("train:\n  tokens: 64\n", 17, "train.tokens: is 64: one completion may have 128 tokens"),
        ("sampling:\n  completions: 1\n", 17, "sampling.completions: should be greater than or equal to 2"),
        ("sampling:\n  max_tokens: 0\n", 17, "sampling.max_tokens"),
        ("sampling:\n  top_p: 0.9\n", 17, "sampling.top_p: leaves tokens out"),
        ("sampling:\n  top_k: 50\n", 17, "sampling.top_k: leaves tokens out"),
        ("sampling:\n  min_p: 0.1\n", 17, "sampling.min_p: leaves tokens out"),
        ("sampling:\n  temperature: 0\n", 17, "sampling.temperature: is 0"),
        ("evaluate:\n  form: box\n", 17, "'boxed'"),
        ("reward_deadline: 0\n", 16, "reward_deadline: should be greater than 0"),
        ("reward_workers: 0\n", 16, "reward_workers: should be greater than or equal to 1"),
        ("trackers: [wandb, mlflow]\n", 16, "trackers.1: should be"),
        ("trackers: [wandb, wandb]\n", 16, "trackers: names wandb twice"),
        ("trackers: wandb\n", 16, "trackers: should be a list"),
        ("seed: -1\n", 16, "seed: should be greater than or equal to 0"),
        ("output: ''\n", 16, "output: is empty"),
        ("train: [1]\n", 16, "train: should be a mapping, not [1]"),
    ],
)
def test_refused_with_file_line_and_key(extra: str, line: int, words: str, tmp_path: Path) -> None:
    said = refusal(tmp_path, RECIPE + extra)
    assert f"recipe.yaml:{line}: " in said
    assert words in said
    assert "\n" not in said, "one thing is wrong, so one line"


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("name: mine\n", "", "recipe.yaml:1: name: is missing"),
        ("name: mine", "name: a/b", "recipe.yaml:1: name: names a folder"),
        ("name: mine", "name: ..", "recipe.yaml:1: name: names a folder"),
        ("    seed: 2", "    seed: 1", "recipe.yaml:12: data.heldout.seed: is train's seed 1 too"),
        ("    seed: 1\n", "", "data.train.seed: is missing"),
        ("    size: 10\n", "", "data.train.size: is missing"),
        ("size: 10", "size: 0", "recipe.yaml:8: data.train.size"),
        ("{min_terms: 2}", "{seed: 2}", "recipe.yaml:7: data.train.args: seed belongs beside args"),
        ("reasoning_gym:chain_sum", "rows.csv", "recipe.yaml:6: data.train.source: 'rows.csv' is neither"),
        (
            "reasoning_gym:chain_sum",
            "rows.jsonl",
            "recipe.yaml:7: data.train.args: means nothing to rows.jsonl",
        ),
        ("    size: 10", "    split: test\n    size: 10", "recipe.yaml:8: data.train.split: means nothing"),
        ("data:\n", "data:\n  prompt: 'Say {answer}.'\n", "data.prompt: {answer} would show the answer"),
        ("data:\n", "data:\n  chat: false\n  system: hi\n", "recipe.yaml:6: data.system: needs chat: true"),
        ("  - use: accuracy\n", "  - use: accuracy\n  - use: accuracy\n", "rewards: names accuracy twice"),
        ("  - use: accuracy\n    args: {form: boxed}\n", "  []\n", "rewards: is empty"),
        ("  - use: accuracy\n    args: {form: boxed}\n", "  use: accuracy\n", "rewards: should be a list"),
        ("use: accuracy", "weight: 1", "rewards.0.use: is missing"),
        ("use: accuracy", "use: accuracy\n    weight: .inf", "rewards.0.weight: should be a finite number"),
    ],
)
def test_refused_parts(old: str, new: str, words: str, tmp_path: Path) -> None:
    assert RECIPE.count(old) >= 1
    assert words in refusal(tmp_path, RECIPE.replace(old, new, 1))


def test_same_file_for_both_sides_is_refused(tmp_path: Path) -> None:
    files = "name: a\nmodel: {name: tiny}\nrewards: [{use: accuracy}]\ndata:\n  train: {source: a.jsonl}\n"
    assert "is the same rows as train" in refusal(tmp_path, files + "  heldout: {size: 3}\n")
    assert read(tmp_path, files + "  heldout: {source: b.jsonl}\n").data.heldout.source == "b.jsonl"


def test_hub_splits(tmp_path: Path) -> None:
    hub = "name: a\nmodel: {name: tiny}\nrewards: [{use: accuracy}]\ndata:\n"
    hub += "  train: {source: 'hub:openai/gsm8k', config: main}\n  heldout: {size: 9%s}\n"
    data = read(tmp_path, hub % "").data
    assert (data.train.split, data.heldout.split) == ("train", "test")
    assert data.heldout.config == "main"
    assert "the same rows" in refusal(tmp_path, hub % ", split: train")


def test_filters_are_for_evaluation_alone(tmp_path: Path) -> None:
    recipe = read(tmp_path, RECIPE, "train.steps=0", "sampling.top_p=0.9", "sampling.temperature=0")
    assert recipe.sampling.top_p == 0.9


def test_everything_wrong_is_said_at_once(tmp_path: Path) -> None:
    said = refusal(tmp_path, RECIPE + "train:\n  stpes: 1\n  beta: -1\nsede: 1\n").splitlines()
    assert len(said) == 3
    many = refusal(tmp_path, RECIPE + "".join(f"k{i}: 1\n" for i in range(30))).splitlines()
    assert many[-1] == "… and 20 more"


# -- files that are no recipes


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "the file is empty"),
        ("# only a comment\n", "the file is empty"),
        ("- a\n- b\n", "expected a mapping (key: value, a line each), not a list"),
        ("just words\n", "expected a mapping (key: value, a line each), not text"),
        ("name: a\nseed: 1\nname: b\n", "recipe.yaml:3: name is here twice, first in line 1"),
        ("train:\n  steps: 1\n  steps: 2\n", "recipe.yaml:3: train.steps is here twice, first in line 2"),
        ("name: [a\nmodel: b\n", "recipe.yaml:2: "),
        ("name: a\n\tmodel: b\n", "recipe.yaml:2: "),
        ("name: a\n---\nname: b\n", "recipe.yaml:2: but found another document"),
        ("a: &x 1\nb: *x\n", "recipe.yaml:2: aliases (*name) are not read"),
        ("a: !!python/object/apply:os.system [ls]\n", "recipe.yaml:1: the tag"),
        ("a: !secret b\n", "recipe.yaml:1: the tag !secret is not read"),
        ("1: a\n", "recipe.yaml:1: a key is a word, not a number"),
        ("? {a: b}\n: c\n", "recipe.yaml:1: a key is a word, not a mapping"),
        (b"name: a\nseed: \xff\n", "recipe.yaml:2: the file is not UTF-8"),
        ("name: a\x00b\n", "recipe.yaml: "),
        ("[" * 5000, "nested too deeply"),
        ("seed: " + "9" * 5000 + "\n", "recipe.yaml: "),
    ],
)
def test_broken_files(text: str | bytes, words: str, tmp_path: Path) -> None:
    assert words in refusal(tmp_path, text)


def test_billion_laughs_is_refused_at_once(tmp_path: Path) -> None:
    text = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{f'*a{i - 1},' * 9}]\n" for i in range(1, 30))
    assert "aliases" in refusal(tmp_path, text)


def test_byte_order_mark_is_accepted(tmp_path: Path) -> None:
    assert read(tmp_path, b"\xef\xbb\xbf" + RECIPE.encode()).name == "mine"


def test_missing_recipe_names_what_is_near(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("r1_zero/smolm2", "recipes/r1_zero/smollm.yaml"):
        with pytest.raises(PosttrainError, match="did you mean r1_zero/smollm2"):
            load_recipe(name)
    with pytest.raises(PosttrainError, match=r"what ships: .*tiny/tiny"):
        load_recipe("no-such-thing-xyz.yaml")
    with pytest.raises(PosttrainError, match="is a folder"):
        load_recipe(".")
    with pytest.raises(PosttrainError, match="no recipe ''"):
        load_recipe("")


def test_own_file_wins_over_a_shipped_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny").mkdir()
    assert load_recipe("tiny/tiny").name == "tiny", "a folder of that name hides nothing"
    (tmp_path / "tiny" / "tiny").write_text(RECIPE)
    assert load_recipe("tiny/tiny").name == "mine"


def test_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path)

    def refuse(self: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(PosttrainError, match="cannot be read: Permission denied"):
        load_recipe(path)


# -- the prompt template


@pytest.mark.parametrize(
    ("template", "filled"),
    [
        ("{question}", "1+1?"),
        ("{question}{question}", "1+1?1+1?"),
        (
            r"\boxed{} \frac{1}{2} { question } {a.b} {a[0]}",
            r"\boxed{} \frac{1}{2} { question } {a.b} {a[0]}",
        ),
        (r"\boxed{{answer}}", r"\boxed{answer}"),
        ("{frage_ä}: {x2}", "{question}: z"),
        ("no column", "no column"),
    ],
)
def test_template(template: str, filled: str) -> None:
    row = {"question": "1+1?", "frage_ä": "{question}", "x2": "z"}
    assert fill(template, row) == filled


def test_columns_in_template() -> None:
    assert columns_in("{b} {{c}} {} {1} {a} {b}") == ["b", "a", "b"]


# -- agreement with the rooms that use the recipe


def test_choices_are_those_of_the_loss() -> None:
    from posttrain.train.advantages import AdvantageKind
    from posttrain.train.loss import Variant, clip_bounds

    assert get_args(Loss) == get_args(Variant)
    advantage: Any = Train.model_fields["advantage"].annotation
    assert set(get_args(get_args(advantage)[0])) == set(get_args(AdvantageKind))
    for loss in get_args(Loss):  # what the recipe lets through, the loss takes
        train = Train(loss=loss)
        clip_bounds(loss, train.clip_low, train.clip_high)

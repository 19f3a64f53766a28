"""--dry-run: what a run will take, without a weight loaded."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config, LlamaForCausalLM

from posttrain import models, places
from posttrain.estimate import dry_run, dry_run_stages, estimate
from posttrain.plan import plan
from posttrain.recipe import Model, Recipe, load_recipe
from posttrain.stages import load_stages
from posttrain.types import PosttrainError

pytestmark = pytest.mark.usefixtures("home")

SMOLLM2 = 134_515_008


def tiny(*overrides: str) -> Recipe:
    return load_recipe("tiny/tiny", ["model.compute=float32", *overrides])


def smollm2_like(*overrides: str) -> dict[str, float]:
    config = AutoConfig.for_model(
        "llama",
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        vocab_size=49152,
    )
    return estimate(tiny(*overrides), {"language": SMOLLM2}, config)


def test_it_says_what_would_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places.resolve("tiny")  # the model of the tests is made by its first use, not by a download

    def loaded(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(LlamaForCausalLM, "from_pretrained", loaded)
    monkeypatch.setattr(models, "load", loaded)
    recipe = tiny(f"output={tmp_path / 'run'}", "train.inner=2", "data.train.size=50")
    text = dry_run(recipe)
    assert "tiny: 0.1 M parameters" in text
    assert "50 to train on, 8 held out" in text or "49 to train on, 8 held out" in text
    assert "2 prompts x 4 completions = 8 rollouts, at most 128 tokens; up to 3 rounds" in text
    assert "3 steps, 6 updates" in text
    assert "GiB (interpreter" in text
    assert not (tmp_path / "run").exists()
    (tmp_path / "again.yaml").write_text(text)
    assert load_recipe(str(tmp_path / "again.yaml")) == recipe, "what is printed is a recipe, with remarks"
    assert "rounds of dynamic sampling" not in dry_run(tiny("train.rounds=1"))


def test_an_unknown_model_is_refused_there_too() -> None:
    with pytest.raises(PosttrainError, match="did you mean 'tiny'"):
        dry_run(tiny("model.name=tinny"))


def test_the_parts_are_what_they_are_named() -> None:
    parts = smollm2_like()
    gib = 2**30
    assert parts["weights"] == parts["gradients"] == pytest.approx(4 * SMOLLM2 / gib)
    assert parts["optimizer"] == pytest.approx(8 * SMOLLM2 / gib)
    assert "engine's copy" not in parts and "reference" not in parts
    assert parts["cache"] == pytest.approx(2 * 30 * 3 * 64 * 4 * 128 * (16 + 128) / gib)
    low = smollm2_like("model.compute=bfloat16")
    assert low["engine's copy"] == pytest.approx(2 * SMOLLM2 / gib)
    assert low["activations"] == pytest.approx(parts["activations"] / 2)
    assert low["cache"] == pytest.approx(parts["cache"] / 2)


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("train.tokens=8192", {"activations", "logits"}),
        ("sampling.max_tokens=500", {"cache"}),
        ("train.beta=0.1", {"reference"}),
    ],
)
def test_what_takes_more_is_told(override: str, parts: set[str]) -> None:
    more, less = smollm2_like(override), smollm2_like()
    assert {name for name in more if more[name] > less.get(name, 0.0)} == parts
    assert {name: more[name] for name in more if name not in parts} == {
        name: less[name] for name in less if name not in parts
    }


def test_of_eyes_only_what_learns_has_gradients() -> None:
    counts = {"language": 1000, "tower": 200, "connector": 30}
    config = models.size(Model(name="tiny"))[1]
    all_, kept = (
        estimate(tiny(*some), counts, config) for some in ((), ("train.rates={tower: 0, language: 0}",))
    )
    assert all_["weights"] == kept["weights"] == pytest.approx(4 * 1230 / 2**30)
    assert all_["gradients"] == all_["weights"]
    assert kept["gradients"] == pytest.approx(4 * 30 / 2**30)
    assert kept["optimizer"] == 2 * kept["gradients"]


LATE = """\
name: late
model: {name: tiny}
data:
  images: [image]
  train: {source: "scenes:count", size: 8, seed: 1}
  heldout: {size: 4, seed: 2}
rewards: [{use: count, args: {form: last_number}}]
stages:
  - {name: words, kind: sft, completion: "{answer}"}
  - name: eyes
    kind: sft
    completion: "{answer}"
    model: {name: "stage:words", vision: {tower: vit, settings: {image_size: 32, patch: 8}}}
    train: {rates: {language: 0}}
"""


def test_eyes_that_a_later_stage_gives_are_counted(tmp_path: Path) -> None:
    (tmp_path / "late.yaml").write_text(LATE)
    staged = load_stages(str(tmp_path / "late.yaml"))
    words, eyes = dry_run_stages(staged, plan(staged)).split("# 1. ")[1].split("# 2. ")
    assert "(tower" not in words and "(tower" in eyes and "gradients" in eyes


def test_every_stage_of_a_model_that_sees_counts_its_eyes() -> None:
    staged = load_stages("vlm/tiny")
    text = dry_run_stages(staged, plan(staged))
    assert (
        len(re.findall(r"M parameters \(tower [\d,]{6,}, connector [\d,]{5,}\)", text))
        == len(staged.stages)
        == 3
    ), text


def test_the_logits_have_a_bound() -> None:
    assert smollm2_like("train.tokens=8192")["logits"] == smollm2_like("train.tokens=90000")["logits"]


def test_other_shapes_of_config() -> None:
    """GPT-2 names its sizes differently and has no feed-forward width."""
    parts = estimate(tiny(), {"language": 124_000_000}, GPT2Config())
    assert all(size > 0 for size in parts.values())
    assert parts["cache"] == pytest.approx(2 * 12 * 768 * 4 * 128 * 144 / 2**30)


# Of Qwen2.5, as in their config.json: hidden, feed-forward, layers, heads, key heads, vocabulary, tied.
QWEN = {
    "Qwen/Qwen2.5-0.5B": (896, 4864, 24, 14, 2, 151936, True),
    "Qwen/Qwen2.5-1.5B": (1536, 8960, 28, 12, 2, 151936, True),
    "Qwen/Qwen2.5-3B": (2048, 11008, 36, 16, 2, 151936, True),
    "Qwen/Qwen2.5-7B": (3584, 18944, 28, 28, 4, 152064, False),
}


@pytest.mark.parametrize(
    "name", ["r1/qwen2.5-1.5b", "r1/qwen2.5-3b_8gpu", "r1_zero/base", "distill/qwen2.5-7b-lora"]
)
def test_recipes_for_gpus_fit_on_80_gb(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shipped ones, dry-run with the models' shapes: the Hub is not asked."""

    def size(model: Model) -> tuple[dict[str, int], Any]:
        keys = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
        keys += ("num_key_value_heads", "vocab_size", "tie_word_embeddings")
        shape = QWEN[model.name.removesuffix("-Instruct")]
        config = AutoConfig.for_model("qwen2", **dict(zip(keys, shape, strict=True)))
        with torch.device("meta"):
            return {"language": AutoModelForCausalLM.from_config(config).num_parameters()}, config

    monkeypatch.setattr(models, "size", size)
    monkeypatch.setattr(models, "compute_type", lambda asked: torch.bfloat16)
    staged = load_stages(name)
    text = dry_run_stages(staged, plan(staged))
    memory = [
        float(line.split("about ")[1].split(" GiB")[0]) for line in text.splitlines() if " about " in line
    ]
    assert memory and max(memory) < 78, text
    if "7b" in name:  # and it is the adapters that make it so
        full = load_stages(name, ["stages.student.train.lora=null"])
        assert "about 1" in dry_run_stages(full, plan(full))

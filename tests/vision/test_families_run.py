"""A whole run of reinforcement learning with a checkpoint that sees, interrupted, and gone on with alone."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from posttrain import data, models
from posttrain.multimodal import image_token
from posttrain.pipeline import run
from posttrain.recipe import Recipe
from tests.test_distributed import REWARD

pytestmark = pytest.mark.usefixtures("home", "one_process")


def recipe(model: str, output: Path) -> Recipe:
    mine = output.with_name("mine.py")
    mine.write_text(REWARD)  # what weights that nobody trained write differs in it
    scenes = {"source": "scenes:count", "args": {"most": 2, "distractors": 1}}
    return Recipe.model_validate(
        {
            "name": "seeing",
            "output": str(output),
            "model": {"name": model, "compute": "float32"},
            "data": {
                "train": {**scenes, "size": 8, "seed": 1},
                "heldout": {"size": 2, "seed": 2},
                "images": ["image"],
            },
            "rewards": [{"use": f"{mine}:even"}],
            "sampling": {"completions": 2, "max_tokens": 6},
            "train": {"steps": 3, "prompts": 2, "learning_rate": 1e-3, "tokens": 4096, "checkpoint_every": 1},
            "evaluate": {"every": 3, "samples": 1, "max_tokens": 6},
        }
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["smolvlm", "qwen2_vl"])
def test_a_run_goes_on_when_the_checkpoint_that_it_began_with_is_gone(
    family: Any, tmp_path: Path, name: str
) -> None:
    hub, output = tmp_path / "hub", tmp_path / "run"
    family(name).save(hub)
    before, _ = models.load(str(hub))
    folder = run(recipe(str(hub), output))
    whole = load_file(folder / "model" / "model.safetensors")
    after = dict(models.load(str(folder / "model"))[0].named_parameters())
    moved = [n for n, p in before.named_parameters() if not torch.equal(p, after[n])]
    assert any("language_model" in n or "text_model" in n for n in moved)
    shutil.rmtree(folder / "model")
    (newest,) = (folder / "checkpoints").glob("step-000003")
    shutil.rmtree(newest)
    (folder / "result.json").unlink()  # as if it had been ended before its last step
    run(recipe(str(hub), output), resume=True)
    again = load_file(folder / "model" / "model.safetensors")
    assert whole.keys() == again.keys()
    assert all(torch.equal(whole[n], again[n]) for n in whole)
    shutil.rmtree(hub)
    model, tokenizer = models.load(str(folder / "model"))
    train, _ = data.load(recipe("gone", output).data)
    mark = image_token(model)
    assert mark is not None and models.encoder(model, tokenizer)(train[0]).count(mark)

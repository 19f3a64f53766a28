"""Supervised fine-tuning of the Hub's families that see, and of pictures in shapes of their own."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlavaNextImageProcessorPil

from posttrain import models
from posttrain.kinds import SftTrain
from posttrain.multimodal import inputs
from posttrain.picture import Picture
from posttrain.recipe import Vision
from posttrain.train import sft as module
from posttrain.train.sft import sft
from posttrain.train.sft_data import prepared, shown
from posttrain.types import PosttrainError, Prompt
from tests.vision.conftest import FAMILIES, family

pytest.importorskip("PIL")
from PIL import Image

pytestmark = pytest.mark.usefixtures("home", "one_process")

__all__ = ["family"]
SETTINGS = SftTrain(
    batch=4, rows=2, learning_rate=1e-3, schedule="constant", max_length=512, max_grad_norm=1e9
)
NATIVE = {"image_size": 64, "patch": 8, "width": 32, "depth": 1, "heads": 2}


def picture(seed: int, width: int, height: int) -> Picture:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Picture.of(Image.fromarray(pixels), f"{width} x {height}")


WIDE, HIGH = picture(1, 60, 30), picture(2, 24, 60)


def asked(*content: str | Picture, answer: str) -> dict[str, Any]:
    told = [
        {"type": "text", "text": one} if isinstance(one, str) else {"type": "image", "image": one}
        for one in content
    ]
    said = [{"role": "assistant", "content": answer}]
    return {"prompt": [{"role": "user", "content": told}], "completion": said}


EXAMPLES = [
    asked(WIDE, "What?", answer="wide"),
    asked("From ", WIDE, " to ", HIGH, "?", answer="turned"),
    asked("No picture.", answer="none"),
    {**asked("", answer="no parts"), "prompt": [{"role": "user", "content": "Words"}]},
]
ALONE = [EXAMPLES[0], asked(HIGH, "What?", answer="high"), *EXAMPLES[2:]]


def one_update(
    examples: Any, start: Any, settings: SftTrain, folder: Path, patch: pytest.MonkeyPatch
) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """Metrics and gradients of the first update."""
    grads: dict[str, torch.Tensor] = {}
    told: list[dict[str, float]] = []

    def look(self: Any, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if not grads:
            grads.update({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})

    patch.setattr(module._Watch, "on_pre_optimizer_step", look, raising=False)
    stop: Any = SimpleNamespace(asked=False, signal=15)
    model, tokenizer = start
    sft(
        examples,
        model,
        tokenizer,
        settings,
        folder,
        seed=3,
        compute=torch.float32,
        stop=stop,
        on_log=lambda update, updates, metrics: told.append(metrics),
    )
    return told[0], grads


def check_plain_forwards(examples: Any, start: Any, again: Any, folder: Path, rows: int, patch: Any) -> None:
    """Tokens are what rollouts see, and loss and gradients those of the model's own forward, row by row."""
    model, tokenizer = again
    encode, eyes = models.encoder(model, tokenizer), models.reader(model, tokenizer)
    settings = SETTINGS.model_copy(update={"rows": rows})
    made = prepared(examples, tokenizer, settings, eyes=eyes).to_list()
    assert [row["row"] for row in made] == list(range(len(examples)))
    total, count = torch.zeros(()), 0
    for row, example in zip(made, examples, strict=True):
        prompt = encode(Prompt("", example["prompt"], None))
        answer = row["input_ids"][len(prompt) :]
        assert row["input_ids"][: len(prompt)] == list(prompt)
        said = tokenizer.decode(answer, skip_special_tokens=True)
        assert said == example["completion"][0]["content"]
        assert row["labels"] == [-100] * len(prompt) + answer
        given = inputs(model, torch.tensor([row["input_ids"]]), [prompt])
        logits = model(**given, use_cache=False).logits[0].float().log_softmax(-1)
        for place, label in enumerate(row["labels"]):
            if label != -100:
                total, count = total - logits[place - 1, label], count + 1
    (total / count).backward()
    metrics, grads = one_update(examples, start, settings, folder, patch)
    assert metrics["loss"] == pytest.approx((total / count).item(), rel=1e-4)
    expected = {name: p.grad for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert any("vis" in name for name in expected)
    whole = torch.cat([grad.flatten() for grad in expected.values()]).norm()
    for name, grad in expected.items():  # a key's bias has none but rounding's
        assert (grads[name] - grad).norm() < 1e-3 * grad.norm() + 1e-5 * whole, name


@pytest.mark.parametrize("name", FAMILIES)
def test_loss_and_gradients_are_the_familys_own(
    family: Any, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    family(name).save(tmp_path / "model")
    start, again = (models.load(str(tmp_path / "model")) for _ in range(2))
    alone = name == "llava_next"
    check_plain_forwards(ALONE if alone else EXAMPLES, start, again, tmp_path / "run", 2 - alone, monkeypatch)


def native() -> Any:
    vision = Vision(tower="navit", settings=NATIVE, connector="mlp", resize="native", most_pixels=64 * 64)
    return models.load("tiny", vision=vision)


def test_pictures_in_shapes_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_plain_forwards(ALONE, native(), native(), tmp_path, 1, monkeypatch)


@pytest.mark.parametrize(
    ("examples", "rows", "words"),
    [(EXAMPLES[:1], 2, "set train.rows to 1"), (EXAMPLES, 1, "example 1 has several of them")],
)
@pytest.mark.parametrize("name", ["navit", "llava_next"])
def test_shapes_that_do_not_go_into_one_batch(
    family: Any, name: str, examples: Any, rows: int, words: str, tmp_path: Path
) -> None:
    model, tokenizer = native() if name == "navit" else models.load(family(name).save(tmp_path))
    settings = SETTINGS.model_copy(update={"rows": rows})
    with pytest.raises(PosttrainError, match=words):
        prepared(examples, tokenizer, settings, eyes=models.reader(model, tokenizer))


def test_shapes_that_vary_are_found_at_the_size_of_real_checkpoints(family: Any, tmp_path: Path) -> None:
    made = family("llava_next")
    made.processor.image_processor = LlavaNextImageProcessorPil()
    made.save(tmp_path)
    eyes: Any = models.reader(*models.load(str(tmp_path)))
    assert eyes.varies
    small, large = (
        eyes.seen(picture(0, *size))["pixel_values"].shape[1:] for size in ((640, 480), (999, 300))
    )
    assert small != large


@pytest.mark.parametrize("name", ["idefics3", "qwen2_vl"])
def test_a_picture_of_many_tokens_is_shown_as_one_mark(family: Any, name: str, tmp_path: Path) -> None:
    family(name).save(tmp_path)
    model, tokenizer = models.load(str(tmp_path))
    eyes: Any = models.reader(model, tokenizer)
    told = shown(EXAMPLES[1], tokenizer, SETTINGS, eyes=eyes)
    assert told.count(eyes.mark) == 2 and told.endswith("«turned<|end|>»"), told
    raw = {"prompt": "See <image>: ", "completion": "x", "images": [WIDE]}
    prompt = eyes(Prompt("", raw["prompt"], None, beside=(WIDE,)))
    row: Any = prepared([raw], tokenizer, SETTINGS, eyes=eyes)[0]
    assert row["input_ids"][: len(prompt)] == list(prompt)


def test_a_damaged_picture_is_named_before_any_update(tmp_path: Path, family: Any) -> None:
    family("qwen2_vl").save(tmp_path)
    model, tokenizer = models.load(str(tmp_path))
    broken = Picture(b"GIF89a", None)
    with pytest.raises(PosttrainError, match="no image"):
        prepared([asked(broken, answer="x")], tokenizer, SETTINGS, eyes=models.reader(model, tokenizer))


@pytest.mark.parametrize("name", ["llava", "qwen2_vl"])
def test_what_else_a_message_says_reaches_the_template(family: Any, name: str, tmp_path: Path) -> None:
    family(name).save(tmp_path)
    model, tokenizer = models.load(str(tmp_path))
    tokenizer.chat_template = f"{{{{ messages[0].name }}}}{tokenizer.chat_template}"
    eyes = models.reader(model, tokenizer)
    for example, answer in ((EXAMPLES[0], "wide"), (EXAMPLES[2], "none")):
        example = {**example, "prompt": [{**example["prompt"][0], "name": "Ada"}]}
        told = shown(example, tokenizer, SETTINGS, eyes=eyes)
        assert "Ada<|user|>" in told and told.endswith(f"«{answer}<|end|>»"), told

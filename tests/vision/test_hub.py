"""Processors of checkpoints that see: found, kept when saved, and what is said where one cannot be used."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor

from posttrain import data, models
from posttrain.multimodal import image_token
from posttrain.picture import Picture
from posttrain.recipe_data import Data
from posttrain.train import checkpoint
from posttrain.train.grpo import State
from posttrain.types import PosttrainError, Prompt
from posttrain.vision import hub
from posttrain.vision.processor import reads_parts

ALL = ("llava", "idefics3", "smolvlm", "internvl", "qwen2_vl", "qwen2_5_vl", "qwen3_vl")


@pytest.fixture
def png(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 24, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "one.png")
    return tmp_path / "one.png"


def mark_of(model: Any) -> int:
    mark = image_token(model)
    assert mark is not None
    return mark


def asking(picture: Picture, name: str = "train-3") -> Prompt:
    parts: list[Any] = [{"type": "image", "image": picture}, {"type": "text", "text": "What is it?"}]
    return Prompt(name, [{"role": "user", "content": parts}], None)


def encoded(folder: Path, prompt: Prompt) -> Any:
    model, tokenizer = models.load(str(folder))
    return models.encoder(model, tokenizer)(prompt)


@pytest.mark.parametrize("name", ALL)
def test_a_saved_folder_loads_alone(family: Any, name: str, tmp_path: Path, png: Path) -> None:
    prompt = asking(Picture(None, str(png)))
    first, second, third = tmp_path / "hub", tmp_path / "saved", tmp_path / "again"
    family(name).save(first)
    expected = encoded(first, prompt)
    model, tokenizer = models.load(str(first))
    shutil.rmtree(first)
    models.save(model, tokenizer, second)
    model, tokenizer = models.load(str(second))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    shutil.rmtree(second)
    state = State(step=3)
    third = checkpoint.save(tmp_path / "checkpoints", model, tokenizer, optimizer, state, 1)
    assert checkpoint.damage(third) is None
    found = encoded(third, prompt)
    assert list(found) == list(expected)
    for mine, theirs in zip(found.pictures, expected.pictures, strict=True):
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[key], theirs[key]) for key in mine)
    assert AutoImageProcessor.from_pretrained(third, backend="pil") is not None


def _apart(folder: Path, template: bool = True) -> None:
    """The files as older releases wrote them: one for the images, the template in JSON."""
    told = json.loads((folder / hub.PROCESSOR).read_text())
    images = told.pop("image_processor")
    named = {"processor_class": told["processor_class"]}
    (folder / hub.IMAGES).write_text(json.dumps(images | named))
    (folder / hub.PROCESSOR).write_text(json.dumps(told))
    if template:
        jinja = folder / "chat_template.jinja"
        (folder / hub.TEMPLATE).write_text(json.dumps({"chat_template": jinja.read_text()}))
        jinja.unlink()


@pytest.mark.parametrize("name", ["llava", "idefics3", "qwen2_vl"])
def test_what_the_tower_takes_for_nothing_is_known(family: Any, name: str, tmp_path: Path) -> None:
    family(name).save(tmp_path)
    encode: Any = models.encoder(*models.load(str(tmp_path)))
    assert encode.mean == tuple(encode._processor.image_processor.image_mean)


@pytest.mark.parametrize("name", ["llava", "idefics3", "qwen2_vl"])
def test_files_of_older_releases_are_read(family: Any, name: str, tmp_path: Path, png: Path) -> None:
    folder, prompt = tmp_path / "old", asking(Picture(None, str(png)))
    family(name).save(folder)
    expected = encoded(folder, prompt)
    _apart(folder)
    model, tokenizer = models.load(str(folder))
    assert tokenizer.chat_template is not None
    models.save(model, tokenizer, tmp_path / "saved")
    for where in (folder, tmp_path / "saved"):
        found = encoded(where, prompt)
        assert list(found) == list(expected)
        assert torch.equal(found.pictures[0]["pixel_values"], expected.pictures[0]["pixel_values"])


def test_a_checkpoint_without_a_processor_reads_words_alone(family: Any, tmp_path: Path, png: Path) -> None:
    folder = tmp_path / "model"
    family("qwen2_vl").save(folder)
    (folder / hub.PROCESSOR).unlink()
    words = Prompt("train-1", [{"role": "user", "content": "What is it?"}], None)
    assert len(encoded(folder, words)) > 10
    with pytest.raises(PosttrainError, match=r"train-3.*no processor.*preprocessor_config\.json"):
        encoded(folder, asking(Picture(None, str(png), "train-3")))


def test_a_processor_that_needs_what_is_not_here_says_so(family: Any, tmp_path: Path, png: Path) -> None:
    folder = tmp_path / "model"
    family("llava").save(folder)
    path = folder / hub.PROCESSOR
    told = json.loads(path.read_text())
    told["image_processor"]["image_processor_type"] = "Sam2ImageProcessor"  # one without a form for PIL
    path.write_text(json.dumps(told))
    with pytest.raises(PosttrainError, match=r"train-3.*does not run here.*[Tt]orchvision"):
        encoded(folder, asking(Picture(None, str(png), "train-3")))


def test_what_the_processor_refuses_names_the_row(family: Any, tmp_path: Path) -> None:
    family("qwen2_vl").save(tmp_path)
    thin = Picture.of(Image.new("RGB", (2010, 10)), "train-5")
    with pytest.raises(
        PosttrainError, match="train-5.*refuses the picture .*aspect ratio.*leave its row out"
    ):
        encoded(tmp_path, asking(thin))


def test_damaged_files_are_no_crash(family: Any, tmp_path: Path, png: Path) -> None:
    folder = tmp_path / "model"
    family("llava").save(folder)
    (folder / hub.PROCESSOR).write_text("{")
    with pytest.raises(PosttrainError, match="train-3.*does not run here"):
        encoded(folder, asking(Picture(None, str(png), "train-3")))


@pytest.mark.parametrize("name", ["llava", "qwen2_vl"])
def test_raw_text_has_its_pictures_where_it_says(family: Any, name: str, tmp_path: Path, png: Path) -> None:
    made = family(name)
    made.save(tmp_path / "model")
    model, tokenizer = models.load(str(tmp_path / "model"))
    picture = Picture(None, str(png))
    found = models.encoder(model, tokenizer)(Prompt("row", "It is <image>, is it?", None, beside=(picture,)))
    mark = made.processor.image_token
    around = f"<|vision_start|>{mark}<|vision_end|>" if name == "qwen2_vl" else mark
    theirs = made.processor(images=[picture.open()], text=[f"It is {around}, is it?"])
    assert list(found) == list(theirs["input_ids"][0])


@pytest.mark.parametrize(("words", "marks"), [("<|image_pad|> what?", 2), ("<|image_pad|>" * 2, 3)])
def test_marks_that_are_no_pictures_name_the_row(
    family: Any, tmp_path: Path, png: Path, words: str, marks: int
) -> None:
    family("qwen2_vl").save(tmp_path / "model")
    prompt = asking(Picture(None, str(png)))
    assert isinstance(prompt.content, list)
    content: Any = prompt.content[0]["content"]
    content[1]["text"] = words
    with pytest.raises(PosttrainError, match=rf"train-3 has 1 pictures.* has {marks} times <\|image_pad\|>"):
        encoded(tmp_path / "model", prompt)


def test_a_mark_without_any_picture_names_the_row(family: Any, tmp_path: Path) -> None:
    family("llava").save(tmp_path / "model")
    prompt = Prompt("train-9", [{"role": "user", "content": "what is <image>?"}], None)
    with pytest.raises(PosttrainError, match="train-9 has 0 pictures.* has 1 times <image>"):
        encoded(tmp_path / "model", prompt)


def test_a_template_that_reads_text_gets_text(family: Any, tmp_path: Path, png: Path) -> None:
    made = family("llava")
    made.tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}|{% endfor %}"
    made.save(tmp_path / "model")
    prompt = asking(Picture(None, str(png)))
    model, tokenizer = models.load(str(tmp_path / "model"))
    assert not reads_parts(tokenizer, "<image>")
    found = models.encoder(model, tokenizer)(prompt)
    assert found.count(mark_of(model)) == 16
    assert tokenizer.decode(found) == "<s>" + "<image>" * 16 + "What is it?|"


@pytest.mark.parametrize(
    ("template", "reads"),
    [
        (
            "{% for p in messages[0].content %}{{ '<image>' if p.type == 'image' else p.text }}{% endfor %}",
            True,
        ),
        ("{{ messages[0].content }}", False),
        ("{{ messages[0].content + 'x' }}", False),
        ("{{ messages[0].content | trim }}", False),
        ("{{ raise_exception('only text') }}", False),
        ("<image><image>words", False),
    ],
)
def test_what_a_template_reads_is_tried(family: Any, template: str, reads: bool) -> None:
    tokenizer = family("llava").tokenizer
    tokenizer.chat_template = template
    assert reads_parts(tokenizer, "<image>") is reads


def test_a_damaged_picture_names_its_row_all_the_way(family: Any, tmp_path: Path, png: Path) -> None:
    family("qwen2_vl").save(tmp_path / "model")
    model, tokenizer = models.load(str(tmp_path / "model"))
    (tmp_path / "cut.png").write_bytes(png.read_bytes()[:900])
    rows = [{"question": "Which?", "image": str(tmp_path / n), "answer": "1"} for n in ("one.png", "cut.png")]
    for name, some in (("train", rows), ("heldout", [rows[0] | {"question": "What?"}])):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, some)))
    sources = {name: {"source": str(tmp_path / f"{name}.jsonl")} for name in ("train", "heldout")}
    train, _ = data.load(Data.model_validate({"images": ["image"], **sources}))
    encode = models.encoder(model, tokenizer)
    assert encode(train[0]).count(mark_of(model))
    with pytest.raises(PosttrainError, match=r"data\.train, row 1.*cut\.png cannot be decoded"):
        encode(train[1])
    text, its = models.load("tiny")
    with pytest.raises(PosttrainError, match="train-0 shows a picture, but the model reads text alone"):
        models.encoder(text, its)(train[0])

"""What is measured of a model that sees: where it looked, its tower's health; small copies of pictures."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from posttrain import models
from posttrain.evaluate import looking
from posttrain.evaluate.drawn import Marks, marks
from posttrain.evaluate.shown import Shown
from posttrain.evaluate.thumbnails import keep, kept, small
from posttrain.picture import Picture
from posttrain.recipe import Vision
from posttrain.train.logprobs import Policy
from posttrain.types import Encoded, Prompt
from posttrain.vision.health import health
from posttrain.vision.importance import PREDICTED, TRUE
from tests.vision.conftest import family

__all__ = ["family"]

SETTINGS = {"image_size": 16, "patch": 4, "width": 16, "depth": 1, "heads": 2}


def seeing(connector: str = "mlp", tokens: int | None = None, resize: Any = "square") -> Any:
    vision = Vision(tower="vit", settings=SETTINGS, connector=connector, tokens=tokens, resize=resize)
    return models.load("tiny", vision=vision)


def picture(seed: int, size: tuple[int, int] = (16, 16)) -> Picture:
    noise = torch.randint(0, 256, (size[1], size[0], 3), generator=torch.Generator().manual_seed(seed))
    file = io.BytesIO()
    Image.fromarray(noise.byte().numpy()).save(file, "PNG")
    return Picture(file.getvalue())


def prompt(id: str, *pictures: Picture, answer: str | None = "3") -> Prompt:
    parts: list[Any] = [{"type": "image", "image": one} for one in pictures]
    return Prompt(id, [{"role": "user", "content": [*parts, {"type": "text", "text": "how many?"}]}], answer)


def plainly(model: Any, encoded: Encoded, answer: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Image embeddings [n, H] and the gradient of the answer's log-probability, by the model's own way."""
    kept: list[torch.Tensor] = []

    def keep_output(_: Any, __: Any, out: torch.Tensor) -> torch.Tensor:
        kept.append(out.detach().requires_grad_())
        return kept[0]

    handle = model.model.multi_modal_projector.register_forward_hook(keep_output)
    ids = torch.tensor([[*encoded, *answer]])
    logits = model(input_ids=ids, pixel_values=encoded.pictures[0]["pixel_values"]).logits[0]
    handle.remove()
    logits = logits[len(encoded) - 1 : -1].clone()
    logits[:, model.config.image_token_id] = -torch.inf
    total = logits.log_softmax(-1)[range(len(answer)), answer].sum()
    [gradient] = torch.autograd.grad(total, kept)
    return kept[0][0].detach(), gradient[0]


@pytest.mark.parametrize(("connector", "tokens"), [("mlp", None), ("pixel_shuffle", 4), ("merge", 5)])
def test_scores_are_those_of_a_plain_forward(connector: str, tokens: int | None) -> None:
    model, tokenizer = seeing(connector, tokens)
    encode: Any = models.encoder(model, tokenizer)
    encoded, answer = encode(prompt("0", picture(1))), tokenizer.encode("It is 3")
    embedded, gradient = plainly(model, encoded, answer)
    expected = (embedded * gradient).sum(-1)
    Policy(model)  # switches the attention, as in a run
    scores, grid = looking._scores(model, encoded, answer)  # pyright: ignore[reportGeneralTypeIssues]
    assert grid == (4, 4) and scores.shape == (16,)
    torch.testing.assert_close(scores.sum(), expected.sum(), atol=1e-5, rtol=1e-4)
    if tokens is None:
        torch.testing.assert_close(scores, expected, atol=1e-6, rtol=1e-3)
    if connector == "pixel_shuffle":  # a token is the square of its four patches, a quarter each
        torch.testing.assert_close(
            scores.view(4, 4)[:2, :2], (expected[0] / 4).expand(2, 2), atol=1e-6, rtol=1e-3
        )
    assert all(parameter.grad is None for parameter in model.parameters()), "training's gradients"


def test_a_resampler_is_followed_to_the_towers_tokens() -> None:
    model, tokenizer = seeing("resampler", 3)
    encode: Any = models.encoder(model, tokenizer)
    encoded, answer = encode(prompt("0", picture(1))), tokenizer.encode("3")
    scores, grid = looking._scores(model, encoded, answer)  # pyright: ignore[reportGeneralTypeIssues]
    assert grid == (4, 4) and scores.shape == (16,) and float(scores.abs().sum()) > 0


def test_the_drawing_has_the_boxes_where_they_belong() -> None:
    model, tokenizer = seeing()
    encode: Any = models.encoder(model, tokenizer)
    shown = prompt("0", picture(1, (32, 64)))  # the tower gets 16 x 16: half as wide, a quarter as high
    drawn = Marks([(8.0, 16.0, 24.0, 48.0)], [(16.0, 16.0, 24.0, 32.0)])
    made = looking.where_it_looked(model, encode, shown, "It is 3", drawn)
    assert made is not None
    image = Image.open(io.BytesIO(made)).convert("RGB")
    assert image.size == (256, 256 + 24)  # 16 pixels as 256, above the legend
    # (8, 16) to (24, 48) are (4, 4) to (12, 12) for the tower, and 64 to 192 here.
    assert image.getpixel((66, 150)) == TRUE and image.getpixel((150, 190)) == TRUE
    # (16, 16) to (24, 32): 128 to 192, and 64 to 128.
    assert image.getpixel((129, 100)) == PREDICTED and image.getpixel((160, 127)) == PREDICTED
    inside, outside = image.getpixel((100, 100)), image.getpixel((220, 220))
    assert {inside, outside}.isdisjoint({TRUE, PREDICTED})
    assert looking.where_it_looked(model, encode, shown, "", Marks()) is None
    two = prompt("1", picture(1), picture(2))
    assert looking.where_it_looked(model, encode, two, "3", Marks()) is None


@pytest.mark.parametrize("resize", ["fit", "crop"])
def test_the_drawing_is_of_what_the_tower_got(resize: str) -> None:
    model, tokenizer = seeing(resize=resize)
    encode: Any = models.encoder(model, tokenizer)
    made = looking.where_it_looked(model, encode, prompt("0", picture(1, (64, 32))), "3", Marks())
    assert made is not None and Image.open(io.BytesIO(made)).size == (256, 256)


def test_health_is_of_the_towers_own_tokens() -> None:
    model, tokenizer = seeing("pixel_shuffle", 4)
    encode: Any = models.encoder(model, tokenizer)
    asked = [prompt("w"), prompt("0", picture(0)), prompt("1", picture(1), picture(2))]
    tokens = looking.tower_tokens(model, asked, encode)
    assert tokens is not None and tokens.shape == (3, 16, 16)
    pixels = torch.cat([encode(prompt("x", picture(i))).pictures[0]["pixel_values"] for i in range(3)])
    with torch.no_grad():
        torch.testing.assert_close(tokens, model.model.vision_tower(pixels).last_hidden_state)
    assert looking.tower_tokens(model, asked[:1], encode) is None
    many = looking.tower_tokens(model, [prompt("m", *[picture(0)] * 70)], encode)
    assert many is not None and len(many) == looking.PICTURES


def test_a_towers_record_can_be_written_and_tells_of_a_fall() -> None:
    torch.manual_seed(0)
    tokens = torch.randn(4, 8, 16)
    first = looking.tower_record(tokens, None)
    assert first["alarms"] == [] and first["rank"] == health(tokens)["rank"]
    grown = looking.tower_record(10 * tokens, json.loads(json.dumps(first)))
    [alarm] = grown["alarms"]
    assert "mean length" in alarm
    one = looking.tower_record(tokens[:1], None)
    assert one["cosine"] is None, "of one picture there is none"
    assert looking.tower_record(tokens[:1], one)["alarms"] == []
    broken = looking.tower_record(tokens * math.nan, first)
    assert "NaN" in broken["alarms"][0]
    json.dumps(broken, allow_nan=False)


# --- copies ---


def test_a_copy_is_small_and_named_by_what_it_shows(tmp_path: Path) -> None:
    large = picture(0, (400, 300))
    record = keep(tmp_path, large)
    assert record == {"digest": large.digest[:16], "size": [400, 300]}
    [file] = (tmp_path / "pictures").iterdir()
    assert Image.open(file).size == (192, 144)
    assert file.suffix == ".jpg", "noise is smaller so"
    assert keep(tmp_path, large) == record and len([*file.parent.iterdir()]) == 1
    assert (kept(tmp_path, record["digest"]) or "").startswith("data:image/jpeg;base64,")
    assert kept(tmp_path, "0" * 16) is None
    flat = io.BytesIO()
    Image.new("RGB", (5, 9), "red").save(flat, "PNG")
    data, kind, size = small(Picture(flat.getvalue()))
    assert kind == "png" and size == (5, 9) and Image.open(io.BytesIO(data)).getpixel((2, 2)) == (255, 0, 0)


def test_records_name_pictures_and_hold_none(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(looking, "COPIES", 1)
    asked = [prompt("w"), prompt("0", picture(0), picture(1)), prompt("1", picture(2))]
    records: list[dict[str, Any]] = [{"id": one.id} for one in asked]
    looking.keep_pictures(tmp_path, asked, records)
    assert "pictures" not in records[0]
    assert [one["size"] for one in records[1]["pictures"]] == [[16, 16]] * 2
    assert records[2]["pictures"] == [{"digest": picture(2).digest[:16]}]
    assert len([*(tmp_path / "pictures").iterdir()]) == 2
    assert max(len(json.dumps(record)) for record in records) < 200


def test_where_it_looked_is_kept_for_few_that_the_report_shows(tmp_path: Path) -> None:
    model, tokenizer = seeing()
    encode: Any = models.encoder(model, tokenizer)
    asked = [prompt("w"), *(prompt(str(i), picture(i)) for i in range(9))]
    records: list[dict[str, Any]] = [
        {"id": one.id, "completion": "3", "strict": i % 2 == 0, "answer": "3"} for i, one in enumerate(asked)
    ]
    (tmp_path / "samples.jsonl").write_text("")
    looking.keep_where_it_looked(tmp_path, model, encode, asked, records)
    named = [record["looked"] for record in records if "looked" in record]
    assert len(named) == len(set(named)) == looking.LOOKED - 1, "one of the six shows no picture"
    assert all((tmp_path / "pictures" / f"{name}.png").is_file() for name in named)
    assert "looked" not in records[0]


def test_two_questions_about_one_picture_have_a_drawing_each(tmp_path: Path) -> None:
    model, tokenizer = seeing()
    asked = [prompt(str(i), picture(0)) for i in range(2)]
    records: list[dict[str, Any]] = [
        {"id": one.id, "completion": str(i), "strict": True, "answer": "3"} for i, one in enumerate(asked)
    ]
    (tmp_path / "samples.jsonl").write_text("")
    looking.keep_where_it_looked(tmp_path, model, models.encoder(model, tokenizer), asked, records)
    drawn = {(tmp_path / "pictures" / f"{record['looked']}.png").read_bytes() for record in records}
    assert len(drawn) == 2
    looking.keep_pictures(tmp_path, asked, records)
    shown = Shown([tmp_path])
    assert all("Where the model looked" in shown.said(record) for record in records)


@pytest.mark.parametrize(
    ("name", "size", "drawn"),
    [
        ("llava", (32, 32), True),
        ("llava", (64, 32), False),  # its sides are cut off
        ("internvl", (32, 32), True),
        ("internvl", (96, 32), False),  # three tiles and the whole: 4 x 4 tokens that are no grid
    ],
)
def test_a_familys_picture_is_drawn_where_it_saw_all_of_it(
    family: Any, name: str, size: tuple[int, int], drawn: bool, tmp_path: Path
) -> None:
    model, tokenizer = models.load(family(name).save(tmp_path))
    encode: Any = models.encoder(model, tokenizer)
    Policy(model.eval())
    asked = prompt("0", picture(1, size))
    assert math.isqrt(count := encode(asked).count(encode.token)) ** 2 == count
    made = looking.where_it_looked(model, encode, asked, "3", Marks())
    assert (made is not None) is drawn


def test_many_tokens_of_a_picture_are_thinned_out(monkeypatch: Any) -> None:
    model, tokenizer = seeing()
    monkeypatch.setattr(looking, "TOKENS", 6)
    tokens = looking.tower_tokens(model, [prompt("0", picture(0))], models.encoder(model, tokenizer))
    assert tokens is not None and tokens.shape == (1, 6, 16), "every third of 16"


# --- what an answer points at ---

SIZE = (100, 50)


def sample(answer: Any, completion: str, text: str = "Where? In pixels.") -> dict[str, Any]:
    return {"answer": answer, "completion": completion, "prompt": text}


def test_boxes_are_read_as_the_rewards_read_them() -> None:
    found = marks(sample("[1, 2, 30, 40]", "hm [0, 0, 1, 1]\n<answer>[3, 4, 5, 6]</answer>"), SIZE)
    assert found == Marks([(1, 2, 30, 40)], [(3, 4, 5, 6)])
    assert marks(sample([1, 2, 30, 40], "at (7, 8)"), SIZE) == Marks([(1, 2, 30, 40)], [], (7, 8))
    assert marks(sample("[1, 2, 30, 40]", "[9, 9, 3, 3]"), SIZE).predicted == [], "swapped corners"
    assert marks(sample("[1, 2, 30, 40]", ""), SIZE) == Marks([(1, 2, 30, 40)])


def test_boxes_in_shares_and_per_cent_come_to_pixels() -> None:
    shares = marks(sample("[0.1, 0.2, 0.5, 1.0]", "[0, 0, 0.5, 0.5]"), SIZE)
    assert shares == Marks([(10, 10, 50, 50)], [(0, 0, 50, 25)])
    percent = marks(sample("[10, 20, 50, 100]", "[10, 20]", "in whole percent of its width"), SIZE)
    assert percent == Marks([(10, 10, 50, 50)], [], (10, 10))


def test_several_boxes_are_read_from_json() -> None:
    gold = '[{"box": [1, 1, 2, 2], "label": "a"}, {"bbox_2d": [3, 3, 4, 4], "label": "b"}]'
    found = marks(sample(gold, 'So: [{"box": [5, 5, 6, 6]}, {"box": "no"}]'), SIZE)
    assert found == Marks([(1, 1, 2, 2), (3, 3, 4, 4)], [(5, 5, 6, 6)])
    assert marks(sample(gold, "none"), SIZE).predicted == []


@pytest.mark.parametrize(
    "answer",
    [None, "", "12", "[1, 2]", "[1, 2, 300, 400]", "[[[[", "{}", 7, "[1, 2, NaN, 4]", "[true, 1, 2, 3]"],
)
def test_what_is_no_box_in_the_picture_draws_nothing(answer: Any) -> None:
    assert marks(sample(answer, "[1, 2, 3, 4]"), SIZE) == Marks()

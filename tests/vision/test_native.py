"""Pictures of their own sizes in front of a language model: tokens, features, packed rows, generation."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from posttrain import models
from posttrain.harness.blind import blank, nothing_of
from posttrain.multimodal import features, image_token
from posttrain.picture import Picture
from posttrain.recipe import Model, Vision
from posttrain.rollout.native import NativeEngine
from posttrain.rollout.plain import PlainEngine
from posttrain.train.logprobs import Policy, padded_logprobs
from posttrain.train.packing import TrainGroup, TrainRow, pack
from posttrain.types import PosttrainError, Prompt, Sampling

SMALL = {"image_size": 32, "patch": 8, "width": 16, "depth": 1, "heads": 2}
SIZES = ((32, 32), (16, 40), (9, 50), (400, 100), (3, 3))  # height, width; the fourth is over the bound
GRIDS = ((4, 4), (2, 5), (1, 6), (8, 2), (1, 1))


def picture(height: int, width: int) -> Picture:
    pixels = np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return Picture(file.getvalue())


def opened(connector: str = "mlp", tokens: int | None = None, **more: Any) -> tuple[Any, Any]:
    asked: dict[str, Any] = {"tower": "navit", "settings": SMALL, "resize": "native"} | more
    model, tokenizer = models.load("tiny", vision=Vision(connector=connector, tokens=tokens, **asked))
    with torch.no_grad():  # fresh weights say little
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)
    return model.eval(), tokenizer


def asked(*sizes: tuple[int, int]) -> Prompt:
    parts: list[Any] = [{"type": "image", "image": picture(*size)} for size in sizes]
    return Prompt("row", [{"role": "user", "content": [*parts, {"type": "text", "text": "why?"}]}], None)


@pytest.mark.parametrize(
    ("connector", "tokens", "expected"),
    [
        ("mlp", None, [16, 10, 6, 16, 1]),
        ("linear", None, [16, 10, 6, 16, 1]),
        ("resampler", 5, [5, 5, 5, 5, 5]),
        ("merge", 6, [6, 6, 6, 6, 1]),
        ("pixel_shuffle", 4, [4, 2, 3, 4, 1]),
    ],
)
def test_a_picture_comes_to_the_tokens_of_its_own_grid(
    home: Path, connector: str, tokens: int | None, expected: list[int]
) -> None:
    model, tokenizer = opened(connector, tokens)
    encode: Any = models.encoder(model, tokenizer)
    found = [encode(asked(size)) for size in SIZES]
    assert [f.count(image_token(model)) for f in found] == expected
    shapes = [tuple(f.pictures[0]["pixel_values"].shape[-2:]) for f in found]
    if connector != "pixel_shuffle":
        assert shapes == [(8 * rows, 8 * columns) for rows, columns in GRIDS]
    assert all(height * width <= 32 * 32 for height, width in shapes)
    with torch.no_grad():
        for f, count in zip(found, expected, strict=True):
            assert features(model, f.pictures, count).shape == (count, 64)


@pytest.mark.parametrize("connector", ["mlp", "resampler"])
def test_pictures_of_many_sizes_in_one_row_equal_them_one_by_one(home: Path, connector: str) -> None:
    model, tokenizer = opened(connector, 5 if connector == "resampler" else None)
    encode: Any = models.encoder(model, tokenizer)
    prompts = [encode(asked(*some)) for some in (SIZES[:1], SIZES[1:3], (SIZES[4], SIZES[0], SIZES[3]))]
    rows = [TrainRow([20, 21, 1], [0.0] * 3, 1.0, 0.3), TrainRow([30, 1], [0.0] * 2, -1.0, 0.3)]
    policy = Policy(model)
    assert policy.packed, policy.why_not
    groups = [TrainGroup(prompt, rows) for prompt in prompts]

    def learnt(run: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        model.zero_grad()
        logp = run()
        logp.square().sum().backward()
        return logp.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    together = learnt(lambda: policy(pack(groups))[0])
    alone = learnt(lambda: torch.cat([policy(pack([group]))[0] for group in groups]))
    plain, _ = opened(connector, 5 if connector == "resampler" else None)
    padded, _ = padded_logprobs(plain, pack(groups))  # several shapes: the pictures go in as embeddings
    single = torch.cat(
        [padded_logprobs(plain, pack([TrainGroup(g.prompt, [r])]))[0] for g in groups for r in g.rows]
    )
    torch.testing.assert_close(together[0], alone[0], atol=1e-4, rtol=0)
    torch.testing.assert_close(together[0], padded.detach(), atol=1e-4, rtol=0)
    torch.testing.assert_close(padded, single, atol=1e-4, rtol=0)
    assert together[1].keys() == alone[1].keys()
    assert any("vision_tower" in name for name in together[1])
    for name, grad in together[1].items():
        torch.testing.assert_close(grad, alone[1][name], atol=1e-4, rtol=1e-3, msg=name)


def test_engines_agree_on_what_follows_pictures_of_many_sizes(home: Path) -> None:
    model, tokenizer = opened()
    plain, _ = opened()
    encode: Any = models.encoder(model, tokenizer)
    prompts = [encode(asked(*some)) for some in (SIZES[:1], SIZES[1:4])]
    greedy = Sampling(8, temperature=0.0)
    engines = [
        NativeEngine(model, tokenizer, torch.float32, layers=Policy(model).layers),
        PlainEngine(plain, tokenizer, torch.float32),
    ]
    native, own = [e.generate(prompts, 2, greedy, [1, 2]) for e in engines]
    assert [c.tokens for g in native for c in g] == [c.tokens for g in own for c in g]


def test_it_is_saved_with_the_model(home: Path, tmp_path: Path) -> None:
    model, tokenizer = opened(most_pixels=640)
    models.save(model, tokenizer, tmp_path / "model")
    again, its = models.load(str(tmp_path / "model"))
    prompt = asked((32, 32))
    first: Any = models.encoder(model, tokenizer)(prompt)
    second: Any = models.encoder(again, its)(prompt)
    assert first.count(image_token(model)) == 9, "640 pixels hold 3 x 3 patches of 8 x 8"
    assert list(first) == list(second)
    with torch.no_grad():
        torch.testing.assert_close(features(model, first.pictures, 9), features(again, second.pictures, 9))


def test_settings_that_do_not_fit_are_refused(home: Path) -> None:
    with pytest.raises(PosttrainError, match="60 pixels do not hold one patch of 8 x 8"):
        opened(most_pixels=60)
    with pytest.raises(ValidationError, match="most_pixels"):
        Vision(tower="navit", most_pixels=1000)


@pytest.mark.parametrize("resize", ["native", "fit"])
def test_the_tokens_of_a_picture_alone_are_those_in_its_prompt(home: Path, resize: Any) -> None:
    encode: Any = models.encoder(*opened(resize=resize))
    told = [encode.tokens(picture(*size)) for size in SIZES]
    assert [len(some) for some in told] == [encode(asked(size)).count(encode.token) for size in SIZES]
    assert (len({len(some) for some in told}) > 1) == (resize == "native")


@pytest.mark.parametrize(
    ("name", "settings"),
    [("trident", {"patch": 8, "depth": 1}), ("efficientnet", {"stride": 8, "width": 0.5})],
)
def test_towers_that_norm_over_a_batch_take_the_smallest_picture(
    home: Path, name: str, settings: dict[str, Any]
) -> None:
    eyes = Vision(tower=name, settings={"image_size": 32, **settings}, resize="native")
    models.check(Model(name="tiny", vision=eyes))
    model, tokenizer = models.load("tiny", vision=eyes)
    encode: Any = models.encoder(model, tokenizer)
    found = encode(asked((8, 8)))
    assert found.count(image_token(model)) == 1
    with torch.no_grad():
        assert features(model, found.pictures, 1).isfinite().all()


def test_a_tower_of_one_size_is_refused(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from posttrain.vision.towers.navit import NaViTTower

    def refuse(self: Any, pixels: torch.Tensor) -> torch.Tensor:
        if pixels.shape[-1] != pixels.shape[-2]:
            raise PosttrainError("squares alone")
        return pixels  # nobody looks at them

    monkeypatch.setattr(NaViTTower, "forward", refuse)
    with pytest.raises(
        PosttrainError, match=r"'navit' does not take one of 32 x 40 pixels \(squares alone\)"
    ):
        opened()


def test_a_blank_picture_has_the_towers_mean() -> None:
    model, tokenizer = opened(settings=SMALL | {"mean": [1.0, 0.5, 0.0]})
    answerer: Any = SimpleNamespace(encode=models.encoder(model, tokenizer))
    assert nothing_of(answerer) == (255, 128, 0)
    nothing = answerer.encode.pixels(blank(picture(8, 8), nothing_of(answerer)).open())
    assert nothing.abs().max() < 0.01

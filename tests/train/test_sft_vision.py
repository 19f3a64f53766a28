"""Supervised fine-tuning of models that see: tokens, pixels, rates, adapters, and runs that go on."""

from __future__ import annotations

import itertools
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from posttrain import models
from posttrain.kinds import Lora, SftTrain
from posttrain.multimodal import parts
from posttrain.picture import Picture
from posttrain.recipe import Vision
from posttrain.stop import Stopped
from posttrain.train import sft as module
from posttrain.train.sft import sft
from posttrain.train.sft_data import prepared, shown
from posttrain.types import Encoded, PosttrainError, Prompt

pytest.importorskip("PIL")
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent.parent

pytestmark = pytest.mark.usefixtures("home", "one_process")

TOWER = {"image_size": 32, "patch": 8, "width": 32, "depth": 2, "heads": 2}
TOKENS = 4  # of a picture
SETTINGS = SftTrain(batch=4, rows=2, learning_rate=1e-2, schedule="linear", max_length=96)
Example = dict[str, Any]


def picture(color: Any, size: int = 20) -> Picture:
    return Picture.of(Image.new("RGB", (size, size), color), "here")


RED, BLUE, GREEN = (picture(color) for color in ("red", "blue", "green"))


def chat(*content: str | Picture, answer: str = "") -> Example:
    """An example whose question is texts and pictures."""
    told: Any = [
        {"type": "text", "text": one} if isinstance(one, str) else {"type": "image", "image": one}
        for one in content
    ]
    if all(isinstance(one, str) for one in content):
        told = "".join(map(str, content))
    said = [{"role": "assistant", "content": answer}]
    return {"prompt": [{"role": "user", "content": told}], "completion": said}


MIXED = [
    chat(RED, "Which colour?", answer="red"),
    chat("No picture here.", answer="none"),
    chat("From ", BLUE, " to ", GREEN, "?", answer="blue to green"),
    chat("Hi", answer="ho"),
    chat("Still none.", answer="so it is"),
    chat(BLUE, "Which?", answer="blue"),
    chat("A", answer="B"),
]


def seeing(dropout: float = 0.0, tower: str = "vit", **settings: Any) -> tuple[Any, PreTrainedTokenizerFast]:
    vision = Vision(tower=tower, settings=settings or TOWER, connector="pixel_shuffle", tokens=TOKENS)
    model, tokenizer = models.load("tiny", vision=vision)
    model.config.get_text_config().attention_dropout = dropout
    for layer in model.model.language_model.layers:  # pyright: ignore
        layer.self_attn.attention_dropout = dropout
    return model, tokenizer


@pytest.fixture(scope="module")
def eyes(_home: Path) -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("POSTTRAIN_HOME", str(_home))
        yield models.reader(*seeing())


class Run:
    """One call of sft: .model or .stopped, .curve of (update, metrics), .before the weights it began with."""

    def __init__(
        self,
        folder: Path,
        settings: SftTrain = SETTINGS,
        examples: Any = MIXED,
        ask_at: int | None = None,
        start: tuple[Any, PreTrainedTokenizerFast] | None = None,
    ):
        stop: Any = SimpleNamespace(asked=ask_at == 0, signal=15)
        self.curve: list[tuple[int, dict[str, float]]] = []
        self.model, self.stopped = None, False

        def on_log(update: int, updates: int, metrics: dict[str, float]) -> None:
            self.curve.append((update, metrics))
            stop.asked = stop.asked or update == ask_at

        model, self.tokenizer = start or seeing()
        self.before = {name: value.clone() for name, value in model.state_dict().items()}
        try:
            self.model: Any = sft(
                examples,
                model,
                self.tokenizer,
                settings,
                folder,
                seed=3,
                compute=torch.float32,
                stop=stop,
                on_log=on_log,
            )
        except Stopped:
            self.stopped = True

    def moved(self) -> set[str]:
        """The parts of which a weight or a buffer is another now."""
        after = self.model.state_dict()
        assert after.keys() == self.before.keys()
        names = [name for name in after if not torch.equal(after[name], self.before[name])]
        found = {"vision_tower": "tower", "multi_modal_projector": "connector"}
        return {
            next((part for inside, part in found.items() if inside in name), "language") for name in names
        }


def same_weights(a: Any, b: Any) -> bool:
    one, other = a.state_dict(), b.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


# -- tokens


def said(user: Any, assistant: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]


@pytest.mark.parametrize("loss", ["completion", "all"])
@pytest.mark.parametrize("most", [96, 20])
@pytest.mark.parametrize(
    "examples",
    [
        [{"prompt": "2 + 3 = ", "completion": "5"}, {"prompt": "q " * 40, "completion": "long"}],
        [chat("Hi", answer="ho"), chat("Hello there, you", answer="What a long answer"), chat("", answer="")],
    ],
)
def test_words_alone_become_what_trl_makes_of_them(
    eyes: Any, examples: list[Example], most: int, loss: Any
) -> None:
    settings = SETTINGS.model_copy(update={"max_length": most, "loss": loss})
    expected = prepared(examples, eyes.tokenizer, settings)
    assert prepared(examples, eyes.tokenizer, settings, eyes=eyes).to_list() == expected.to_list()


def test_tokens_are_the_prompts_and_the_answers_and_the_answers_alone_carry_loss(eyes: Any) -> None:
    rows = prepared(MIXED, eyes.tokenizer, SETTINGS, eyes=eyes).to_list()
    assert [row["row"] for row in rows] == list(range(len(MIXED)))
    for row, example in zip(rows, MIXED, strict=True):
        prompt = list(eyes(Prompt("", example["prompt"], None)))
        answer = [*eyes.tokenizer.encode(example["completion"][0]["content"]), eyes.tokenizer.eos_token_id]
        assert row["input_ids"] == prompt + answer
        assert row["labels"] == [-100] * len(prompt) + answer
    assert [row["input_ids"].count(eyes.token) for row in rows[:3]] == [TOKENS, 0, 2 * TOKENS]
    everything = prepared(
        MIXED, eyes.tokenizer, SETTINGS.model_copy(update={"loss": "all"}), eyes=eyes
    ).to_list()
    for row in everything:
        assert row["labels"] == [-100 if i == eyes.token else i for i in row["input_ids"]]


def test_raw_texts_and_conversations_have_pictures_too(eyes: Any) -> None:
    raw = [
        {"prompt": "<image>What? ", "completion": "red", "images": [RED]},
        {"prompt": "a", "completion": "b"},
    ]
    rows: Any = prepared(raw, eyes.tokenizer, SETTINGS, eyes=eyes)
    encoded = eyes(Prompt("", "<image>What? ", None, beside=(RED,)))
    assert isinstance(encoded, Encoded) and rows[0]["input_ids"][: len(encoded)] == list(encoded)
    assert rows[1]["input_ids"] == [*eyes.tokenizer.encode("ab"), eyes.tokenizer.eos_token_id]
    parts_ = [{"type": "image", "image": RED}, {"type": "text", "text": "What?"}]
    talk = [{"messages": [*said(parts_, "red"), *said("Sure?", "yes")]}]
    rows = prepared(talk, eyes.tokenizer, SETTINGS.model_copy(update={"loss": "all"}), eyes=eyes)
    assert rows[0]["input_ids"].count(eyes.token) == TOKENS


def test_a_picture_is_shown_as_one_mark(eyes: Any) -> None:
    told = shown(MIXED[2], eyes.tokenizer, SETTINGS, eyes=eyes)
    assert told == "<|user|>From <image> to <image>?<|end|><|assistant|>«blue to green<|end|>»"
    two = shown(chat(RED, RED, "?", answer="both"), eyes.tokenizer, SETTINGS, eyes=eyes)
    assert two == "<|user|><image><image>?<|end|><|assistant|>«both<|end|>»"


def test_no_picture_is_cut(tmp_path: Path, eyes: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A row that loses a token of a picture is left out; one that loses some of its answer is cut."""
    settings = SETTINGS.model_copy(update={"max_length": 24, "loss": "all"})
    late = chat("twenty letters are it", RED, answer="x")  # its picture stands on the limit
    cut = chat(RED, "Which?", answer="one that is too long")
    rows = prepared([late, cut, MIXED[3]], eyes.tokenizer, settings, eyes=eyes).to_list()
    assert [row["row"] for row in rows] == [1, 2] and len(rows[0]["input_ids"]) == 24
    with caplog.at_level(logging.WARNING, "posttrain"):
        run = Run(tmp_path, settings, [late, cut, *MIXED])
    assert "left out: 0" in caplog.text and run.model is not None


@pytest.mark.parametrize(
    ("examples", "change", "words"),
    [
        ([chat("an <image> that is none", answer="x")], {}, "0 pictures, but its text has 1 times"),
        ([chat(RED, "x", answer="an <image>")], {}, "example 0 has 1 pictures, but its text has 2 times"),
        ([MIXED[1], MIXED[0]], {"packing": True}, "packing: rows with pictures are not packed"),
    ],
)
def test_what_is_refused(eyes: Any, examples: Any, change: Any, words: str) -> None:
    with pytest.raises(PosttrainError, match=words):
        prepared(examples, eyes.tokenizer, SETTINGS.model_copy(update=change), eyes=eyes)


def test_a_model_of_words_alone_refuses_pictures(tmp_path: Path) -> None:
    with pytest.raises(PosttrainError, match="example 2 shows a picture, but the model reads text alone"):
        Run(tmp_path, examples=[MIXED[1], MIXED[3], MIXED[0]], start=models.load("tiny"))


def test_words_alone_are_packed_for_a_model_that_sees(tmp_path: Path) -> None:
    words = [example for example in MIXED if isinstance(example["prompt"][0]["content"], str)]
    settings = SETTINGS.model_copy(update={"packing": True, "batch": 1, "rows": 1})
    run = Run(tmp_path, settings, words)
    assert run.moved() == {"language"}


# -- the loss


def test_loss_and_gradient_are_a_plain_forwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Accumulated over batches with two pictures in a row, with one, and with none."""
    grads: dict[str, torch.Tensor] = {}

    def look(self: Any, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        grads.update({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})

    monkeypatch.setattr(module._Watch, "on_pre_optimizer_step", look, raising=False)
    settings = SETTINGS.model_copy(update={"batch": 8, "rows": 2, "max_grad_norm": 1e9})
    run = Run(tmp_path, settings)
    model, tokenizer = seeing()
    eyes: Any = models.reader(model, tokenizer)
    rows = prepared(MIXED, tokenizer, settings, eyes=eyes).to_list()
    total, count = torch.zeros(()), 0
    for row, example in zip(rows, MIXED, strict=True):
        encoded = eyes(Prompt("", example["prompt"], None))
        pixels = [seen["pixel_values"] for seen in getattr(encoded, "pictures", ())]
        more = {"pixel_values": torch.cat(pixels)} if pixels else {}
        logits = model(torch.tensor([row["input_ids"]]), **more).logits[0].log_softmax(-1)
        for place, label in enumerate(row["labels"]):
            if label != -100:
                total, count = total - logits[place - 1, label], count + 1
    (total / count).backward()
    assert len(run.curve) == 1 and run.curve[0][1]["loss"] == pytest.approx((total / count).item(), abs=1e-4)
    expected = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert grads.keys() == expected.keys() and any("vision_tower" in name for name in grads)
    for name, grad in expected.items():
        torch.testing.assert_close(grads[name], grad, atol=1e-6, rtol=1e-3, msg=name)


def test_padding_changes_nothing(tmp_path: Path) -> None:
    """Rows of unlike length side by side have the loss that each has by itself."""
    alone = Run(tmp_path / "alone", SETTINGS.model_copy(update={"batch": 8, "rows": 1}))
    beside = Run(tmp_path / "beside", SETTINGS.model_copy(update={"batch": 8, "rows": 8}))
    assert alone.curve[0][1]["loss"] == pytest.approx(beside.curve[0][1]["loss"], abs=1e-5)
    assert alone.curve[0][1]["grad_norm"] == pytest.approx(beside.curve[0][1]["grad_norm"], rel=1e-4)


def test_a_tiny_model_learns_two_colours(tmp_path: Path) -> None:
    shades = [40, 60, 80, 100]
    reds = [picture((255, shade, shade)) for shade in shades]
    blues = [picture((shade, shade, 255)) for shade in shades]
    examples = [
        chat(one, "Colour?", answer=name)
        for pair in zip(reds, blues, strict=True)
        for one, name in zip(pair, ("red", "blue"), strict=True)
    ]
    settings = SETTINGS.model_copy(update={"epochs": 40.0, "batch": 8, "rows": 8})
    run = Run(tmp_path, settings, examples)
    assert run.curve[-1][1]["mean_token_accuracy"] == 1.0
    encode = models.encoder(run.model, run.tokenizer)
    for example in examples:
        encoded: Any = encode(Prompt("", example["prompt"], None))
        pixels = encoded.pictures[0]["pixel_values"]
        made = run.model.generate(torch.tensor([encoded]), pixel_values=pixels, max_new_tokens=5)
        text = run.tokenizer.decode(made[0, len(encoded) :], skip_special_tokens=True)
        assert text == example["completion"][0]["content"]


# -- rates and adapters


@pytest.mark.parametrize(
    ("rates", "moved"),
    [
        ({}, {"tower", "connector", "language"}),
        ({"tower": 0}, {"connector", "language"}),
        ({"tower": 0, "language": 0}, {"connector"}),
        ({"tower": 1e-4, "language": 0, "connector": 0}, {"tower"}),
    ],
)
def test_what_has_rate_0_stays_as_it_is(tmp_path: Path, rates: Any, moved: set[str]) -> None:
    run = Run(tmp_path, SETTINGS.model_copy(update={"rates": rates, "weight_decay": 0.1}))
    assert run.moved() == moved
    assert all(weight.requires_grad for weight in run.model.parameters()), "another stage may train them"


def test_a_kept_tower_keeps_its_statistics(tmp_path: Path) -> None:
    start = seeing(tower="efficientnet", image_size=64)
    assert any(isinstance(part, torch.nn.BatchNorm2d) for part in start[0].modules())
    run = Run(tmp_path, SETTINGS.model_copy(update={"rates": {"tower": 0}}), start=start)
    assert run.moved() == {"connector", "language"}


def test_each_part_has_its_rate_and_the_schedule_scales_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[dict[str, float]] = []

    def look(self: Any, args: Any, state: Any, control: Any, model: Any = None, **keys: Any) -> None:
        names = {id(p): part for part, some in parts(model).items() for p in some}
        groups = keys["optimizer"].param_groups
        told.append({names[id(p)]: group["lr"] for group in groups for p in group["params"]})
        assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
        assert {group["weight_decay"] for group in groups} == {0.0, 0.1}

    monkeypatch.setattr(module._Watch, "on_pre_optimizer_step", look, raising=False)
    rates: Any = {"tower": 1e-4, "connector": 1e-3}
    run = Run(tmp_path, SETTINGS.model_copy(update={"rates": rates, "weight_decay": 0.1}))
    assert [metrics["learning_rate"] for _, metrics in run.curve] == pytest.approx([1e-2, 5e-3])
    assert told[0] == pytest.approx({"tower": 1e-4, "connector": 1e-3, "language": 1e-2})
    assert told[1] == pytest.approx({"tower": 5e-5, "connector": 5e-4, "language": 5e-3})


def test_rates_of_one_size_are_the_plain_rate(tmp_path: Path) -> None:
    plain = Run(tmp_path / "plain", SETTINGS.model_copy(update={"weight_decay": 0.1}))
    rates: Any = {"tower": 1e-2}
    said = Run(tmp_path / "said", SETTINGS.model_copy(update={"rates": rates, "weight_decay": 0.1}))
    assert [m["loss"] for _, m in said.curve] == [m["loss"] for _, m in plain.curve]
    assert same_weights(said.model, plain.model)


def test_rates_that_cannot_be(tmp_path: Path) -> None:
    none: Any = {"tower": 0, "connector": 0, "language": 0}
    with pytest.raises(PosttrainError, match="nothing to train"):
        Run(tmp_path, SETTINGS.model_copy(update={"rates": none}))
    some: Any = {"tower": 0}
    with pytest.raises(PosttrainError, match="rates.tower: the model has no such part"):
        Run(tmp_path, SETTINGS.model_copy(update={"rates": some}), MIXED[3:5], start=models.load("tiny"))


@pytest.mark.parametrize(
    ("places", "rates", "moved"),
    [
        (("language",), {}, {"connector", "language"}),
        (("tower", "language"), {"connector": 0}, {"tower", "language"}),
        (("tower",), {"tower": 1e-3, "connector": 1e-4}, {"tower", "connector"}),
        (("tower", "language"), {"tower": 0}, {"connector", "language"}),
    ],
)
def test_adapters_go_where_they_are_asked_for_and_are_merged(
    tmp_path: Path, places: Any, rates: Any, moved: set[str]
) -> None:
    pytest.importorskip("peft")
    settings = SETTINGS.model_copy(update={"lora": Lora(rank=2, parts=places), "rates": rates})
    run = Run(tmp_path / "whole", settings)
    assert run.moved() == moved
    assert all(weight.requires_grad for weight in run.model.parameters())
    first = Run(tmp_path / "parts", settings, ask_at=0)
    second = Run(tmp_path / "parts", settings)
    assert first.stopped and first.curve + second.curve == run.curve
    assert same_weights(second.model, run.model)
    again = Run(tmp_path / "whole", settings)
    assert again.curve == [] and same_weights(again.model, run.model)


def test_adapters_that_cannot_be(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    both = Lora(rank=2, parts=("tower", "language"))
    settings = SETTINGS.model_copy(update={"lora": both})
    with pytest.raises(PosttrainError, match="reads text alone"):
        Run(tmp_path, settings, MIXED[3:5], start=models.load("tiny"))
    rates: Any = {"tower": 0, "language": 0}
    with pytest.raises(PosttrainError, match="nothing to adapt"):
        Run(tmp_path, SETTINGS.model_copy(update={"lora": both, "rates": rates}))


# -- stops


@pytest.mark.parametrize("rates", [{}, {"tower": 0, "connector": 3e-2}])
def test_a_stopped_run_goes_on_bit_for_bit(
    tmp_path: Path, rates: Any, caplog: pytest.LogCaptureFixture
) -> None:
    settings = SETTINGS.model_copy(update={"epochs": 2.0, "rates": rates})
    whole = Run(tmp_path / "whole", settings, start=seeing(dropout=0.2))
    curve: list[Any] = []
    for ask_at in (0, 2, None):  # asked at the start, or in update 2's log
        part = Run(tmp_path / "parts", settings, ask_at=ask_at, start=seeing(dropout=0.2))
        curve += part.curve
        assert part.stopped == (ask_at is not None)
    assert curve == whole.curve and len(curve) == 4
    assert same_weights(part.model, whole.model) and not caplog.text
    again = Run(tmp_path / "parts", settings)
    assert again.curve == [] and same_weights(again.model, whole.model)


def test_a_kill_while_saving_costs_only_that_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = SETTINGS.model_copy(
        update={"epochs": 2.0, "checkpoint_every": 1, "activation_checkpointing": True}
    )
    whole = Run(tmp_path / "whole", settings)
    true, calls = module._Trainer._save_rng_state, itertools.count(1)

    def killed(self: Any, *args: Any, **kwargs: Any) -> None:
        true(self, *args, **kwargs)
        if next(calls) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module._Trainer, "_save_rng_state", killed)
        with pytest.raises(KeyboardInterrupt):
            Run(tmp_path / "cut", settings)
    rest = Run(tmp_path / "cut", settings)
    assert rest.curve == whole.curve[1:] and same_weights(rest.model, whole.model)
    assert not any(part._forward_hooks for part in rest.model.modules())


def test_another_picture_is_other_data(tmp_path: Path) -> None:
    assert Run(tmp_path, ask_at=0).stopped
    with pytest.raises(PosttrainError, match="other examples"):
        Run(tmp_path, examples=[chat(BLUE, "Which colour?", answer="red"), *MIXED[1:]])


TWO = """
import sys
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.distributed as dist

from posttrain.train.sft import sft
from tests.train.test_sft_vision import MIXED, SETTINGS, seeing

folder, rows = Path(sys.argv[1]), int(sys.argv[2])
model, words = seeing()
settings = SETTINGS.model_copy(update={"batch": 2, "rows": rows, "rates": {"tower": 1e-3, "language": 0}})
trained = sft([*MIXED, MIXED[0]], model, words, settings, folder / f"run-{rows}", seed=3,
              compute=torch.float32, stop=SimpleNamespace(asked=False, signal=15), on_log=lambda *_: None)
if not dist.is_initialized() or dist.get_rank() == 0:
    torch.save(trained.state_dict(), folder / f"end-{rows}.pt")
if dist.is_initialized():
    dist.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_train_what_one_does(tmp_path: Path) -> None:
    """Each with rows of words alone at some time, of which nothing that learns computes anything."""
    (tmp_path / "two.py").write_text(TWO)
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    for start, rows in (((), "2"), (launch, "1")):
        done = subprocess.run(
            [sys.executable, *start, str(tmp_path / "two.py"), str(tmp_path), rows],
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert done.returncode == 0, done.stderr[-4000:]
    one, two = (torch.load(tmp_path / f"end-{rows}.pt") for rows in (2, 1))
    start = seeing()[0].state_dict()
    moved = torch.cat([(one[name] - start[name]).flatten() for name in start])
    apart = torch.cat([(one[name] - two[name]).flatten() for name in start])
    assert moved.norm() > 0.01 and apart.norm() < 1e-3 * moved.norm()

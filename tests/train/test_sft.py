"""Supervised fine-tuning: TRL's own numbers, loss on answers alone, stops and kills that leave no trace."""

from __future__ import annotations

import itertools
import logging
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import trl.trainer.utils
from accelerate import Accelerator
from datasets import Dataset
from safetensors.torch import load_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling, SFTTrainer

from posttrain.kinds import Lora, SftTrain
from posttrain.stop import Stopped
from posttrain.train import sft as module
from posttrain.train.sft import found, keeps_apart, sft
from posttrain.train.sft_data import GREEN, prepared, shown
from posttrain.types import PosttrainError

ROOT = Path(__file__).resolve().parent.parent.parent

pytestmark = pytest.mark.usefixtures("one_process")

TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}<|assistant|>{% generation %}{{ m['content'] }}"
    "<|end|>{% endgeneration %}{% else %}<|user|>{{ m['content'] }}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
TEXTS = [
    {"prompt": "2 + 3 = ", "completion": "5"},
    {"prompt": "Wie heißt die Hauptstadt von Österreich? ", "completion": "Wien, an der schönen Donau"},
    {"prompt": "三加四等于", "completion": "七"},
    {"prompt": "ما عاصمة مصر؟ ", "completion": "القاهرة"},
    {"prompt": "count: ", "completion": "one two three four five six"},
    {"prompt": "a ", "completion": "b c"},
    {"prompt": "the longest of the prompts that are here ", "completion": "is over"},
    {"prompt": "", "completion": "from nothing"},
    {"prompt": "सूरज ", "completion": "उगता है 🌞"},
    {"prompt": "x", "completion": "yz"},
    {"prompt": "last ", "completion": "one"},
]
SETTINGS = SftTrain(
    epochs=2.0, batch=4, rows=2, learning_rate=1e-2, warmup=2, schedule="cosine", max_length=96
)
PACKED = SETTINGS.model_copy(update={"packing": True, "batch": 2})
KINDS = {"apart": (SETTINGS, 6), "packed": (PACKED, 4)}  # settings, and the updates that they come to


def said(user: str, assistant: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]


@pytest.fixture(scope="module")
def words() -> PreTrainedTokenizerFast:
    """A token a byte, and a chat template that marks what the assistant says."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens([AddedToken(t, special=True) for t in ("<|end|>", "<|user|>", "<|assistant|>")])
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token="<|end|>", pad_token="<|end|>", chat_template=TEMPLATE
    )


def small(attention: str = "sdpa", dropout: float = 0.0) -> PreTrainedModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=259,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        attention_dropout=dropout,
        tie_word_embeddings=True,
        eos_token_id=256,
        pad_token_id=256,
    )
    config._attn_implementation = attention
    return LlamaForCausalLM(config).eval()


class Run:
    """One call of sft: .model or .stopped, .curve of (update, metrics)."""

    def __init__(
        self,
        folder: Path,
        words: PreTrainedTokenizerFast,
        settings: SftTrain = SETTINGS,
        examples: Any = TEXTS,
        ask_at: int | None = None,
        model: PreTrainedModel | None = None,
        compute: torch.dtype = torch.float32,
    ):
        stop: Any = SimpleNamespace(asked=ask_at == 0, signal=15)
        self.curve: list[tuple[int, dict[str, float]]] = []
        self.model: Any = None
        self.stopped = False

        def on_log(update: int, updates: int, metrics: dict[str, float]) -> None:
            self.curve.append((update, metrics))
            stop.asked = stop.asked or update == ask_at

        model = model or small()
        try:
            self.model = sft(
                examples, model, words, settings, folder, seed=3, compute=compute, stop=stop, on_log=on_log
            )
        except Stopped as stopped:
            self.stopped = stopped.signal == 15


def same_weights(a: Any, b: Any) -> bool:
    one, other = a.state_dict(), b.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def by_hand(folder: Path, words: PreTrainedTokenizerFast, packing: bool) -> tuple[Any, list[float]]:
    """TRL's own trainer on the same texts: -> the model, the losses."""
    args = SFTConfig(
        output_dir=str(folder),
        num_train_epochs=2,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=1 if packing else 2,
        learning_rate=1e-2,
        warmup_steps=2,
        lr_scheduler_type="cosine",
        max_length=96,
        packing=packing,
        bf16=False,
        gradient_checkpointing=False,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        seed=3,
    )
    model: Any = small()
    trainer = SFTTrainer(
        model=model, args=args, train_dataset=Dataset.from_list(TEXTS), processing_class=words
    )
    trainer.train()
    return model, [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_trls_training(tmp_path: Path, words: PreTrainedTokenizerFast, kind: str) -> None:
    settings, updates = KINDS[kind]
    theirs, losses = by_hand(tmp_path / "theirs", words, settings.packing)
    ours = Run(tmp_path / "ours", words, settings)
    assert [metrics["loss"] for _, metrics in ours.curve] == losses
    assert len(losses) == updates and min(losses) < 0.95 * losses[0]
    assert same_weights(ours.model, theirs) and not same_weights(ours.model, small())
    assert set(ours.curve[0][1]) >= {"loss", "grad_norm", "learning_rate", "num_tokens", "entropy"}


def test_the_head_scores_what_carries_loss_alone(
    tmp_path: Path, words: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs: Any = trl.trainer.utils
    head, scored = theirs._ChunkedLogProbFunction, []

    def apply(hidden: torch.Tensor, *rest: Any) -> Any:
        scored.append(len(hidden))
        return head.apply(hidden, *rest)

    monkeypatch.setattr(theirs, "_ChunkedLogProbFunction", SimpleNamespace(apply=apply))
    Run(tmp_path, words, SETTINGS.model_copy(update={"epochs": 1.0}))
    rows: Any = prepared(TEXTS, words, SETTINGS)
    assert sum(scored) == sum(label != -100 for row in rows for label in row["labels"][1:])
    assert not theirs._use_triton(torch.device("cpu"))


def test_nothing_of_the_trainer_is_left_behind(tmp_path: Path, words: PreTrainedTokenizerFast) -> None:
    accelerator = Accelerator(cpu=True)
    settings = SETTINGS.model_copy(update={"activation_checkpointing": True})
    run = Run(tmp_path, words, settings, compute=torch.bfloat16)
    assert accelerator.num_processes == 1 and accelerator.mixed_precision == "no"
    assert "forward" not in run.model.__dict__ and not run.model.training
    assert not run.model.is_gradient_checkpointing and run.model.dtype == torch.float32
    logits = run.model(torch.tensor([[1, 2, 3]])).logits
    assert logits.dtype == torch.float32
    assert [path.name for path in tmp_path.iterdir()] == ["step-000006"]
    assert Run(tmp_path / "wide", words).curve[0][1]["loss"] != run.curve[0][1]["loss"]  # bfloat16 was used


def learned(words: PreTrainedTokenizerFast, row: Any) -> str:
    text = words.decode(
        [i for i, label in zip(row["input_ids"], row["labels"], strict=True) if label != -100]
    )
    assert isinstance(text, str)
    return text


def test_loss_falls_on_answers_alone(words: PreTrainedTokenizerFast) -> None:
    rows: Any = prepared(TEXTS, words, SETTINGS)
    assert [learned(words, row) for row in rows] == [text["completion"] + "<|end|>" for text in TEXTS]
    assert [words.decode(row["input_ids"]) for row in rows] == [
        text["prompt"] + text["completion"] + "<|end|>" for text in TEXTS
    ]
    everything = SETTINGS.model_copy(update={"loss": "all"})
    rows = prepared(TEXTS, words, everything)
    assert [learned(words, row) for row in rows] == [words.decode(row["input_ids"]) for row in rows]
    chat = [{"prompt": said("é?", "")[:1], "completion": said("", "Grüße")[1:]}]
    rows = prepared(chat, words, SETTINGS)
    assert learned(words, rows[0]) == "Grüße<|end|>"
    talk = [{"messages": said("一?", "甲") + said("二?", "乙")}]
    rows = prepared(talk, words, SETTINGS)
    assert learned(words, rows[0]) == "甲<|end|>乙<|end|>"


def test_what_the_model_sees_is_shown(words: PreTrainedTokenizerFast) -> None:
    talk = {"messages": said("一?\x1b[31m", "甲") + said("二?", "乙")}
    expected = "<|user|>一?\\x1b[31m<|end|><|assistant|>«甲<|end|>»<|user|>二?<|end|><|assistant|>«乙<|end|>»"
    assert shown(talk, words, SETTINGS) == expected
    everything = SETTINGS.model_copy(update={"loss": "all"})
    assert shown({"prompt": "ab", "completion": "c"}, words, everything) == "a«bc<|end|>»"  # none predicts a
    assert shown({"prompt": "ü", "completion": ""}, words, everything) == "\ufffd«ü<|end|>»"  # two bytes
    assert "nothing" in shown({"prompt": "a" * 99, "completion": "c"}, words, SETTINGS)
    assert shown(TEXTS[2], words, SETTINGS, GREEN) == "三加四等于\033[32m七<|end|>\033[0m"


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_examples_do_not_see_each_other(
    tmp_path: Path, words: PreTrainedTokenizerFast, attention: str
) -> None:
    """As the trainer's own collator packs them, each has the logits that it has alone."""
    model, collator = small(attention), DataCollatorForLanguageModeling(pad_token_id=256, padding_free=True)
    ids = [[7, 8, 9, 10], [11, 12], [13, 14, 15]]
    flat = list(itertools.chain(*ids))
    batch: Any = collator([{"input_ids": flat, "labels": flat, "seq_lengths": [len(one) for one in ids]}])
    del batch["labels"]
    with torch.no_grad():
        packed = model(**batch, use_cache=False).logits[0].split([len(one) for one in ids])
        for one, logits in zip(ids, packed, strict=True):
            torch.testing.assert_close(logits, model(torch.tensor([one])).logits[0])
    assert keeps_apart(model, collator, torch.float32)


def test_attention_that_mixes_packed_examples_is_refused(
    tmp_path: Path, words: PreTrainedTokenizerFast
) -> None:
    class Mixing(LlamaForCausalLM):
        def forward(self, *args: Any, position_ids: Any = None, **kwargs: Any) -> Any:  # pyright: ignore
            return super().forward(*args, **kwargs)

    model = Mixing(small().config)
    settings = SETTINGS.model_copy(update={"packing": True})
    with pytest.raises(PosttrainError, match="packing"):
        Run(tmp_path, words, settings, model=model)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", KINDS)
def test_a_stopped_run_goes_on_bit_for_bit(
    tmp_path: Path, words: PreTrainedTokenizerFast, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    settings, updates = KINDS[kind]
    whole = Run(tmp_path / "whole", words, settings, model=small(dropout=0.2))
    curve: list[Any] = []
    for ask_at, last in ((0, 1), (2, 3), (0, 4), (None, updates)):  # asked at the start, or in update 2's log
        part = Run(tmp_path / "parts", words, settings, ask_at=ask_at, model=small(dropout=0.2))
        curve += part.curve
        assert curve[-1][0] == last and part.stopped == (last < updates)
        if not part.stopped:
            break
    assert not caplog.text
    assert curve == whole.curve
    assert same_weights(part.model, whole.model)
    states = [torch.load(found(tmp_path / name)[-1] / "optimizer.pt") for name in ("whole", "parts")]
    torch.testing.assert_close(states[0], states[1], rtol=0, atol=0)
    again = Run(tmp_path / "parts", words, settings)  # it has ended: nothing is left to train
    assert not again.curve and same_weights(again.model, whole.model)
    assert len(curve) == updates


@pytest.mark.parametrize("place", ["save_model", "_save_optimizer_and_scheduler", "_save_rng_state"])
def test_a_kill_while_saving_costs_only_that_checkpoint(
    tmp_path: Path, words: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    settings = SETTINGS.model_copy(update={"checkpoint_every": 2, "keep": 2})
    whole = Run(tmp_path / "whole", words, settings)
    assert [path.name for path in found(tmp_path / "whole")] == ["step-000004", "step-000006"]
    true, calls = getattr(module._Trainer, place), itertools.count(1)

    def killed(self: Any, *args: Any, **kwargs: Any) -> None:
        true(self, *args, **kwargs)
        if next(calls) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module._Trainer, place, killed)
        with pytest.raises(KeyboardInterrupt):
            Run(tmp_path / "cut", words, settings)
    assert [path.name for path in found(tmp_path / "cut")] == ["step-000002"]
    assert (tmp_path / "cut" / ".step-000004").is_dir()
    rest = Run(tmp_path / "cut", words, settings)
    assert rest.curve == whole.curve[2:] and same_weights(rest.model, whole.model)
    assert sorted(path.name for path in (tmp_path / "cut").iterdir()) == ["step-000004", "step-000006"]


def test_a_damaged_checkpoint_is_passed_over(
    tmp_path: Path, words: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    settings = SETTINGS.model_copy(update={"checkpoint_every": 2})
    whole = Run(tmp_path, words, settings)
    last = found(tmp_path)[-1]
    for file, words_said in (
        ("model.safetensors", "is not what was written"),
        ("optimizer.pt", "cannot be read"),
    ):
        if file == "optimizer.pt":
            (last / file).unlink()
        else:
            content = bytearray((last / file).read_bytes())
            content[len(content) // 2] ^= 1
            (last / file).write_bytes(content)
        caplog.clear()
        again = Run(tmp_path, words, settings)
        assert f"{file} {words_said}" in caplog.text and again.curve == whole.curve[-2:]
        assert same_weights(again.model, whole.model)
    for path in found(tmp_path):
        (path / "trainer_state.json").write_text("{")
    with pytest.raises(PosttrainError, match="no checkpoint is whole"):
        Run(tmp_path, words, settings)


@pytest.mark.parametrize("epochs", [2.0, 0.5])
@pytest.mark.parametrize("lora", [None, Lora(rank=2)])
def test_a_run_that_had_come_to_its_end_makes_no_update_more(
    tmp_path: Path, words: PreTrainedTokenizerFast, epochs: float, lora: Lora | None
) -> None:
    settings = SETTINGS.model_copy(update={"epochs": epochs, "lora": lora, "warmup": 1})
    whole = Run(tmp_path, words, settings)
    again = Run(tmp_path, words, settings)
    assert whole.curve and again.curve == [] and same_weights(again.model, whole.model)


def test_a_checkpoint_of_something_else_is_refused(tmp_path: Path, words: PreTrainedTokenizerFast) -> None:
    assert Run(tmp_path, words, ask_at=0).stopped
    with pytest.raises(PosttrainError, match="other examples or with other settings"):
        Run(tmp_path, words, examples=TEXTS[:-1])
    with pytest.raises(PosttrainError, match="step-000001"):
        Run(tmp_path, words, SETTINGS.model_copy(update={"learning_rate": 1.0}))
    assert Run(tmp_path, words, SETTINGS.model_copy(update={"keep": 5})).model is not None


@pytest.mark.parametrize("packing", [False, True])
def test_examples_without_a_token_to_learn_are_named(
    tmp_path: Path, words: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture, packing: bool
) -> None:
    settings = SETTINGS.model_copy(update={"packing": packing})
    long = {"prompt": "ü" * 48, "completion": "x"}  # 96 bytes
    with caplog.at_level(logging.WARNING, "posttrain"):
        run = Run(tmp_path / "with", words, settings, [TEXTS[0], long, *TEXTS[1:], long])
    assert "2 of 13 examples" in caplog.text and "left out: 1, 12" in caplog.text
    assert run.curve == Run(tmp_path / "without", words, settings).curve
    with pytest.raises(PosttrainError, match="nothing to train on"):
        Run(tmp_path / "none", words, settings, [long])


def test_empty_answers(words: PreTrainedTokenizerFast) -> None:
    """An empty answer is its end; no answer at all is nothing to learn."""
    assert learned(words, prepared([{"prompt": "a", "completion": ""}], words, SETTINGS)[0]) == "<|end|>"
    prompt = said("a", "")[:1]
    rows: Any = prepared([{"prompt": prompt, "completion": said("", "")[1:]}], words, SETTINGS)
    assert learned(words, rows[0]) == "<|end|>"
    both = [{"prompt": prompt, "completion": []}, {"prompt": prompt, "completion": said("", "b")[1:]}]
    assert prepared(both, words, SETTINGS)["row"] == [1]
    assert len(prepared(both[:1], words, SETTINGS)) == 0


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        ([], "no examples"),
        (
            [TEXTS[0], {"messages": said("a", "b")}],
            r"several forms: text \(example 0\), messages \(example 1\)",
        ),
        ([TEXTS[0], {"prompt": "a"}], "example 1 .* it has prompt"),
        ([{"prompt": "a", "completion": None}], "example 0"),
        ([{"prompt": "a", "completion": said("a", "b")}], "example 0"),
        ([{}], "it has nothing"),
    ],
)
def test_examples_that_are_none(words: PreTrainedTokenizerFast, examples: Any, message: str) -> None:
    with pytest.raises(PosttrainError, match=message):
        prepared(examples, words, SETTINGS)


def test_templates_that_cannot_mark_answers(words: PreTrainedTokenizerFast) -> None:
    talk = [{"messages": said("a", "b")}]
    plain = PreTrainedTokenizerFast(
        tokenizer_object=words._tokenizer, eos_token="<|end|>", pad_token="<|end|>"
    )
    with pytest.raises(PosttrainError, match="no chat template"):
        prepared(talk, plain, SETTINGS)
    plain.chat_template = TEMPLATE.replace("{% generation %}", "").replace("{% endgeneration %}", "")
    with pytest.raises(PosttrainError, match="prompt and completion"):
        prepared(talk, plain, SETTINGS)
    assert len(prepared(talk, plain, SETTINGS.model_copy(update={"loss": "all"}))) == 1


def test_adapters_are_trained_resumed_and_merged(tmp_path: Path, words: PreTrainedTokenizerFast) -> None:
    pytest.importorskip("peft")
    settings = SETTINGS.model_copy(update={"lora": Lora(rank=4, alpha=8.0, dropout=0.1)})
    whole = Run(tmp_path / "whole", words, settings)
    assert whole.curve[-1][1]["loss"] < whole.curve[0][1]["loss"]
    assert whole.model.state_dict().keys() == small().state_dict().keys()
    assert type(whole.model) is LlamaForCausalLM and not same_weights(whole.model, small())
    assert torch.equal(whole.model.lm_head.weight, small().lm_head.weight)
    assert all(weight.requires_grad for weight in whole.model.parameters())  # another stage can train it
    lean = settings.model_copy(update={"activation_checkpointing": True})
    again = Run(tmp_path / "lean", words, lean)
    assert again.curve == whole.curve and same_weights(again.model, whole.model)
    assert not again.model.get_input_embeddings()._forward_hooks
    first = Run(tmp_path / "parts", words, settings, ask_at=2)
    second = Run(tmp_path / "parts", words, settings)
    assert first.stopped and first.curve + second.curve == whole.curve
    assert same_weights(second.model, whole.model)


def test_adapters_without_peft(
    tmp_path: Path, words: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(PosttrainError, match="pip install peft"):
        Run(tmp_path, words, SETTINGS.model_copy(update={"lora": Lora()}))


TWO = """
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.distributed as dist
from transformers import AutoModelForCausalLM, AutoTokenizer

from posttrain.stop import Stopped
from posttrain.train.sft import sft
from posttrain.kinds import SftTrain

folder, rows, asks = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "asks"
stop = SimpleNamespace(asked=False, signal=15)
model = AutoModelForCausalLM.from_pretrained(folder / "start")
words = AutoTokenizer.from_pretrained(folder / "start")
examples = [{"prompt": "q " * (i % 5), "completion": "a " * (1 + i % 3)} for i in range(16)]
settings = SftTrain(batch=4, rows=rows, learning_rate=1e-2)
rank = int(os.environ.get("RANK", 0))
told = []
stop.asked = asks and rank == 1  # one process alone was told
try:
    trained = sft(examples, model, words, settings, folder / f"run-{rows}", seed=3, compute=torch.float32,
                  stop=stop, on_log=lambda update, updates, metrics: told.append(metrics["loss"]))
except Stopped:
    assert asks
    trained = None
assert (len(told) > 0) == (rank == 0)
if rank == 0 and trained is not None:
    trained.save_pretrained(folder / f"end-{rows}")
if dist.is_initialized():
    dist.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_train_what_one_does(tmp_path: Path, words: PreTrainedTokenizerFast) -> None:
    """Stopped after an update, by the second process alone, and taken up again."""
    (tmp_path / "two.py").write_text(TWO)
    small().save_pretrained(tmp_path / "start")
    words.save_pretrained(tmp_path / "start")
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    for start, rows, asks in (((), "4", "goes"), (launch, "2", "asks"), (launch, "2", "goes")):
        done = subprocess.run(
            [sys.executable, *start, str(tmp_path / "two.py"), str(tmp_path), rows, asks],
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert done.returncode == 0, done.stderr[-4000:]
        if asks == "asks":
            assert [path.name for path in found(tmp_path / "run-2")] == ["step-000001"]
    assert (tmp_path / "run-2" / "step-000004" / "rng_state_1.pth").is_file()
    start, one, two = (load_file(tmp_path / n / "model.safetensors") for n in ("start", "end-4", "end-2"))
    moved = torch.cat([(one[name] - start[name]).flatten() for name in start])
    apart = torch.cat([(one[name] - two[name]).flatten() for name in start])
    assert moved.norm() > 0.01
    assert apart.norm() < 1e-3 * moved.norm()


def test_a_batch_that_rows_cannot_make_up_is_refused() -> None:
    with pytest.raises(ValueError, match="no multiple of rows"):
        SftTrain(batch=6, rows=4)

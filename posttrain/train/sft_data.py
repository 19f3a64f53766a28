"""Examples for supervised fine-tuning, as TRL's SFTTrainer tokenises and masks them."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from datasets import Dataset
from datasets.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils.logging import disable_progress_bar, enable_progress_bar, is_progress_bar_enabled
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from posttrain.kinds import SftTrain
from posttrain.types import PosttrainError

Example = dict[str, Any]
MARKS = ("«", "»")
GREEN = ("\033[32m", "\033[0m")  # for a terminal

log = logging.getLogger(__name__)


def prepared(
    examples: Sequence[Example], tokenizer: PreTrainedTokenizerFast, settings: SftTrain, seed: int = 0
) -> Dataset:
    """What TRL makes of the examples: `row` (index), `input_ids` and `labels` (-100: no loss), cut to
    max_length and not yet packed. Examples of which no label is left are not in it.

    Raises:
        PosttrainError: the examples are none, of mixed or unknown form, or the template cannot mark answers.
    """
    form = _form(examples)
    if form != "text" and tokenizer.chat_template is None:
        raise PosttrainError("the examples are messages, but the model has no chat template; give texts")
    if form == "text" and tokenizer.eos_token is None:
        raise PosttrainError("the tokenizer has no end token, so an answer's end cannot be learned")
    shape: dict[str, Any] = {
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
    }
    unused = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **shape))  # a trainer wants a model
    with tempfile.TemporaryDirectory() as nowhere, quiet(), own_accelerate():
        args = arguments(settings, Path(nowhere), seed, torch.float32)
        args.packing = False
        args.completion_only_loss = settings.loss == "completion" and form != "messages"
        args.assistant_only_loss = settings.loss == "completion" and form == "messages"
        # TRL looks for the form of all in the first example, in whichever of its lists its set gives first.
        full = [{**example, "row": row} for row, example in enumerate(examples) if [] not in example.values()]
        if not full:
            return Dataset.from_dict({"row": [], "input_ids": [], "labels": []})
        rows = Dataset.from_list(full)
        try:
            trainer = Trainer(model=unused, args=args, train_dataset=rows, processing_class=tokenizer)
        except (ValueError, RuntimeError) as error:
            if form != "messages" or settings.loss == "all":
                raise
            raise PosttrainError(
                "the model's chat template does not say which words are the assistant's; give examples as "
                f"prompt and completion, or set loss to all ({error})"
            ) from None
        data: Any = trainer.train_dataset
    return data.select_columns(["row", "input_ids", "labels"])


def shown(
    example: Example, tokenizer: PreTrainedTokenizerFast, settings: SftTrain, marks: tuple[str, str] = MARKS
) -> str:
    """What the model sees of an example; what carries loss stands between `marks`."""
    data = prepared([example], tokenizer, settings)
    if not len(data):
        return f"(nothing of this example carries loss within max_length {settings.max_length})"
    ids, labels = data[0]["input_ids"], data[0]["labels"]
    learned = [i > 0 and label != -100 for i, label in enumerate(labels)]  # nothing predicts the first token
    before, after = marks
    parts, start, read = [], 0, ""
    for end in range(1, len(ids) + 1):
        if end < len(ids) and learned[end] == learned[start]:
            continue
        # The whole text so far, less what was read: a token alone may be half a letter, or lose its space.
        text = tokenizer.decode(ids[:end], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        piece = text.removeprefix(read.rstrip("\ufffd"))
        piece = "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in piece)
        parts.append(f"{before}{piece}{after}" if learned[start] else piece)
        start, read = end, text
    return "".join(parts)


class Trainer(SFTTrainer):
    """SFTTrainer that keeps to its work."""

    def create_model_card(self, *_: Any, **__: Any) -> None:
        pass  # it would lie among the checkpoints and name TRL's example code

    def _send_telemetry(self) -> None:
        pass  # a run is nobody else's business


def arguments(settings: SftTrain, folder: Path, seed: int, compute: torch.dtype) -> SFTConfig:
    args = SFTConfig(
        output_dir=str(folder),
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=settings.rows,
        learning_rate=settings.learning_rate,
        warmup_steps=settings.warmup,
        lr_scheduler_type={"constant": "constant_with_warmup"}.get(settings.schedule, settings.schedule),
        max_length=settings.max_length,
        packing=settings.packing,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        optim="adamw_torch_fused",
        gradient_checkpointing=settings.activation_checkpointing,
        use_cpu=not torch.cuda.is_available(),
        bf16=compute == torch.bfloat16,
        seed=seed,
        save_strategy="no",  # a callback says when
        logging_strategy="steps",
        logging_steps=1,
        logging_nan_inf_filter=False,  # a NaN should be seen
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=torch.cuda.is_available(),
    )
    together = settings.rows * args.world_size
    if settings.batch % together:
        raise PosttrainError(
            f"batch is {settings.batch}, no multiple of {together} (rows times {args.world_size} processes)"
        )
    args.gradient_accumulation_steps = settings.batch // together
    return args


def _form(examples: Sequence[Example]) -> str:
    """ "messages", "chat" or "text", the same for all examples."""
    forms: dict[str, int] = {}
    for row, example in enumerate(examples):
        parts = [example.get(key) for key in ("prompt", "completion")]
        if example.keys() == {"messages"} and isinstance(example["messages"], list):
            form = "messages"
        elif example.keys() == {"prompt", "completion"} and all(isinstance(part, list) for part in parts):
            form = "chat"
        elif example.keys() == {"prompt", "completion"} and all(isinstance(part, str) for part in parts):
            form = "text"
        else:
            raise PosttrainError(
                f"example {row} is neither a prompt and a completion, both texts or both messages, nor "
                f"messages alone; it has {', '.join(sorted(example)) or 'nothing'}"
            )
        forms.setdefault(form, row)
    if not forms:
        raise PosttrainError("there are no examples to train on")
    if len(forms) > 1:
        seen = ", ".join(f"{form} (example {row})" for form, row in forms.items())
        raise PosttrainError(f"the examples are of several forms: {seen}; keep to one")
    return next(iter(forms))


def reported(data: Dataset, count: int, settings: SftTrain) -> Dataset:
    """The data again, after a warning that names the examples which are not in it."""
    if lost := sorted(set(range(count)) - set(data["row"])):
        named = ", ".join(map(str, lost[:10])) + (", …" if len(lost) > 10 else "")
        what = f"{len(lost)} of {count} examples have no token that carries loss within max_length"
        if not len(data):
            raise PosttrainError(f"{what} ({settings.max_length}), so there is nothing to train on")
        log.warning("%s (%d) and are left out: %s", what, settings.max_length, named)
    return data


@contextmanager
def quiet() -> Iterator[None]:
    """No bars from `datasets` and transformers: there is a display already."""
    sets, saves = not are_progress_bars_disabled(), is_progress_bar_enabled()
    disable_progress_bars()
    disable_progress_bar()
    try:
        yield
    finally:
        if sets:
            enable_progress_bars()
        if saves:
            enable_progress_bar()


@contextmanager
def own_accelerate() -> Iterator[None]:
    """The trainer resets what accelerate keeps of a process; give the caller's Accelerator its state back."""
    kinds: Any = (PartialState, AcceleratorState, GradientState)
    before = [dict(kind._shared_state) for kind in kinds]
    try:
        yield
    finally:
        for kind, state in zip(kinds, before, strict=True):
            kind._shared_state.clear()
            kind._shared_state.update(state)

"""Examples for supervised fine-tuning, as TRL's SFTTrainer tokenises and masks them.

A picture is one token while TRL works on the text; after that all of its tokens take the place of that one.
"""

from __future__ import annotations

import logging
import secrets
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from datasets import Dataset
from datasets.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils.logging import disable_progress_bar, enable_progress_bar, is_progress_bar_enabled
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from posttrain.kinds import SftTrain
from posttrain.multimodal import beside
from posttrain.picture import MARK, Picture
from posttrain.types import PosttrainError, pictures_in

if TYPE_CHECKING:
    from posttrain.vision.processor import Reader

Example = dict[str, Any]
MARKS = ("«", "»")
GREEN = ("\033[32m", "\033[0m")  # for a terminal

log = logging.getLogger(__name__)


def prepared(
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerFast,
    settings: SftTrain,
    seed: int = 0,
    eyes: Reader | None = None,
) -> Dataset:
    """What TRL makes of the examples: `row` (index), `input_ids` and `labels` (-100: no loss), cut to
    max_length and not yet packed. Examples of which no label is left, or a picture cut off, are not in it.

    eyes: of a model that sees; a picture has all of its tokens then, none of which carries loss.

    Raises:
        PosttrainError: the examples are none, of mixed or unknown form, show pictures to a model that reads
            text alone, in packed rows, or of unlike shape in one batch; a picture cannot be read; or the
            template cannot mark answers.
    """
    shown = {row: some for row, example in enumerate(examples) if (some := pictures_of(example))}
    if shown and eyes is None:
        raise PosttrainError(
            f"example {min(shown)} shows a picture, but the model reads text alone; name one that sees, or "
            "give it a tower (model.vision)"
        )
    if shown and settings.packing:
        raise PosttrainError("packing: rows with pictures are not packed; set train.packing to false")
    if shown and eyes is not None:
        _check_alone(shown, settings, eyes)
    if shown:
        examples = [{k: v for k, v in example.items() if k != "images"} for example in examples]
    form = _form(examples)
    if eyes is not None:
        examples = [_worded(example, form, eyes) for example in examples]
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
        args.max_length = settings.max_length if eyes is None else None
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
    data = data.select_columns(["row", "input_ids", "labels"])
    if eyes is None:
        return data
    how = {"eyes": eyes, "most": settings.max_length, "shown": shown, "chats": form != "text"}
    with quiet():  # nothing is kept on disk, so there is no need of a name that the pictures are part of
        return data.map(_spread, batched=True, fn_kwargs=how, new_fingerprint=secrets.token_hex(8))


def pictures_of(example: Example) -> list[Picture]:
    """An example's pictures, in the order in which the model meets them."""
    messages = example.get("messages", example.get("prompt"))
    if not isinstance(messages, list):
        return list(example.get("images", ()))
    return list(pictures_in([message for message in messages if isinstance(message.get("content"), list)]))


def _check_alone(shown: Mapping[int, Sequence[Picture]], settings: SftTrain, eyes: Reader) -> None:
    """
    Raises:
        PosttrainError: pictures of unlike shape would be in one batch.
    """
    many = next((row for row, some in shown.items() if len(some) > 1), None)
    if (settings.rows == 1 and many is None) or not eyes.varies:
        return
    what = f"example {many} has several of them" if settings.rows == 1 else "set train.rows to 1"
    raise PosttrainError(
        f"this model takes pictures in shapes of their own, so a batch holds one: {what}; or, if it is "
        "model.vision.resize: native that does it, set that to square, fit or crop"
    )


def _worded(example: Example, form: str, eyes: Reader) -> Example:
    """An example with the token of an image, or a part that the template reads, where its pictures are."""
    if form == "text":
        return {**example, "prompt": example["prompt"].replace(MARK, eyes.raw)}
    return {key: [eyes.told(message) for message in some] for key, some in example.items()}


def _spread(
    rows: Mapping[str, list[Any]],
    eyes: Reader,
    most: int,
    shown: Mapping[int, Sequence[Picture]],
    chats: bool,
) -> dict[str, list[Any]]:
    """Rows with all tokens of their pictures, cut to `most`, less those that lose a picture or all loss."""
    made: dict[str, list[Any]] = {"row": [], "input_ids": [], "labels": []}
    for row, ids, labels in zip(rows["row"], rows["input_ids"], rows["labels"], strict=True):
        pictures = shown.get(row, ())
        if chats:
            ids = eyes.begun(ids)
            labels = [*[-100] * (len(ids) - len(labels)), *labels]
        if (there := ids.count(eyes.token)) != len(pictures):
            raise PosttrainError(
                f"example {row} has {len(pictures)} pictures, but its text has {there} times the token of "
                f"one; take {MARK} out of the text"
            )
        tokens = [eyes.tokens(picture) for picture in pictures]
        places = iter(tokens)
        wide = [
            pair
            for i, label in zip(ids, labels, strict=True)
            for pair in ([(t, -100) for t in next(places)] if i == eyes.token else [(i, label)])
        ]
        kept, loss = ([pair[side] for pair in wide[:most]] for side in range(2))
        whole = kept.count(eyes.token) == sum(some.count(eyes.token) for some in tokens)
        if whole and any(label != -100 for label in loss):
            for key, value in (("row", row), ("input_ids", kept), ("labels", loss)):
                made[key].append(value)
    return made


class WithPictures:
    """A collator, with what a model takes of its rows' pictures, in order, beside their tokens.

    pad: a collator of rows. pictures: by `row`, each of which may have some or none.
    """

    def __init__(
        self, pad: Any, model: PreTrainedModel, eyes: Reader, pictures: Mapping[int, Sequence[Picture]]
    ):
        self.pad, self.model, self.eyes, self.pictures = pad, model, eyes, pictures

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        seen = [self.eyes.seen(one) for row in rows for one in self.pictures.get(row["row"], ())]
        made = self.pad(rows)
        return made | beside(self.model, made["input_ids"], seen)


def shown(
    example: Example,
    tokenizer: PreTrainedTokenizerFast,
    settings: SftTrain,
    marks: tuple[str, str] = MARKS,
    eyes: Reader | None = None,
) -> str:
    """What the model sees of an example, a picture as one mark; what carries loss is between `marks`."""
    data = prepared([example], tokenizer, settings, eyes=eyes)
    if not len(data):
        return f"(nothing of this example carries loss within max_length {settings.max_length})"
    ids, labels = data[0]["input_ids"], data[0]["labels"]
    if eyes is not None:
        after_last = 0
        for picture in pictures_of(example):
            tokens = eyes.tokens(picture)
            at = next(i for i in range(after_last, len(ids)) if ids[i : i + len(tokens)] == tokens)
            ids[at : at + len(tokens)], labels[at : at + len(tokens)] = [eyes.token], [-100]
            after_last = at + 1
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
        what = (
            f"{len(lost)} of {count} examples have no token that carries loss, or only part of a picture, "
            "within max_length"
        )
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

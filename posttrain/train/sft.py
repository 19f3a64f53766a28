"""Supervised fine-tuning: TRL's SFTTrainer, with whole checkpoints, a kind stop and a look at the loss mask.

TRL tokenises, masks, packs and trains. What is added here: examples that would train nothing are named,
packed examples are seen to be kept apart, a checkpoint has its name only when it is whole, and a stopped run
goes on where it was (Hugging Face's checkpoints hold optimizer, schedule, random states and data position).
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import trl.trainer.utils
from accelerate.utils import gather_object
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import PrinterCallback, TrainerCallback
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from posttrain import models
from posttrain.kinds import SftTrain
from posttrain.multimodal import parts, sees
from posttrain.stop import Stop, Stopped
from posttrain.train.adapters import adapters_for
from posttrain.train.checkpoint import MANIFEST, last_whole, seal
from posttrain.train.optimizer import groups
from posttrain.train.sft_data import (
    Example,
    Trainer,
    WithPictures,
    arguments,
    own_accelerate,
    pictures_of,
    prepared,
    quiet,
    reported,
)
from posttrain.types import Picture, PosttrainError

OnLog = Callable[[int, int, dict[str, float]], None]
OURS = "sft.json"
APART = 1e-3  # of the largest logit: rounding is far below it, a neighbour that is seen far above


def sft(
    examples: Sequence[Example],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    settings: SftTrain,
    folder: Path,
    *,
    seed: int,
    compute: torch.dtype,
    stop: Stop,
    on_log: OnLog,
) -> PreTrainedModel:
    """Train on examples, from the newest whole checkpoint in `folder` on; -> the model, adapters merged.

    An example is {"prompt", "completion"}, both texts or both lists of messages, or {"messages"}. Messages
    may have pictures; texts have theirs beside them, in "images". Pixels are read batch by batch. The weights
    stay float32; products run in `compute`. `on_log(update, updates, metrics)` is called once an update, in
    the main process: loss (nats a token), grad_norm, learning_rate, entropy, mean_token_accuracy, num_tokens,
    epoch.

    Raises:
        Stopped: `stop` asked; the update was finished and saved.
        PosttrainError: examples, settings, model or the checkpoint in the folder do not fit each other.
    """
    eyes = models.reader(model, tokenizer)
    with quiet(), own_accelerate(), _as_it_was(model), _scored_alone():
        data = reported(prepared(examples, tokenizer, settings, seed, eyes), len(examples), settings)
        pictures = {row: some for row in data["row"] if (some := pictures_of(examples[row]))}
        args = arguments(settings, folder, seed, compute)
        collator = None
        if eyes is not None:
            args.ddp_find_unused_parameters = True  # rows without a picture leave the tower out
            if pictures:
                end: Any = tokenizer.pad_token_id
                collator = WithPictures(DataCollatorForLanguageModeling(end), model, eyes, pictures)
        groups(model, settings.learning_rate, settings.rates)  # freezes what has rate 0
        adapters = adapters_for(model, settings.lora, settings) if settings.lora else None
        trainer = _Trainer(
            model=model,
            args=args,
            train_dataset=data.select_columns(["row"] * bool(pictures) + ["input_ids", "labels"]),
            processing_class=tokenizer,
            data_collator=collator,
            peft_config=adapters,
            callbacks=[_Watch(settings, stop, on_log)],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.keep, trainer.rates = settings.keep, settings.rates
        # TRL's own forward divides by the whole batch's tokens, whatever a family says of its own.
        trainer.model_accepts_loss_kwargs = True
        if eyes is not None:
            trainer.still = _still(trainer.model)
            _always_learns(model)
        trainer.is_of = _fingerprint(data, pictures, settings, seed, compute)
        if settings.packing and not keeps_apart(trainer.model, trainer.data_collator, compute):
            attention = model.config.get_text_config()._attn_implementation
            raise PosttrainError(
                f"packing: the model's attention ({attention}) lets packed examples "
                "see each other; set packing to false"
            )
        saved = trainer.newest()
        if saved is not None and _is_last(
            saved
        ):  # asked to go on from there, transformers makes an update more
            trainer._load_from_checkpoint(saved)
        else:
            trainer.train(resume_from_checkpoint=saved)
            if trainer.state.global_step < trainer.state.max_steps:
                raise Stopped(stop.signal)
        if adapters is not None:
            merged: Any = trainer.accelerator.unwrap_model(trainer.model)
            merged.merge_and_unload()
    return model.requires_grad_(True).eval()  # another stage may train what this one froze


def keeps_apart(model: Any, collator: Any, compute: torch.dtype) -> bool:
    """Whether the second of two packed examples is read alike whatever stands in the first."""
    vocabulary, device = model.config.get_text_config().vocab_size, model.device
    was, logits = model.training, []
    model.eval()
    for first in range(2):
        ids = [(first * 5 + i) % vocabulary for i in range(5)] + [(11 + i) % vocabulary for i in range(4)]
        batch = collator([{"input_ids": ids, "labels": ids, "seq_lengths": [5, 4]}])
        batch = {
            k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in batch.items() if k != "labels"
        }
        with torch.no_grad(), torch.autocast(device.type, compute, enabled=compute != torch.float32):
            logits.append(model(**batch, use_cache=False).logits[0, 5:].float())
    model.train(was)
    return bool((logits[0] - logits[1]).abs().max() <= APART * logits[0].abs().max())


class _Trainer(Trainer):
    """SFTTrainer whose checkpoints are written aside, named step-000007 and renamed when whole."""

    keep = 1
    is_of = ""
    rates: Mapping[Any, float] = {}
    still: Sequence[Any] = ()
    _aside: Path | None = None

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """As it is made anyway, or with a rate for each part, which the schedule scales alike."""
        if self.optimizer is None and self.rates:
            whole: Any = self.accelerator.unwrap_model(self.model if model is None else model)
            decaying = {*self.get_decay_parameter_names(whole)}
            decays = {id(p) for name, p in whole.named_parameters() if name in decaying}
            plain = getattr(whole, "get_base_model", lambda: whole)()  # without peft's wrapping
            made = []
            for group in groups(plain, self.args.learning_rate, self.rates):
                rate = {"lr": self.args.learning_rate * group["scale"], "scale": group["scale"]}
                for decay in (True, False):
                    if some := [p for p in group["params"] if (id(p) in decays) == decay]:
                        made.append({"params": some, "weight_decay": self.args.weight_decay * decay, **rate})
            kind, how = self.get_optimizer_cls_and_kwargs(self.args, whole)
            self.optimizer = kind(made, **how)
        return super().create_optimizer(model)

    def compute_loss(self, model: Any, *args: Any, **kwargs: Any) -> Any:
        """What does not learn computes as it will in use: no dropout, no statistics of this batch."""
        for module in self.still:
            module.eval()
        return super().compute_loss(model, *args, **kwargs)

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        if "row" not in self._signature_columns:
            self._signature_columns.append("row")

    def _get_learning_rate(self) -> float:
        first = self.optimizer.param_groups[0]
        return super()._get_learning_rate() / first.get("scale", 1.0)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder = Path(str(self.args.output_dir))
        name = f"step-{self.state.global_step:06d}"
        self._aside = aside = folder / f".{name}"
        if self.is_world_process_zero():
            for left in folder.glob(".step-*"):  # half-written when the process was killed
                shutil.rmtree(left, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        super()._save_checkpoint(model, trial)
        self._aside = None
        self.accelerator.wait_for_everyone()  # every process writes its own random state
        if self.is_world_process_zero():
            (made,) = aside.glob("checkpoint-*")
            (made / OURS).write_text(json.dumps({"is_of": self.is_of, "tokens": self._total_train_tokens}))
            seal(made)
            shutil.rmtree(folder / name, ignore_errors=True)
            made.rename(folder / name)
            aside.rmdir()
            for old in found(folder)[: -self.keep]:
                shutil.rmtree(old)
        self.accelerator.wait_for_everyone()

    def newest(self) -> str | None:
        """The newest whole checkpoint, of the same data and settings; its token count is taken over."""
        saved = newest(Path(str(self.args.output_dir)))
        if saved is None:
            return None
        ours = json.loads((saved / OURS).read_text())
        if ours["is_of"] != self.is_of:
            raise PosttrainError(
                f"{saved} was trained on other examples or with other settings; delete it, or take "
                "another folder"
            )
        self._total_train_tokens = ours["tokens"]
        return str(saved)

    def _load_from_checkpoint(self, resume_from_checkpoint: Any, model: Any = None) -> None:
        policy: Any = self.model if model is None else model
        if not sees(policy) or hasattr(policy, "get_base_model"):
            return super()._load_from_checkpoint(resume_from_checkpoint, model)
        # Their weights have other names in a folder, and the trainer passes over what it does not know.
        saved = type(policy).from_pretrained(resume_from_checkpoint, dtype=policy.dtype)
        policy.load_state_dict(saved.state_dict())

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._aside or self.args.output_dir)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        policy: Any = self.model
        tied = policy.all_tied_weights_keys  # saved once, under the name of the other
        missing = [key for key in load_result.missing_keys if key not in tied]
        super()._issue_warnings_after_load(load_result._replace(missing_keys=missing))


class _Watch(TrainerCallback):
    """Saves when it is time or a stop was asked, and hands the metrics on."""

    def __init__(self, settings: SftTrain, stop: Stop, on_log: OnLog):
        self.every, self.stop, self.tell = settings.checkpoint_every, stop, on_log

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if any(gather_object([self.stop.asked])):
            control.should_training_stop = control.should_save = True
        if state.global_step >= state.max_steps or (self.every and state.global_step % self.every == 0):
            control.should_save = True

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if "loss" in logs and state.is_world_process_zero:  # not the summary at the end
            self.tell(state.global_step, state.max_steps, dict(logs))


def _always_learns(model: Any) -> None:
    """Where the language model is kept, words alone have no gradient: give them one of zero.

    Within the forward, where several processes look for what a batch uses.
    """
    if not any(p.requires_grad for p in parts(model)["language"]):
        least = min((p for p in model.parameters() if p.requires_grad), key=torch.Tensor.numel)
        model.get_input_embeddings().register_forward_hook(lambda _module, _args, out: out + 0 * least.sum())


def _still(module: Any) -> list[Any]:
    """The outermost modules of which no weight learns."""
    weights = list(module.parameters())
    if weights and not any(p.requires_grad for p in weights):
        return [module]
    return [still for child in module.children() for still in _still(child)]


def _is_last(checkpoint: str) -> bool:
    state = json.loads((Path(checkpoint) / TRAINER_STATE_NAME).read_text())
    return state["global_step"] >= state["max_steps"]


def found(folder: Path) -> list[Path]:
    """The checkpoints in `folder`, oldest first."""
    ours = (path for path in folder.glob("step-*") if (path / MANIFEST).exists() or (path / OURS).exists())
    return sorted(ours)


def newest(folder: Path) -> Path | None:
    """The newest whole checkpoint in `folder`; raises as `checkpoint.last_whole`."""
    return last_whole(found(folder), OURS)


@contextmanager
def _as_it_was(model: Any) -> Iterator[None]:
    """Take off what the trainers hang on a model: a forward (TRL's loss, autocast), checkpointing, hooks."""
    forward = model.__dict__.get("forward")
    known = {key for module in model.modules() for key in module._forward_hooks}
    try:
        yield
    finally:
        if model.is_gradient_checkpointing:
            model.gradient_checkpointing_disable()
        for module in model.modules():
            for key in module._forward_hooks.keys() - known:  # each hook has a key of its own
                del module._forward_hooks[key]
        model.__dict__.pop("forward", None)
        if forward is not None:
            model.forward = forward


@contextmanager
def _scored_alone() -> Iterator[None]:
    """Let TRL's head score only the positions that carry loss on every device, as it does on CUDA.

    Elsewhere it scores all and drops the others, for accelerators that compile anew for each shape; on a CPU
    that is a third of an update for nothing.
    """
    head: Any = trl.trainer.utils
    asked = head._use_triton  # TRL 1.16: the head asks it for this alone; its kernels ask their own
    head._use_triton = lambda device: True
    try:
        yield
    finally:
        head._use_triton = asked


def _fingerprint(
    data: Dataset,
    pictures: Mapping[int, Sequence[Picture]],
    settings: SftTrain,
    seed: int,
    compute: torch.dtype,
) -> str:
    """Of all that a checkpoint hangs on, so that none is continued as something else."""
    same = settings.model_dump(exclude={"checkpoint_every", "keep"})
    digest = hashlib.sha256(json.dumps([same, seed, str(compute)]).encode())
    rows: Any = data
    for row in rows:
        digest.update(json.dumps(row).encode())
        for picture in pictures.get(row["row"], ()):
            digest.update(picture.digest.encode())
    return digest.hexdigest()

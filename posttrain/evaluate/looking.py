"""What is measured of a model that sees, beside its answers: its tower's health, and where it looked."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from posttrain.attention import attending
from posttrain.evaluate.drawn import Marks, marks
from posttrain.evaluate.runfolder import read_run
from posttrain.evaluate.thumbnails import FOLDER, keep, looked, told
from posttrain.evaluate.written import choose, mixed
from posttrain.files import replace_bytes
from posttrain.multimodal import BANNED, banned, body, features, image_token, put, shown, turns_by_axes
from posttrain.train.packing import TrainGroup, TrainRow, pack
from posttrain.types import Encoded, Prompt
from posttrain.vision.connector import Connector
from posttrain.vision.health import alarms, health
from posttrain.vision.hub import HubReader
from posttrain.vision.importance import gradient_times_input, overlay, to_patches
from posttrain.vision.processor import Processor

log = logging.getLogger(__name__)

Encode = Callable[[Prompt], list[int]]
Grid = tuple[int, int]

PICTURES, TOKENS = 64, 256  # of the held-out pictures, and of the tokens of each, so many are measured
LONGEST = 512  # tokens of a completion whose probability is explained
COPIES = 1000  # held-out prompts whose pictures are kept with the run
LOOKED = 6  # samples of which it is kept where the model looked


@torch.no_grad()
def tower_tokens(model: PreTrainedModel, prompts: Sequence[Prompt], encode: Encode) -> Tensor | None:
    """The tower's tokens [B, N, D] of the first pictures, those of the most frequent N; None without any. Of
    many, such as tiles', at most TOKENS are taken, evenly."""
    device = model.device
    found: list[Tensor] = []
    for picture in islice((one for prompt in prompts for one in shown([encode(prompt)])), PICTURES):
        inputs: dict[str, Any] = {name: x.to(device) for name, x in picture.items()}
        made: Any = model.get_image_features(**inputs, return_dict=True)  # pyright: ignore[reportCallIssue]
        tokens = made.last_hidden_state.flatten(0, -2)
        found.append(tokens[:: math.ceil(len(tokens) / TOKENS)].float())
    if not found:
        return None
    (usual, _), *_ = Counter(tokens.shape for tokens in found).most_common(1)
    return torch.stack([tokens for tokens in found if tokens.shape == usual])


def tower_record(tokens: Tensor, first: dict[str, Any] | None) -> dict[str, Any]:
    """`health` of a tower's tokens, null for what is no number, and "alarms" against the first record."""
    now = health(tokens)
    before = None
    if first is not None:
        before = {key: math.nan if first.get(key) is None else float(first[key]) for key in now}
    written = {key: value if math.isfinite(value) else None for key, value in now.items()}
    return written | {"alarms": alarms(now, before)}


def where_it_looked(
    model: PreTrainedModel, encode: Any, prompt: Prompt, completion: str, marks: Marks
) -> bytes | None:
    """A PNG of the prompt's picture under the importance of its patches, with boxes; None where there is no
    one picture, no completion, or no grid of all of the picture that its image tokens stand for: a family of
    the Hub may cut it into tiles, or its sides off.

    The picture is as the tower got it. Importance is gradient x input of the completion's log-probability at
    the image tokens (importance.gradient_times_input), shared out among the patches that went into them.
    """
    answer = encode.tokenizer.encode(completion, add_special_tokens=False)[:LONGEST]
    encoded = encode(prompt)
    if len(prompt.pictures) != 1 or not isinstance(encoded, Encoded) or not answer:
        return None
    image = prompt.pictures[0].open()
    if isinstance(encode, HubReader) and not encode.whole(image):
        return None
    scored = _scores(model, encoded, answer)
    if scored is None:
        return None
    scores, grid = scored
    predicted, true = marks.predicted, marks.true
    if isinstance(encode, Processor):
        scaled = encode.scaled(image)
        image, predicted, true = scaled.image, [*map(scaled.to, predicted)], [*map(scaled.to, true)]
    return overlay(image, scores, grid, predicted, true)


def _scores(model: PreTrainedModel, prompt: Encoded, answer: list[int]) -> tuple[Tensor, Grid] | None:
    """Scores [rows * columns] of a picture's patches for a completion's log-probability, and their grid."""
    base: Any = model.base_model
    count = prompt.count(image_token(model))  # pyright: ignore[reportArgumentType]
    connector = getattr(base, "multi_modal_projector", None)
    tower = getattr(base, "vision_tower", None)
    if isinstance(connector, Connector) and isinstance(tower, nn.Module):
        with torch.no_grad():
            pixels = prompt.pictures[0]["pixel_values"].to(model.device)
            tokens = tower(pixels, return_dict=True).last_hidden_state
            inner: Any = tower.tower
            grid = inner.grid(*pixels.shape[-2:])
        tokens.requires_grad_()
        made = connector(tokens, grid)
        with torch.no_grad():
            member = connector.member(tokens, grid)
        along, along_gradient, made_gradient = tokens[0], *_gradients(model, prompt, answer, tokens, made)
        if member is None:
            return gradient_times_input(along, along_gradient[0]), grid
        return to_patches(gradient_times_input(made[0], made_gradient[0]), member[0]), grid
    side = math.isqrt(count)
    frames = math.prod(prompt.pictures[0]["pixel_values"].shape[:-3])
    if side * side != count or frames != 1 or turns_by_axes(model):
        return None
    with torch.no_grad():
        made = features(model, prompt.pictures, count)
    made.requires_grad_()
    (gradient,) = _gradients(model, prompt, answer, made)
    return gradient_times_input(made, gradient), (side, side)


def _gradients(model: PreTrainedModel, prompt: Encoded, answer: list[int], *at: Tensor) -> Any:
    """Of the answer's log-probability, with respect to each of `at`; the last is the pictures' embeddings."""
    batch = pack([TrainGroup(prompt, [TrainRow(answer, [0.0] * len(answer), 0.0, 0.0)])], model.device)
    places = (batch.tokens[: len(prompt)] == image_token(model)).nonzero()[:, 0]
    base: Any = body(model)
    head: Any = model.get_output_embeddings()
    embeddings: Any = at[-1].reshape(-1, at[-1].shape[-1])
    with torch.enable_grad(), attending(batch.layout):
        inputs = put(base, batch.tokens[None], (places, embeddings))
        out: Any = base(**inputs, position_ids=batch.positions[None], use_cache=False)
        hidden = out.last_hidden_state[0].index_select(0, batch.predict)
        # The weights take no gradient: training's own would be added to.
        weight, bias = head.weight.detach(), getattr(head, "bias", None)
        logits = hidden.float() @ weight.float().t() + (0.0 if bias is None else bias.detach().float())
        logits[:, banned(model)] = BANNED
        total = logits.log_softmax(-1).gather(1, batch.target[:, None]).sum()
    return torch.autograd.grad(total, at)


def keep_pictures(folder: Path, prompts: Sequence[Prompt], records: Sequence[dict[str, Any]]) -> None:
    """Say in each record what its prompt shows ("pictures"), and keep copies of the first prompts' ones."""
    seen = 0
    for prompt, record in zip(prompts, records, strict=True):
        if prompt.pictures:
            seen += 1
            record["pictures"] = [
                keep(folder, one) if seen <= COPIES else told(one) for one in prompt.pictures
            ]


def keep_where_it_looked(
    folder: Path,
    model: PreTrainedModel,
    encode: Any,
    prompts: Sequence[Prompt],
    records: Sequence[dict[str, Any]],
) -> None:
    """Of a few samples that the report shows, keep a PNG of where the model looked (`where_it_looked`), which
    the record names ("looked").

    `records` are those of the evaluation at the end, as samples.jsonl will have them, a prompt each.
    """
    by_id = {prompt.id: (prompt, record) for prompt, record in zip(prompts, records, strict=True)}
    before = {key: pair["before"] for key, pair in read_run(folder).pairs.items() if "before" in pair}
    if before:
        pairs = [{"before": before[key], "after": r} for key, (_, r) in by_id.items() if key in before]
        shown = [pair["after"] for pair in choose(pairs, LOOKED)]
    else:
        shown = mixed(records)[:LOOKED]
    for record in shown:
        prompt, _ = by_id[record["id"]]
        if not prompt.pictures:
            continue
        size = prompt.pictures[0].open().size
        made = where_it_looked(model, encode, prompt, record["completion"], marks(record, size))
        if made is not None:
            name = looked(prompt.pictures[0], prompt.id)
            (folder / FOLDER).mkdir(exist_ok=True)
            replace_bytes(folder / FOLDER / f"{name}.png", made)
            record["looked"] = name

"""Does a model look? Its questions asked again, with blank pictures and with pictures of other questions.

What a model gets right without the picture it gets from the words alone: the blind baseline of Goyal et al.
2017, "Making the V in VQA Matter" (arXiv 1612.00837).
"""

from __future__ import annotations

import io
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

from posttrain.harness.answer import Answerer
from posttrain.harness.comparison import compare
from posttrain.harness.facts import FEW, by_question, shares
from posttrain.harness.intervals import average
from posttrain.harness.judge import Verdict
from posttrain.picture import GREY, Picture
from posttrain.types import ImagePart, Message, Prompt, TextPart

KINDS = ("blank", "shuffled")
SURE = 0.05  # p of a difference that counts
Color = tuple[int, int, int]


def blind(prompts: Sequence[Prompt], answerer: Answerer, seed: int) -> dict[str, list[Prompt]]:
    """Of the prompts that have pictures: "blank", "shuffled"; a kind that no prompt can have is left out."""
    found = without(prompts, seed)
    return {kind: blanked(some, answerer) if kind == "blank" else some for kind, some in found.items()}


def without(prompts: Sequence[Prompt], seed: int) -> dict[str, list[Prompt]]:
    """As `blind`, but that the blank ones are still to be `blanked`, which takes the model."""
    seen = [prompt for prompt in prompts if prompt.pictures]
    found = {"blank": seen, "shuffled": shuffled(seen, seed)}
    return {kind: some for kind, some in found.items() if some}


def blanked(prompts: Sequence[Prompt], answerer: Answerer) -> list[Prompt]:
    """Prompts with a blank picture of the same size for each of theirs."""
    color = nothing_of(answerer)
    return [replaced(prompt, [blank(one, color) for one in prompt.pictures]) for prompt in prompts]


def nothing_of(answerer: Answerer) -> Color:
    """The color that the model's tower takes for nothing: its mean, where it is known."""
    mean = getattr(getattr(answerer, "encode", None), "mean", None)
    if mean is None:
        return GREY
    red, green, blue = (min(255, max(0, round(255 * float(one)))) for one in mean)
    return red, green, blue


def blank(picture: Picture, color: Color) -> Picture:
    """A picture of one color, as large as another. PosttrainError where that one cannot be opened."""
    return _plain(picture.open().size, color)


@lru_cache(64)
def _plain(size: tuple[int, int], color: Color) -> Picture:
    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", size, color).save(file, "PNG")
    return Picture(file.getvalue(), None, "a blank image")


def shuffled(prompts: Sequence[Prompt], seed: int) -> list[Prompt]:
    """Each prompt with the pictures of another one that has as many, which the seed alone decides.

    None keeps its own: a prompt for which there are no others is left out.
    """
    rng = random.Random(f"pictures of others, {seed}")
    by_count: defaultdict[int, defaultdict[tuple[str, ...], list[Prompt]]]
    by_count = defaultdict(lambda: defaultdict(list))
    for prompt in prompts:
        by_count[len(prompt.pictures)][_digests(prompt)].append(prompt)
    given: dict[str, Prompt] = {}
    for _, alike in sorted(by_count.items()):
        groups = [alike[key] for key in sorted(alike)]
        rng.shuffle(groups)
        row = [prompt for group in groups for prompt in group]
        # As far on as the largest group is long, nobody meets their own group while there are others.
        turn = max(map(len, groups))
        for prompt, other in zip(row, row[turn:] + row[:turn], strict=True):
            if _digests(prompt) != _digests(other):
                given[prompt.id] = replaced(prompt, other.pictures)
    return [given[prompt.id] for prompt in prompts if prompt.id in given]


def _digests(prompt: Prompt) -> tuple[str, ...]:
    return tuple(picture.digest for picture in prompt.pictures)


def replaced(prompt: Prompt, pictures: Sequence[Picture]) -> Prompt:
    """A prompt with other pictures in the places of its own."""
    if isinstance(prompt.content, str):
        return replace(prompt, beside=tuple(pictures))
    left = iter(pictures)

    def part(one: TextPart | ImagePart) -> TextPart | ImagePart:
        return {"type": "image", "image": next(left)} if one["type"] == "image" else one

    content: list[Message] = []
    for message in prompt.content:
        inside = message["content"]
        content.append({**message, "content": inside if isinstance(inside, str) else [*map(part, inside)]})
    return replace(prompt, content=content)


def against(real: Sequence[Verdict], without: Sequence[Verdict]) -> dict[str, Any] | None:
    """What is right without the pictures: {"value", "ci95", "n", "paired"}; None where nothing was judged.

    paired: of the questions judged both times, what the pictures add (`comparison.compare`).
    """
    ours, theirs = by_question(real), by_question(without)
    both = [id for id in theirs if id in ours]
    if not both:
        return None
    with_, without_ = (shares({id: some[id] for id in both}) for some in (ours, theirs))
    return average(without_) | {"paired": compare(without_, with_)}


def warning(blank: dict[str, Any]) -> str | None:
    """A sentence where the pictures add nothing that is beyond chance; `blank` as `against` gives it."""
    paired, value = blank["paired"], blank["value"]
    added = paired["difference"]
    low, high = paired["ci95"]
    if low > 0 and paired["p"] <= SURE:
        return None
    few = " Ask more of them." if paired["n"] < FEW else ""
    return (
        f"As far as {paired['n']} questions tell, the model may answer as well without seeing: "
        f"{value + added:.1%} right with the pictures, {value:.1%} with blank ones in their place "
        f"({100 * added:+.1f} points, 95% interval {100 * low:+.1f} to {100 * high:+.1f}, p = "
        f"{paired['p']:.2g}).{few} "
        "What it has learned may all be in the words: ask what only the picture tells, and train tower or "
        "connector longer."
    )

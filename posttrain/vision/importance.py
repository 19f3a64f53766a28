"""Where a model looked: scores of image tokens, and a picture that shows them with the boxes asked for."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from posttrain.boxes import Box, read_box

if TYPE_CHECKING:
    from PIL.Image import Image

Color = tuple[int, int, int]

# Apart from each other for the colour-blind too (Okabe and Ito, "Color universal design").
HEAT: Color = (213, 94, 0)
PREDICTED: Color = (86, 180, 233)
TRUE: Color = (240, 228, 66)
COVER = 0.7  # how much of the picture the hottest patch hides
SMALLEST, LARGEST = 256, 1024  # pixels of a shown picture's shorter and longer side
LEGEND, ENTRY = 24, 96  # pixels of the legend's height, and of an entry's width


def gradient_times_input(embeddings: Tensor, gradient: Tensor) -> Tensor:
    """[n, H] image embeddings and a log-probability's gradient there -> signed scores [n] (arXiv 1605.01713).

    To first order, a score is what the log-probability loses when the embedding goes to zero: above 0,
    the token spoke for the completion. Exact where the log-probability is linear in the embeddings.
    """
    return (embeddings.detach().float() * gradient.detach().float()).sum(-1)


def to_patches(scores: Tensor, member: Tensor) -> Tensor:
    """[n] token scores and the token that each patch went into [N] -> patch scores [N] with the same sum.

    A token's score is shared out evenly, as its average was made. For a connector without members (resampler)
    take the scores of the tower's tokens themselves.
    """
    sizes = torch.bincount(member, minlength=len(scores))
    return (scores / sizes)[member]


def heat(scores: Tensor) -> Tensor:
    """Scores -> their size over the largest one's, 0 to 1; what is no number counts as 0."""
    size = scores.detach().float().nan_to_num(0, 0, 0).abs()
    return size / size.max().clamp(min=torch.finfo(size.dtype).tiny)


def overlay(
    picture: Image,
    scores: Tensor | None,
    grid: tuple[int, int],
    predicted: Sequence[Box] = (),
    true: Sequence[Box] = (),
) -> bytes:
    """A picture under its patches' heat, with boxes and their legend, as the bytes of a PNG.

    Small pictures are enlarged and large ones reduced. What is no box (`boxes.read_box`) is left out.

    Args:
        scores: [rows * columns], or None for boxes alone. grid: rows and columns over the whole picture.
        predicted, true: boxes in pixels of `picture`.
    """
    from PIL import Image
    from PIL.Image import Resampling

    scale = min(max(1, math.ceil(SMALLEST / min(picture.size))), LARGEST / max(picture.size))
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    shown = picture.convert("RGB").resize(size, Resampling.NEAREST if scale > 1 else Resampling.LANCZOS)
    if scores is not None:
        cover = (heat(scores) * COVER * 255).round().byte().view(grid).cpu().numpy()
        shown.paste(HEAT, (0, 0, *size), Image.fromarray(cover).resize(size, Resampling.NEAREST))
    drawn = [
        ("true", TRUE, 5, true),
        ("predicted", PREDICTED, 2, predicted),
    ]  # thin on wide: equal boxes show both
    if predicted or true:
        shown = _boxes(shown, scale, drawn)
    file = io.BytesIO()
    shown.save(file, "PNG")
    return file.getvalue()


def _boxes(shown: Image, scale: float, drawn: list[tuple[str, Color, int, Sequence[Box]]]) -> Image:
    from PIL import Image, ImageDraw

    draw = ImageDraw.Draw(shown)
    for _, color, line, boxes in drawn:
        for box in filter(None, map(read_box, boxes)):
            # What lies outside is drawn along the picture's edge: seen, and cheap however far it is.
            ends = (shown.width - 1, shown.height - 1) * 2
            x1, y1, x2, y2 = (min(max(number * scale, 0), end) for number, end in zip(box, ends, strict=True))
            draw.rectangle(
                (x1 - 1, y1 - 1, x2 + 1, y2 + 1), outline="black", width=line + 2
            )  # seen on any ground
            draw.rectangle((x1, y1, x2, y2), outline=color, width=line)
    framed = Image.new("RGB", (max(shown.width, 2 * ENTRY), shown.height + LEGEND), "white")
    framed.paste(shown, (0, 0))
    draw = ImageDraw.Draw(framed)
    for place, (name, color, _, _) in enumerate(drawn):
        x, y = place * ENTRY + 6, shown.height + 6
        draw.rectangle((x, y, x + 12, y + 12), fill=color, outline="black")
        draw.text((x + 20, y), name, fill="black")
    return framed

"""Patch n' Pack (NaViT, arXiv 2307.06304): images of any size share rows of tokens, and none sees another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


def patches(image: Tensor, patch: int) -> Tensor:
    """[..., 3, H, W] -> [..., N, 3 * patch²], row by row, each channel by channel; odd edges are left out."""
    return F.unfold(image, patch, stride=patch).mT


def axis_positions(table: Tensor, count: int) -> Tensor:
    """Fractional factorised embeddings of a side, [cells, D], read linearly at `count` places: [count, D].

    A patch's embedding is its row's plus its column's, so every height and width fits.
    """
    if count == len(table):
        return table
    exact = table.T[None].to(torch.promote_types(table.dtype, torch.float32))
    return F.interpolate(exact, count, mode="linear")[0].T.to(table.dtype)


@dataclass(frozen=True)
class Packed:
    """Images' tokens in rows of one length; `image` says whose each is, -1 where a row is filled up."""

    tokens: Tensor  # [rows, length, D]
    image: Tensor  # [rows, length]
    order: list[int]  # images as they stand in the rows, one row after the other
    lengths: list[int]  # tokens of each image, by image

    @property
    def mask(self) -> Tensor:
        """bool [rows, length, length]: may a query see a key? Fillers see fillers: no softmax is empty."""
        return self.image[:, :, None] == self.image[:, None, :]

    def unpack(self, tokens: Tensor) -> list[Tensor]:
        """[rows, length, D] -> each image's [N_i, D], in the order that they were given in."""
        parts = tokens[self.image >= 0].split([self.lengths[i] for i in self.order])
        by_image = dict(zip(self.order, parts, strict=True))
        return [by_image[i] for i in range(len(self.lengths))]


def pack(tokens: Sequence[Tensor], length: int = 0) -> Packed:
    """Put the images' tokens, [N_i, D] each, into rows of `length` tokens, or of the longest image's if more.

    The longest image goes first, each into the first row that has room. ValueError without an image.
    """
    if not tokens:
        raise ValueError("there is no image to pack")
    lengths = [len(t) for t in tokens]
    length = max(length, *lengths)
    rows: list[list[int]] = []
    room: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        row = next((r for r, left in enumerate(room) if lengths[i] <= left), len(rows))
        if row == len(rows):
            rows.append([])
            room.append(length)
        rows[row].append(i)
        room[row] -= lengths[i]
    device = tokens[0].device
    owners = [torch.tensor([i for i in row for _ in range(lengths[i])], device=device) for row in rows]
    return Packed(
        pad_sequence([torch.cat([tokens[i] for i in row]) for row in rows], batch_first=True),
        pad_sequence(owners, batch_first=True, padding_value=-1),
        [i for row in rows for i in row],
        lengths,
    )

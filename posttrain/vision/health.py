"""What a tower's tokens look like over a batch of pictures, and an alarm where they have collapsed."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

FAR = 5.0  # times the median norm: such a token is an outlier
STILL = 1e-4  # times the features' root mean square: a dimension that varies less is dead

ALIKE = (
    0.999  # images whose mean tokens have this cosine are one to a language model; fresh towers reach 0.99
)
FEW = 2.0  # an effective rank below this: almost all tokens are multiples of one
MANY_OUTLIERS, MANY_DEAD = 0.01, 0.25  # shares; DINOv2 without registers has 2% (arXiv 2309.16588)
# What is left of a rank, or of the distance between images, when it is worth a word: training a fresh tower
# well may cut its rank to a third.
FALL = 0.25
GROWTH = 3.0  # a change of the norm by more than this factor, up or down


def health(tokens: Tensor) -> dict[str, float]:
    """Measures of a tower's tokens [B, N, D], computed in float64.

    images, tokens: B and B * N. finite: share of the tokens without NaN or infinity; below 1 the rest is NaN.
    rank: effective rank of the B * N tokens, 1 to min(B * N, D); images_rank: of the images' mean tokens.
    norm, norm_spread: the tokens' mean length, and its standard deviation over the mean.
    outliers: share of the tokens longer than 5 times the median (arXiv 2309.16588).
    cosine: of two images' mean tokens, the mean over pairs; 1: all look the same. NaN for one image.
    dead: share of the dimensions that are the same in all tokens. NaN for one token.
    Raises ValueError without tokens.
    """
    images, per_image, _ = tokens.shape
    if not tokens.numel():
        raise ValueError(f"no tokens to measure in {list(tokens.shape)}")
    tokens = tokens.detach().double()
    flat = tokens.flatten(0, 1)
    finite = flat.isfinite().all(1).double().mean().item()
    sizes = {"images": float(images), "tokens": float(images * per_image), "finite": finite}
    if finite < 1:
        missing = ("rank", "images_rank", "norm", "norm_spread", "outliers", "cosine", "dead")
        return sizes | dict.fromkeys(missing, math.nan)
    means = tokens.mean(1)
    norms = flat.norm(dim=1)
    norm = norms.mean().item()
    unit = F.normalize(means, dim=1)
    pairs = images * (images - 1)
    size = flat.square().mean().sqrt()
    still = flat.std(0, correction=0) <= STILL * size
    return sizes | {
        "rank": effective_rank(flat),
        "images_rank": effective_rank(means),
        "norm": norm,
        "norm_spread": norms.std(correction=0).item() / norm if norm else 0.0,
        "outliers": (norms > FAR * norms.median()).double().mean().item(),
        "cosine": ((unit.sum(0).square().sum() - unit.square().sum()) / pairs).item() if pairs else math.nan,
        "dead": still.double().mean().item() if len(flat) > 1 else math.nan,
    }


def effective_rank(rows: Tensor) -> float:
    """exp of the entropy of a matrix's singular values over their sum: RankMe (arXiv 2210.02885).

    As many equal singular values give just their number; 0 for a matrix of zeros.
    """
    values = torch.linalg.svdvals(rows)
    total = values.sum()
    if not total:
        return 0.0
    return torch.special.entr(values / total).sum().exp().item()


def alarms(now: dict[str, float], before: dict[str, float] | None) -> list[str]:
    """What is wrong now, and what changed since the same pictures were measured before, and what to do."""
    if now["finite"] < 1:
        return [_NO_NUMBERS.format((1 - now["finite"]) * now["tokens"], now["tokens"])]
    return [*_standing(now), *(_changed(now, before) if before else [])]


_SLOWER = "lower the tower's learning rate or freeze it"
_BACK = f"Go back to an earlier checkpoint, and {_SLOWER}."
_NO_NUMBERS = (
    "{:.0f} of {:.0f} image tokens are NaN or infinite. Go back to the last checkpoint, and lower the "
    "learning rate, or train in bfloat16 if this was float16."
)


def _standing(now: dict[str, float]) -> list[str]:
    found = []
    if now["cosine"] > ALIKE:
        found.append(
            f"The tower is blind: the mean tokens of {now['images']:.0f} pictures have a mean cosine of "
            f"{now['cosine']:.4f}, so the language model cannot tell them apart. Check that the "
            f"pictures differ. {_BACK}"
        )
    if now["rank"] < FEW and now["tokens"] > 2 * FEW:
        found.append(
            f"The image tokens have collapsed: their effective rank is {now['rank']:.1f}, so nearly all "
            f"point one way. {_BACK}"
        )
    if now["outliers"] > MANY_OUTLIERS:
        found.append(
            f"{now['outliers']:.1%} of the image tokens are over {FAR:g} times as long as the median: the "
            "tower keeps notes in them, and they no longer show their patch. Take a tower with "
            "registers, or an earlier layer."
        )
    if now["dead"] > MANY_DEAD:
        found.append(
            f"{now['dead']:.0%} of the dimensions are the same in every image token and say nothing. "
            "Lower the tower's learning rate and weight decay, or take a narrower tower."
        )
    return found


def _changed(now: dict[str, float], before: dict[str, float]) -> list[str]:
    found = []
    comparable = all(now[count] == before[count] for count in ("images", "tokens"))
    for key, what in (("rank", "image tokens"), ("images_rank", "pictures' mean tokens")):
        if comparable and now[key] < FALL * before[key]:
            found.append(
                f"The effective rank of the {what} fell from {before[key]:.1f} to {now[key]:.1f}: the tower "
                f"tells less and less apart. {_BACK}"
            )
    if 1 - now["cosine"] < FALL * (1 - before["cosine"]):
        found.append(
            f"The pictures grew alike: the mean cosine between them rose from {before['cosine']:.2f} to "
            f"{now['cosine']:.2f}. {_BACK}"
        )
    old, new = before["norm"], now["norm"]
    if new > GROWTH * old or new < old / GROWTH:
        found.append(
            f"The image tokens' mean length went from {old:.3g} to {new:.3g}, which the connector was "
            f"not trained for. Train the connector again, or {_SLOWER}."
        )
    return found

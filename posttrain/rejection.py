"""Rejection sampling: completions of many prompts, of which the good ones become rows to learn from.

`draw` writes what the model said, shard by shard; `select` reads that and writes the rows. A kill at any
moment costs the shards that were being made: drawn again, they are the same to the byte.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from posttrain import shards
from posttrain.image_parts import with_images
from posttrain.kinds import Keep
from posttrain.recipe import Sampling as Settings
from posttrain.rewards import Rewards
from posttrain.rollout.engine import Engine
from posttrain.shards import Line
from posttrain.train.background import POLL, Watch
from posttrain.types import Completion, PosttrainError, Prompt, Sampling, Score

SHARD = 16  # prompts; one call of the engine, so that what a prompt is drawn beside is always the same
SCORED = 64  # completions that one call of the rewards gets, or one prompt's where those are more
DRAWN, ROWS = "drawn", "rows.jsonl"

CUT, EMPTY, HARD, EASY = "cut off", "empty", "too hard", "too easy"
REPEATS, EACH, MOST = "repeats", "more than each", "more than rows"
ADVICE = {
    CUT: "were cut off; raise sampling.max_tokens",
    EMPTY: "are empty; look at data.prompt, or sample another model",
    HARD: "are right, but of prompts that are too hard; lower keep.hardest",
    EASY: "are right, but of prompts that are too easy; raise keep.easiest",
}

Least = Mapping[str, tuple[str, float]]  # by a reward's name in the recipe: its name among the parts, value


def draw(
    engine: Engine,
    prompts: Sequence[Prompt],
    encode: Callable[[Prompt], list[int]],
    sampling: Settings,
    rewards: Rewards,
    folder: Path,
    *,
    seed: int,
    rank: int,
    world: int,
    watch: Watch,
) -> None:
    """Draw and score completions of all prompts into `folder/drawn/00000.jsonl` and so on, 16 prompts each.

    Shard i is process i % world's; those that are there and whole stay as they are. A shard is scored while
    the next one is generated; the rewards see the same groups together whenever it is done.

    Args:
        watch: told of completions, over all prompts and processes; where it raises, the shard that is being
            scored is still written.

    A line of a shard is a prompt: "id", "index" (its place among the prompts), "prompt", "images" (where raw
    text has any: paths and data URIs, as they are in the messages of a chat), "answer", "columns",
    "completions": [{"text", "tokens" (how many), "finish", "parts", "total", "failures"}].
    """
    drawn = folder / DRAWN
    drawn.mkdir(parents=True, exist_ok=True)
    n, total = sampling.completions, len(prompts) * sampling.completions
    how = Sampling(**sampling.model_dump(exclude={"completions"}))
    sizes = [min(SHARD, len(prompts) - first) for first in range(0, len(prompts), SHARD)]
    of = {"shards": len(sizes), "seed": seed, "sampling": sampling.model_dump()}
    ends = [{"first": i * SHARD, "prompts": size, **of} for i, size in enumerate(sizes)]
    paths = [shards.path_of(drawn, i) for i in range(len(sizes))]
    mine = range(rank, len(sizes), world)
    missing = [i for i in mine if not shards.is_there(paths[i], ends[i])]
    generated = set(mine).difference(missing)

    def done() -> int:
        theirs = (i for i, path in enumerate(paths) if i % world != rank and path.exists())
        return n * (sum(sizes[i] for i in generated) + sum(sizes[i] for i in theirs))

    def score(i: int, some: Sequence[Prompt], groups: list[list[Completion]]) -> None:
        scores = _scores(rewards, some, groups)
        asked = enumerate(zip(some, groups, scores, strict=True), start=i * SHARD)
        lines = [_line(index, *one) for index, one in asked]
        shards.write(paths[i], [*lines, ends[i]])

    def finish(scoring: Future[None], at: int) -> None:
        watch("scoring", at, total)
        while wait([scoring], timeout=POLL).not_done:
            watch("scoring", at, total)
        scoring.result()

    # One shard at a time waits for its scores, in a thread that is waited for however this ends: the caller
    # closes the rewards then, and the failures that come of that must not be written down.
    with ThreadPoolExecutor(1, thread_name_prefix="scoring") as thread:
        scoring: Future[None] | None = None
        for i in missing:
            some, at = prompts[i * SHARD : (i + 1) * SHARD], done()
            seeds = [_random(seed, "draw", i * SHARD + k).getrandbits(63) for k in range(len(some))]
            report = lambda k, _, at=at: watch("sampling", at + k, total)  # noqa: E731
            groups = engine.generate([encode(prompt) for prompt in some], n, how, seeds, report)
            generated.add(i)
            if scoring is not None:
                finish(scoring, done())
            scoring = thread.submit(score, i, some, groups)
        if scoring is not None:
            finish(scoring, done())


def _scores(
    rewards: Rewards, prompts: Sequence[Prompt], groups: Sequence[list[Completion]]
) -> list[list[Score]]:
    """The scores of whole groups, about SCORED completions a call."""
    n = len(groups[0])
    owners = [prompt for prompt in prompts for _ in range(n)]
    flat = [completion for group in groups for completion in group]
    step = n * max(1, SCORED // n)
    scores: list[Score] = []
    for at in range(0, len(flat), step):
        scores += rewards.score(owners[at : at + step], flat[at : at + step])
    return [scores[at : at + n] for at in range(0, len(scores), n)]


def select(folder: Path, keep: Keep, seed: int, names: Mapping[str, str]) -> dict[str, Any]:
    """Write `folder/rows.jsonl` from the shards that `draw` wrote, in the order of the prompts.

    A row: "prompt" (text or messages), "images" (where raw text has any), "completion" (text), "answer",
    "pass_rate" of its prompt, "scores" (the rewards' parts), and the prompt's own columns but for those of
    the same names. The shards are read twice; in memory are which completions are kept, and a short hash of
    each that could have been.

    Args:
        names: of each reward in `keep.least`, its name among the parts: {"./mine.py:right": "right"}.

    Returns:
        "prompts", "completions", "kept": how many
        "dropped": {reason: completions}; each one counts for the first reason that holds
        "pass_rates": {"prompts", "kept"}: prompts and rows in the fifths of the pass rate, [0, 0.2) first
        "parts": {name: mean over the completions that have it; None where none has}
        "failures": {name: {"completions", "first": a reason}}, of rewards that failed

    Raises:
        PosttrainError: nothing is kept, or a shard is missing or damaged.
    """
    least = {use: (names[use], value) for use, value in keep.least.items()}
    reasons = (CUT, EMPTY, *map(_below, least), HARD, EASY, REPEATS, EACH, MOST)
    dropped: dict[str, int] = dict.fromkeys(reasons, 0)
    prompts, completions = [0] * 5, 0
    parts: dict[str, list[float]] = {}  # sum, count
    failures: dict[str, Line] = {}
    seen: set[bytes] = set()  # of what was said to which prompt
    taken: Counter[bytes] = Counter()  # rows by prompt, which may be there more than once
    fifths: list[list[tuple[int, int]]] = [[] for _ in prompts]  # (prompt's place, completion's) of rows
    for line in shards.lines_of(folder / DRAWN):
        said, asked = line["completions"], _hash([line["prompt"], line.get("images")])
        lacking = [_lacks(one, least) for one in said]
        rate = lacking.count(None) / len(said)
        fifth = min(4, lacking.count(None) * 5 // len(said))
        prompts[fifth] += 1
        completions += len(said)
        good: list[int] = []
        for k, one in enumerate(said):
            _add(one, parts, failures)
            reason = _reason(one, lacking[k], rate, keep)
            if reason is None:
                key = asked + _hash(" ".join(one["text"].split()).casefold())
                reason = REPEATS if key in seen else None
                seen.add(key)
            if reason is None:
                good.append(k)
            else:
                dropped[reason] += 1
        room = min(len(good), keep.each - taken[asked])
        dropped[EACH] += len(good) - room
        taken[asked] += room
        fifths[fifth] += [(line["index"], k) for k in _random(seed, "each", line["index"]).sample(good, room)]
    ready = sum(map(len, fifths))
    shares = _shares([len(some) for some in fifths], ready if keep.rows is None else keep.rows)
    kept: dict[int, list[int]] = {}
    for fifth, (some, share) in enumerate(zip(fifths, shares, strict=True)):
        for index, k in _random(seed, "rows", fifth).sample(some, share):
            kept.setdefault(index, []).append(k)
    dropped[MOST] = ready - sum(shares)
    if not ready:
        raise PosttrainError(_nothing(sum(prompts), completions, dropped, least, failures))
    picked = ((line, sorted(kept.get(line["index"], ()))) for line in shards.lines_of(folder / DRAWN))
    shards.write(folder / ROWS, (_row(line, k, least) for line, places in picked for k in places))
    return {
        "prompts": sum(prompts),
        "completions": completions,
        "kept": sum(shares),
        "dropped": dropped,
        "pass_rates": {"prompts": prompts, "kept": shares},
        "parts": {name: sums / count if count else None for name, (sums, count) in parts.items()},
        "failures": failures,
    }


def _below(use: str) -> str:
    return f"below {use}"


def _lacks(completion: Line, least: Least) -> str | None:
    """The first reward of which a completion has too little, or that failed on it."""
    for use, (name, value) in least.items():
        part = completion["parts"][name]
        if name in completion["failures"] or (part is not None and part < value):
            return use
    return None


def _reason(completion: Line, lacking: str | None, rate: float, keep: Keep) -> str | None:
    """Why a completion is no row, whatever the others say."""
    if completion["finish"] == "length":
        return CUT
    if not completion["text"].strip():
        return EMPTY  # fine-tuning refuses a row without anything to write
    if lacking is not None:
        return _below(lacking)
    if rate <= keep.hardest:
        return HARD
    return EASY if rate > keep.easiest else None


def _add(completion: Line, parts: dict[str, list[float]], failures: dict[str, Line]) -> None:
    for name, part in completion["parts"].items():
        so_far = parts.setdefault(name, [0.0, 0])
        if part is not None:
            so_far[0] += part
            so_far[1] += 1
    for name, reason in completion["failures"].items():
        failures.setdefault(name, {"completions": 0, "first": reason})["completions"] += 1


def _shares(sizes: Sequence[int], most: int) -> list[int]:
    """How many of `most` to take from each, as evenly as can be: scarce ones give all they have.

    Example: [1, 9, 0, 4, 9], 12 -> [1, 4, 0, 3, 4]
    """
    shares = [0] * len(sizes)
    by_size = sorted(range(len(sizes)), key=lambda i: sizes[i])
    for place, i in enumerate(by_size):
        shares[i] = min(sizes[i], most // (len(sizes) - place))
        most -= shares[i]
    return shares


def _row(line: Line, k: int, least: Least) -> Line:
    completion = line["completions"][k]
    passed = sum(_lacks(one, least) is None for one in line["completions"])
    ours = {
        "prompt": line["prompt"],
        "completion": completion["text"],
        **({"images": line["images"]} if "images" in line else {}),
        "answer": line["answer"],
        "pass_rate": passed / len(line["completions"]),
        "scores": completion["parts"],
    }
    # `messages` is a whole conversation to fine-tuning, which would learn it instead of the completion.
    taken = (*ours, "messages")
    return ours | {name: value for name, value in line["columns"].items() if name not in taken}


def _nothing(
    prompts: int, completions: int, dropped: dict[str, int], least: Least, failures: dict[str, Line]
) -> str:
    """Says which reason was the most frequent one, and what to do about it."""
    reason = max(dropped, key=lambda reason: dropped[reason])
    advice = ADVICE.get(reason, "")
    for use, (name, value) in least.items():
        if reason == _below(use):
            advice = (
                f"have less than {value:g} of {use}; lower keep.least.{use}, raise sampling.completions, "
                "or sample a better model"
            )
            if name in failures:
                failed = failures[name]
                advice += f" ({use} failed on {failed['completions']}, first because: {failed['first']})"
    said = f"nothing is kept of {completions} completions of {prompts} prompts"
    return f"{said}: {dropped[reason]} of them {advice}"


def _line(index: int, prompt: Prompt, completions: Sequence[Completion], scores: Sequence[Score]) -> Line:
    return {
        "id": prompt.id,
        "index": index,
        "prompt": with_images(prompt.content, lambda picture: picture.cell),
        **({"images": [picture.cell for picture in prompt.beside]} if prompt.beside else {}),
        "answer": prompt.answer,
        "columns": prompt.columns,
        "completions": [
            {
                "text": completion.text,
                "tokens": len(completion.tokens),
                "finish": completion.finish,
                "parts": score.parts,
                "total": score.total,
                "failures": score.failures,
            }
            for completion, score in zip(completions, scores, strict=True)
        ],
    }


def _random(seed: int, what: str, place: int) -> random.Random:
    return random.Random(f"{seed}/{what}/{place}")


def _hash(value: Any) -> bytes:
    return hashlib.blake2b(json.dumps(value).encode(), digest_size=16).digest()

"""A maze of squares: how long the shortest way is, or whether there is one. Reward: accuracy.

Kinds: length (a number of steps), reachable (yes or no, equally likely).
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

from posttrain.errors import PosttrainError
from posttrain.scenes._draw import COLORS, LINES, canvas, kind_of, whole

if TYPE_CHECKING:
    from PIL import Image

KINDS = ("length", "reachable")
WALLS = {"length": 0.3, "reachable": 0.45}  # the share of squares

Square = tuple[int, int]  # row, column


def draw(
    rng: random.Random, *, pixels: int = 64, kinds: Sequence[str] | str | None = None, squares: int = 7
) -> tuple[Image.Image, dict[str, str]]:
    """squares x squares, walls black; from the green one to the red one. Lengths that a maze has are equally
    likely in it."""
    from PIL import ImageDraw

    image, kind = canvas(pixels), kind_of(rng, kinds, KINDS)
    side = pixels // whole("squares", squares, 3, 25)
    if side < 4:
        raise PosttrainError(f"{squares} squares do not fit into {pixels} pixels; choose more pixels")
    there = rng.random() < 0.5
    while True:
        free = {
            (row, column)
            for row in range(squares)
            for column in range(squares)
            if rng.random() >= WALLS[kind]
        }
        if len(free) < 2:
            continue
        start = rng.choice(sorted(free))
        steps = distances(free, start)
        goals = sorted(free - {start})
        if kind == "length":
            longest = max(steps.values())
            wanted = rng.randint(1, longest) if longest else 0
            goals = [goal for goal in goals if steps.get(goal) == wanted]
        else:
            goals = [goal for goal in goals if (goal in steps) == there]
        if goals:
            break
    goal = rng.choice(goals)
    pen = ImageDraw.Draw(image)
    for row in range(squares):
        for column in range(squares):
            at = (row, column)
            fill = "green" if at == start else "red" if at == goal else "black" if at not in free else None
            x, y = column * side, row * side
            pen.rectangle(
                (x, y, x + side - 1, y + side - 1), fill=COLORS[fill] if fill else None, outline=LINES
            )
    how = "A step goes to the next square above, below, left or right; black squares are walls."
    if kind == "length":
        question = f"How many steps is the shortest way from the green square to the red one? {how}"
        answer = str(steps[goal])
    else:
        question = f"Is there a way from the green square to the red one? {how} Answer yes or no."
        answer = "yes" if there else "no"
    return image, {"question": question, "answer": answer, "kind": kind}


def distances(free: set[Square], start: Square) -> dict[Square, int]:
    """Steps from `start` to every free square that can be reached."""
    found, queue = {start: 0}, deque([start])
    while queue:
        row, column = queue.popleft()
        for at in ((row + 1, column), (row - 1, column), (row, column + 1), (row, column - 1)):
            if at in free and at not in found:
                found[at] = found[row, column] + 1
                queue.append(at)
    return found

"""COCO's average precision, against values by hand and a naive twin."""

import json
import random

import pytest

from posttrain.types import PosttrainError


def box(label, *corners, **score):
    return {"box": list(corners), "label": label, **score}


CAT, DOG = box("cat", 0, 0, 10, 10), box("dog", 20, 20, 30, 30)
FALSE = [50, 50, 60, 60]


@pytest.mark.parametrize(
    ("found", "gold", "value"),
    [
        ([CAT], [CAT], 1.0),
        ([CAT, DOG], [DOG, CAT], 1.0),
        ([], [], 1.0),
        ([], [CAT], 0.0),
        ([CAT], [], 0.0),
        ([CAT], [CAT, DOG], 1 / 2),
        ([CAT, DOG], [CAT], 1 / 2),  # a label that is not there
        ([CAT] + [box(f"no {i}", *FALSE) for i in range(9)], [CAT], 1 / 10),
        ([box("dog", 0, 0, 10, 10)], [CAT], 0.0),
        ([box("cat", 0, 0, 10, 6)], [CAT], 3 / 10),  # overlaps by 0.6: right at 0.5, 0.55, 0.6
        ([box("cat", 0, 0, 10, 7.6)], [CAT], 6 / 10),
        ([box("cat", 0, 0, 10, 4)], [CAT], 0.0),
        ([CAT], [CAT, box("cat", 50, 50, 60, 60)], 51 / 101),  # precision 1 up to recall 0.5
        ([CAT, CAT], [CAT], 1.0),  # the second one comes after full recall
        ([box("cat", *FALSE), CAT], [CAT], 1 / 2),  # a surer false one first
        ([box("cat", *FALSE, score=0.1), {**CAT, "score": 0.9}], [CAT], 1.0),
        ([box("cat", *FALSE, score=0.9), {**CAT, "score": 0.1}], [CAT], 1 / 2),
        ([{"bbox_2d": [0, 0, 10, 10], "label": " Cat "}], [CAT], 1.0),
        ([box("猫", 0, 0, 1, 1)], [box("猫", 0, 0, 1, 1)], 1.0),
    ],
)
def test_by_hand(reward, found, gold, value):
    text = f"<think>Let me see.</think>Here:\n```json\n{json.dumps(found, ensure_ascii=False)}\n```"
    assert reward([text], answer=[gold]) == [pytest.approx(value)]
    assert reward([[{"role": "assistant", "content": text}]], answer=[json.dumps(gold)]) == [
        pytest.approx(value)
    ]


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[", "a cat", json.dumps(CAT), json.dumps([CAT])[:-1], "[[0, 0, 10, 10]]", "[1]", "[null]",
        json.dumps([{**CAT, "label": 3}]), json.dumps([{**CAT, "score": "high"}]),
        json.dumps([{**CAT, "score": float("nan")}]), json.dumps([{**CAT, "score": True}]),
        json.dumps([CAT, {"label": "cat"}]), json.dumps([CAT, box("cat", 10, 10, 0, 0)]),
        json.dumps([{**CAT, "box": [0, 0, 1e308, 1e308]}]), '[{"box": [0, 0, 1e999, 10], "label": "cat"}]',
        json.dumps([CAT] * 301), "[" * 10**5, "<think>" + json.dumps([CAT]) + "</think>",
    ],
)  # fmt: skip
def test_malformed_is_worth_nothing(reward, text):
    assert reward([text], answer=[[CAT]]) == [0.0]


def test_gold(reward):
    assert reward(["[]"], answer=[None]) == [None]
    for gold in ("a cat", [1], {"box": 1}, [{"label": "cat"}]):
        with pytest.raises(PosttrainError, match="no list of boxes"):
            reward(["[]"], answer=[gold])


def overlap(a, b):
    cells = [{(x, y) for x in range(c[0], c[2]) for y in range(c[1], c[3])} for c in (a, b)]
    return len(cells[0] & cells[1]) / len(cells[0] | cells[1])


def twin(found, gold):
    """The definition, word by word: boxes of whole numbers, all scores different."""
    labels = {b["label"] for b in found + gold}
    total = 0.0
    for label in labels:
        mine = sorted((b for b in found if b["label"] == label), key=lambda b: b["score"], reverse=True)
        theirs = [b for b in gold if b["label"] == label]
        for step in range(10):
            threshold, taken, curve = 0.5 + 0.05 * step, [], []
            for tried, b in enumerate(mine, 1):
                rest = [g for g in theirs if g not in taken]
                best = max(rest, key=lambda g: overlap(b["box"], g["box"]), default=None)
                if best and overlap(b["box"], best["box"]) >= threshold - 1e-6:
                    taken.append(best)
                curve.append((len(taken) / max(1, len(theirs)), len(taken) / tried))
            for r in range(101):
                total += max((p for recall, p in curve if recall >= r / 100 - 1e-6), default=0) / 101 / 10
    return total / len(labels) if labels else 1.0


def test_against_a_naive_twin(reward):
    draw = random.Random(1)

    def boxes(count):
        made = []
        for i in range(count):
            x, y = draw.randrange(4), draw.randrange(4)
            corners = (x, y, x + draw.randrange(2, 6), y + draw.randrange(2, 6))
            made.append(box(draw.choice("ab"), *corners, score=draw.random() + i))
        return made

    for _ in range(60):
        found, gold = boxes(draw.randrange(6)), boxes(draw.randrange(5))
        assert reward([json.dumps(found)], answer=[gold]) == [pytest.approx(twin(found, gold))]

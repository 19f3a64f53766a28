"""The repetition penalty, against counts by hand and a naive twin."""

import random

import pytest

from posttrain.types import PosttrainError


@pytest.mark.parametrize(
    ("text", "n", "value"),
    [
        ("", 3, 0.0),
        ("one two", 3, 0.0),
        ("one two three", 3, 0.0),
        ("one two three four", 3, 0.0),
        ("a a a a", 3, -1 / 2),  # aaa twice
        ("a b a b a b", 2, -3 / 5),  # ab ba ab ba ab
        ("A b\na  B", 2, -1 / 3),  # ab ba ab
        ("a b c", 1, 0.0),
        ("a a a a", 1, -3 / 4),
        ("你好你好你好", 2, -3 / 5),
        ("今天天气很好", 2, 0.0),
        ("ไปไปไปไป", 2, -5 / 7),
        ("привет мир привет мир", 2, -1 / 3),
        ("用 attention 用 attention", 2, -1 / 3),
        ("{", 3, 0.0),
        ("\x00" * 9, 3, 0.0),  # one word
    ],
)
def test_repetition(reward, text, n, value):
    assert reward([text], n=n) == [pytest.approx(value)]
    assert reward([[{"role": "assistant", "content": text}]], n=n, max_penalty=-0.5) == [
        pytest.approx(value / 2)
    ]


def naive(words, n):
    seen, again, total = [], 0, 0
    for i in range(len(words) - n + 1):
        gram = words[i : i + n]
        again += gram in seen
        total += 1
        seen.append(gram)
    return -again / total if total else 0.0


def test_against_a_naive_twin(reward):
    draw = random.Random(0)
    for n in (1, 2, 3, 5):
        words = [draw.choice("abcd") for _ in range(draw.randrange(60))]
        assert reward([" ".join(words)], n=n) == [pytest.approx(naive(words, n))]


def test_huge_texts_stay_within_the_range(reward):
    assert reward(["a " * 10**6, "a" * 10**7, "的" * 10**6]) == [
        pytest.approx(-1, abs=1e-3), 0.0, pytest.approx(-1, abs=1e-3)
    ]  # fmt: skip


def test_no_penalty_is_no_penalty(reward):
    assert reward(["a a a a a"], max_penalty=0.0) == [0.0]


@pytest.mark.parametrize("args", [{"n": 0}, {"n": -1}, {"max_penalty": 0.5}])
def test_arguments_that_make_no_sense_are_refused(reward, args):
    with pytest.raises(PosttrainError, match=next(iter(args))):
        reward(["text"], **args)

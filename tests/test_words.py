"""Words in any script, what follows the reasoning, the nearest name."""

from __future__ import annotations

import pytest

from posttrain.words import after_reasoning, did_you_mean, words


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", []),
        (" \n", []),
        ("one, two\tthree.", ["one,", "two", "three."]),
        ("我用GPU。", ["我", "用", "GPU。"]),
        ("りんごを食べる", list("りんごを食べる")),
        ("हिन्दी भाषा", ["हिन्दी", "भाषा"]),
        ("한국어 문장", ["한국어", "문장"]),
        ("\x00", ["\x00"]),
    ],
)
def test_words(text: str, found: list[str]) -> None:
    assert words(text) == found


def test_nothing_is_lost() -> None:
    text = "Ein Text, 一篇文章 and ข้อความ."
    assert "".join(words(text)) == "".join(text.split())


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        ("", ""),
        (" no thought ", " no thought "),
        ("<think>a</think> b", " b"),
        ("a</think>b</think>\nc", "\nc"),  # chat templates open the thought themselves
        ("<think>a</think>", ""),
        ("<think>a", "<think>a"),
        ("a</think>b<think>c", "b<think>c"),
    ],
)
def test_what_follows_the_reasoning(text: str, rest: str) -> None:
    assert after_reasoning(text) == rest


def test_the_nearest_name() -> None:
    names = {"boxed": 1, "boxes": 2, "any": 3}
    assert did_you_mean("boxd", names) == "did you mean 'boxed'?"
    assert did_you_mean("boxe", names, "; did you mean", most=2) == "; did you mean 'boxes' or 'boxed'?"
    assert did_you_mean("zzz", names, " Did you mean") == did_you_mean("a", []) == ""
    assert did_you_mean(None, ["none"]) == did_you_mean("None", ["none"]) == "did you mean 'none'?"
    assert did_you_mean("x", names, most=3, cutoff=0).count("'") == 6

"""Words in any script."""

from __future__ import annotations

import pytest

from posttrain.words import words


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

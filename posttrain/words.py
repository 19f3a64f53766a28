"""What stands in a text: its words, in any script and without a dictionary; what follows the reasoning."""

from __future__ import annotations

import re

# Scripts without spaces between words, for a character class: Thai and Lao, Myanmar, Khmer, kana, Han.
UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"
    "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)  # fmt: skip
_WORD = re.compile(rf"[{UNSPACED}]|[^\s{UNSPACED}]+")


def words(text: str) -> list[str]:
    """What stands between spaces, marks included; in scripts without spaces, each character.

    Example: words("用 GPU, yes.") -> ["用", "GPU,", "yes."]
    """
    return _WORD.findall(text)


def after_reasoning(text: str) -> str:
    """What follows the last "</think>"; the whole text where there is none."""
    return text.rpartition("</think>")[2]

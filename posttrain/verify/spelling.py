"""One spelling for answers: ASCII digits and signs, LaTeX without its wrapping, no emphasis, no full stop."""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

_SYMBOLS = {
    "∞": r"\infty ", "≤": r"\le ", "≥": r"\ge ", "⩽": r"\le ", "⩾": r"\ge ", "≠": r"\ne ", "∪": r"\cup ",
    "∈": r"\in ", "π": r"\pi ", "±": r"\pm ", "∅": r"\emptyset ", "ℝ": r"\mathbb{R}", "“": '"', "”": '"',
    "⟨": r"\langle ", "⟩": r"\rangle ", "’": "'", "‘": "'",
}  # fmt: skip
_TRANSLATION = str.maketrans(_SYMBOLS)
_SUPERSCRIPTS, _SUBSCRIPTS = "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻", "₀₁₂₃₄₅₆₇₈₉₊₋"
_RAISED, _LOWERED = re.compile(f"[{_SUPERSCRIPTS}]+"), re.compile(f"[{_SUBSCRIPTS}]+")
_TO_ASCII = str.maketrans(_SUPERSCRIPTS + _SUBSCRIPTS, "0123456789+-" * 2)
_ROOT = re.compile(r"√\s*(?:\(([^()]*)\)|\{([^{}]*)\}|(\d+(?:\.\d+)?|[A-Za-z]))")
_SPELLINGS = [
    (re.compile(pattern), new)
    for pattern, new in [
        (r"\\{2}(?=(?:begin|end)\b)", r"\\"),
        (r"(?<=\d)(?:\{,\}|\\[,!]|[\u00a0\u2009\u202f])\s*(?=\d{3})", ","),
        # The words of a formula stand apart: 5\text{m} is 5 m, and no product.
        (r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathit|mbox|operatorname)\s*\{([^{}]*)\}", r" \1"),
        (r"\\(?:left|right|[Bb]igg?[lr]?|displaystyle|quad|qquad)(?![A-Za-z])", " "),
        (r"\\[,!;: ]|\\\(|\\\)|\\\[|\\\]|(?<!\d)\*\*|\*\*(?!\d)|`|~", " "),
        (r"\\([$%#&])", r"\1"),
        (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
        (r"\\frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}"),
        (r"\\frac\s*(\d)\s*\{", r"\\frac{\1}{"),
        (r"\\sqrt\s*(\d|[A-Za-z])", r"\\sqrt{\1}"),
        (r"(?<![\\A-Za-z])sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}"),
        (r"(?<![\\A-Za-z])(sin|cos|tan|log|ln|exp|pi)(?![A-Za-z])", r"\\\1"),
        (r"\\(?:lbrace|lcb)(?![A-Za-z])", r"\\{"),
        (r"\\(?:rbrace|rcb)(?![A-Za-z])", r"\\}"),
        (r"\\(?:leq|leqslant|le)(?![A-Za-z])|<=", r"\\le "),
        (r"\\(?:geq|geqslant|ge)(?![A-Za-z])|>=", r"\\ge "),
        (r"\\(?:neq|ne)(?![A-Za-z])|(?<![\d)}])!=", r"\\ne "),  # 5!=120 is a factorial
        (r"\\lt(?![A-Za-z])", "<"),
        (r"\\gt(?![A-Za-z])", ">"),
        (r"\\(?:varnothing|empty)(?![A-Za-z])|\\\{\s*\\\}", r"\\emptyset "),
        (r"\\(?:land|wedge)(?![A-Za-z])", " and "),
        (r"\\(?:lor|vee)(?![A-Za-z])", " or "),
        (r"\^\s*\{?\s*\\(?:circ|degree)\s*\}?", "°"),
        (r"\s*(?:\\times|\\cdot|×|·|(?<=\d)\s*[*xX])\s*10\s*\^", r"\\times10^"),
        (r"\s+", " "),
    ]
]


def normalise(text: str) -> str:
    """One spelling: ASCII digits and signs, no LaTeX wrapping or spacing, no full stop, no emphasis.

    The rows of a matrix are parted by \\cr, so that no LaTeX spacing is read into its \\\\.

    Example: normalise("$\\\\left(1,\\\\,\\\\dfrac12\\\\right)$.") == "(1, \\\\frac{1}{2} )"
    """
    if not text.isascii():
        text = "".join(map(_plain_character, text))
        text = _RAISED.sub(lambda match: "^{" + match[0].translate(_TO_ASCII) + "}", text)
        text = _LOWERED.sub(lambda match: "_{" + match[0].translate(_TO_ASCII) + "}", text)
        text = _ROOT.sub(lambda match: r"\sqrt{" + (match[1] or match[2] or match[3] or "") + "}", text)
        text = text.translate(_TRANSLATION)
    text = text.strip()
    if "\\begin" in text:
        text = re.sub(r"\\\\(?!begin|end)", r"\\cr ", text)
    elif "\\\\" in text:  # escaped twice, on its way through JSON
        text = re.sub(r"\\\\(?=[A-Za-z(){}$%\[\]])", r"\\", text)
    for pattern, new in _SPELLINGS:
        text = pattern.sub(new, text)
    text = text.strip()
    if len(text) > 1 and text[0] == "$" and text[-1] == "$":
        text = text.strip("$ ")
    text = text.rstrip(".,;").strip()
    if len(text) > 2 and text[0] == text[-1] and text[0] in "\"'":
        text = text[1:-1].strip()
    return text


@lru_cache(maxsize=4096)
def _plain_character(char: str) -> str:
    if char.isascii():
        return char
    if char.isdecimal():  # ٤, ४, ４ … but not ⁴ or ④, which would change the number
        return str(unicodedata.decimal(char))
    form = unicodedata.normalize("NFKC", char)
    kind = unicodedata.decomposition(char)
    if kind.startswith("<fraction>"):
        return " " + form.replace("\u2044", "/")
    if char in "−–﹣－":
        return "-"
    if kind.startswith("<wide>"):
        return form
    return char


def is_math(text: str) -> bool:
    """Whether a normalised text is a formula. Words are not: as products of letters, listen = silent."""
    if re.search(r"[^\W\d_]{3,}", re.sub(r"\\(?:begin|end)\{[A-Za-z]+\}|\\[A-Za-z]+", " ", text)):
        return False
    return len(text) == 1 or re.search(r"[\d\\^_+*/=<>|()\[\],-]", text) is not None


def same_text(ours: str, theirs: str) -> bool:
    """Whether two normalised texts are the same; capitals tell formulas apart (V is not v), but not words."""
    ours, theirs = _key(ours), _key(theirs)
    return ours == theirs or (len(ours) > 1 and not is_math(theirs) and ours.casefold() == theirs.casefold())


def _key(text: str) -> str:
    letter = re.fullmatch(r"\(?([A-Za-z])[).]?", text)  # a choice: (B), B) or B
    text = letter[1] if letter else text
    # A space parts two numbers, and a command from its letter: "1 2", "\pi r".
    return (
        re.sub(r"(?<![\dA-Za-z])\s+|\s+(?![\dA-Za-z])", "", text)
        if re.search(r"\d", text)
        else (re.sub(r"\s+", "", text))
    )

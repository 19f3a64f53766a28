"""The share of a row's constraints that the response keeps, 0.0 to 1.0; None for a row without any.

`constraints` is a column: a list, or its JSON, of objects such as {"kind": "words", "max": 100}. The kinds:

- keyword: `word` stands in the response, whatever its capitals; {"max": 0} forbids it, {"min": 3} asks for
  three
- words, sentences, paragraphs, bullets: how many there are; a paragraph ends with an empty line
- sections: how many lines begin with `title` and a number ("Section 1")
- starts_with, ends_with: `text`, whatever its capitals
- lowercase, uppercase, no_commas, quoted (the whole of it in quotation marks), json (the whole of it)
- postscript: a line begins with `marker` ("P.S.") and goes on

Counts take `min`, `max` or both; with neither, one is enough. The reasoning, up to the last </think>, is no
part of the response, and one without a letter or digit keeps nothing. Words are what stands between spaces,
and each character in scripts without spaces. `strict` pays 1.0 where all are kept, and else 0.0. For the
language of a response there is the reward `language`.
"""

import json
import re
import unicodedata

from posttrain.json_text import whole_json
from posttrain.types import PosttrainError
from posttrain.verify import text_of
from posttrain.words import UNSPACED, after_reasoning, did_you_mean, words

LONGEST = 200_000  # characters of a response that are read
LETTER = rf"[^\W{UNSPACED}]"
SENTENCE = re.compile(r"(?<![.!?…])[.!?…]+(?=[\"'”’)\]]*(?:\s|$))|[。！？｡]+|\n\s*\n")
BULLET = re.compile(r"^[ \t]*[-*•+·][ \t]+\S", re.MULTILINE)
QUOTES = {'"': '"', "“": "”", "„": "“", "«": "»", "「": "」", "『": "』", "'": "'", "‘": "’"}


def constraints(completions, constraints=None, strict: bool = False, **columns):
    rows = constraints if constraints is not None else [None] * len(completions)
    return [judge(text_of(said), row, strict) for said, row in zip(completions, rows, strict=True)]


def judge(text, row, strict):
    wanted = read(row)
    if not wanted:
        return None
    text = after_reasoning(text).strip()[:LONGEST]
    said = any(char.isalnum() for char in text)
    kept = [keeps(text, constraint) and said for constraint in wanted]
    return float(all(kept)) if strict else sum(kept) / len(kept)


def read(row):
    try:
        wanted = json.loads(row) if isinstance(row, str) else row
    except ValueError as error:
        raise PosttrainError(f"constraints: {row[:80]!r} is no JSON: {error}") from None
    if wanted is not None and not (isinstance(wanted, list) and all(isinstance(one, dict) for one in wanted)):
        raise PosttrainError(
            'constraints: a row holds a list of objects, such as {"kind": "words", "max": 9}'
        )
    return wanted


def keeps(text, constraint):
    kind = constraint.get("kind")
    if kind not in KINDS:
        hint = did_you_mean(kind, KINDS, " Did you mean")
        raise PosttrainError(f"constraints: there is no kind {kind!r}.{hint} There are: {', '.join(KINDS)}.")
    look, field, counts = KINDS[kind]
    # A table of rows has every field in every row, empty where the kind has no use for it.
    given = {key: value for key, value in constraint.items() if key != "kind" and value is not None}
    fields = [name for name, used in ((field, field), ("min", counts), ("max", counts)) if used]
    for name in given.keys() - fields:
        raise PosttrainError(f"constraints: {kind} has no {name!r}; it takes {', '.join(fields) or 'none'}")
    needle = given.get(field, "") if field else ""
    if not isinstance(needle, str) or bool(field) != bool(needle.strip()):
        raise PosttrainError(f"constraints: {kind} needs a text as {field!r}")
    found = look(text, needle.strip().casefold())
    return within(found, given) if counts else found


def within(found, given):
    low, high = given.get("min"), given.get("max")
    for bound in (low, high):
        if bound is not None and (isinstance(bound, bool) or not isinstance(bound, int | float)):
            raise PosttrainError(f"constraints: {bound!r} is no number")
    if low is None and high is None:
        low = 1
    return (low is None or found >= low) and (high is None or found <= high)


def keywords(text, word):
    # A letter of a script with spaces is followed by no other one where the word ends.
    start, end = (rf"(?<!{LETTER})", rf"(?!{LETTER})")
    before = start if re.match(LETTER, word[0]) else ""
    after = end if re.match(LETTER, word[-1]) else ""
    return len(re.findall(before + re.escape(word) + after, text.casefold()))


def word_count(text, _):
    return sum(any(char.isalnum() for char in word) for word in words(text))


def sentences(text, _):
    return sum(any(char.isalnum() for char in part) for part in SENTENCE.split(text))


def paragraphs(text, _):
    return sum(any(char.isalnum() for char in part) for part in re.split(r"\n\s*\n", text))


def bullets(text, _):
    return len(BULLET.findall(text))


def sections(text, title):
    return len(re.findall(rf"^[#*_ \t]*{re.escape(title)}[ \t]*\d", text.casefold(), re.MULTILINE))


def quoted(text, _):
    return len(text) > 2 and QUOTES.get(text[0]) == text[-1]


def is_json(text, _):
    try:
        whole_json(text)
    except ValueError:
        return False
    return True


def postscript(text, marker):
    line = rf"^[*_ \t]*{re.escape(marker)}[*_:]*[ \t]*[^\W_]"
    return re.search(line, text.casefold(), re.MULTILINE) is not None


def no_commas(text, _):
    return not any("COMMA" in unicodedata.name(char, "") for char in set(text))


# kind: what to look for, the field with the text it needs, and whether it is counted
KINDS = {
    "keyword": (keywords, "word", True),
    "words": (word_count, None, True),
    "sentences": (sentences, None, True),
    "paragraphs": (paragraphs, None, True),
    "bullets": (bullets, None, True),
    "sections": (sections, "title", True),
    "starts_with": (lambda text, start: text.casefold().startswith(start), "text", False),
    "ends_with": (lambda text, end: text.casefold().endswith(end), "text", False),
    "lowercase": (lambda text, _: text.islower(), None, False),
    "uppercase": (lambda text, _: text.isupper(), None, False),
    "no_commas": (no_commas, None, False),
    "quoted": (quoted, None, False),
    "json": (is_json, None, False),
    "postscript": (postscript, "marker", False),
}

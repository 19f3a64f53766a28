"""1.0 where the answer names the right count, else 0.0; None for a row without a gold answer.

The answer, given in `form` as in accuracy, names one whole number in digits, of any script: "7", "7 dogs",
"There are 7 dogs." A second number ("2 or 3"), a decimal, a negative number, a scale ("7 dozen") or a hedge
("about 7", "at least 7", "not 7") is no count.
"""

import re

from posttrain.types import PosttrainError
from posttrain.verify import Form, extract, text_of

LONGEST = 300  # characters of an answer; more is a story

NUMBER = re.compile(r"\d{1,3}(?:,\d{3})+(?![\d,])|\d+")
LETTER = r"(?![\u3040-\u9fff\uac00-\ud7af])[^\W\d]"  # where words are not set apart, 7只 is a count
# What makes another number of it, or only says about how many there are.
DOUBT = re.compile(
    r"\b(?:dozens?|hundreds?|thousands?|millions?|billions?|half|halves|percent|times|minus|not"
    r"|no|or|about|around|approximately|roughly|almost|nearly|over|under|more|less|fewer"
    r"|than|least|most|between)\b"
    r"|(?<!\w)[-−–](?=\s*\d)|[+/^%!~≈<>≤≥×÷=\\半百千万亿億萬約约]|n't",
    re.IGNORECASE,
)


def count(completions, answer, form: Form = "the_answer_is", **columns):
    def judge(completion, gold):
        if gold is None:
            return None
        right = whole(str(gold))
        if right is None:
            raise PosttrainError(f"count: the answer {str(gold)[:80]!r} is not a whole number")
        said = extract(text_of(completion), form)
        return 1.0 if said is not None and whole(said) == right else 0.0

    return [judge(completion, gold) for completion, gold in zip(completions, answer, strict=True)]


def whole(text):
    """The one whole number in a text, or None."""
    text = re.sub(r"\.0+(?=\s*$)", "", text.strip()) if len(text) <= LONGEST else ""
    found = list(NUMBER.finditer(text))
    if len(found) != 1 or DOUBT.search(text):
        return None
    before, after = text[: found[0].start()], text[found[0].end() :]
    if re.search(rf"(?:{LETTER}|[.,])$", before) or re.match(LETTER, after):
        return None  # x7, .7, 7th
    return int(found[0][0].replace(",", ""))

"""The share of the reasoning in the target language, 0.0 to 1.0; None where it has fewer than 10 words.

R1's language consistency (arXiv 2501.12948, section 2.3.2). The reasoning is what <think>…</think> holds,
or where there are no such tags, what stands before the final answer. Formulas, code, addresses, numbers and
single letters are left out. The rest is cut where a sentence ends or the script changes, and pieces of one
script are put together until they have 25 characters, or 10 in scripts without spaces; py3langid names the
language of each. A piece weighs as much as it has words, or characters in scripts without spaces.

`language` is an ISO 639-1 code. Norwegian (no, nb, nn), Chinese and Arabic are one language each. Of a very
long reasoning the first 50,000 characters are read.
"""

import re
import unicodedata
from functools import lru_cache

from posttrain.types import PosttrainError
from posttrain.verify import text_of, working
from posttrain.words import UNSPACED, did_you_mean

FEWEST = 10  # words in a reasoning whose language is judged
# Characters of a piece. Of English sentences from reasoning-gym's tasks, 58 % of those with 10 to 19
# characters are named rightly, 98 % of those with 20 to 29.
PIECE = {True: 10, False: 25}  # by: without spaces between words
LONG = 20  # words in a piece of a sentence that does not end
LONGEST = 50_000  # characters that are read

# Each has a bound or an end that is looked for once, so that odd texts stay quick.
NOT_PROSE = re.compile(
    r"```(?:(?!```).)*(?:```|\Z)|`[^`\n]{1,200}`|\$\$[^$]{1,2000}\$\$"
    # Mathematics between two dollar signs, and no prices ($5 and $7, \$5, US$ 5): the first touches what it
    # opens, the second what it closes, and no digit follows that, as in pandoc. A price goes on in words.
    r"|(?<!\\)\$(?!\s|\d[\d.,]*[ \t]+[^\W\d_]{2})(?:\\[^\n]|[^$\\\n]){1,300}(?<!\s)\$(?!\d)"
    r"|(?<!\\)\$ (?=[^$\n]{0,300}[\\^_=])(?:\\[^\n]|[^$\\\n]){1,300} \$"  # $ x = 1 $
    r"|\\\([^\n]{0,300}?\\\)|\\\[(?:(?!\\\]).){0,1000}+\\\]|\\[A-Za-z]+"
    r"|https?://\S+|</?[A-Za-z][^<>\n]{0,100}>",
    re.DOTALL,
)
SENTENCE_END = re.compile(r"[\n.!?。！？;；:：]+")
# What the identifier tells apart and an ISO 639-1 code does not.
VARIANTS = {"nb": "no", "nn": "no", "arz": "ar", "ary": "ar", "yue": "zh", "wuu": "zh"}


def language(completions, language: str = "en", **columns):
    target = known(str(language))

    def share(text):
        pieces = pieces_of(NOT_PROSE.sub("\n", reasoning(text)[:LONGEST]))
        total = sum(weight for _, weight in pieces)
        if total < FEWEST:
            return None
        return sum(weight for piece, weight in pieces if name(piece) == target) / total

    return [share(text_of(completion)) for completion in completions]


def reasoning(text):
    before, closed, _ = text.rpartition("</think>")
    if closed:
        text = before
    elif "<think>" not in text:
        return working(text)
    return text.partition("<think>")[2] if "<think>" in text else text


def pieces_of(text):
    """[(text of one script, its words)], long enough to name its language where the script has that much."""
    pieces: dict[str, list[tuple[str, int]]] = {}
    for sentence in SENTENCE_END.split(text):
        for script, part, weight in runs(sentence):
            found = pieces.setdefault(script, [])
            if found and is_short(script, found[-1][0]):
                before, more = found.pop()
                part, weight = f"{before} {part}", more + weight
            found.append((part, weight))
    for script, found in pieces.items():  # a short rest belongs to the piece before
        if len(found) > 1 and is_short(script, found[-1][0]):
            (part, weight), (rest, more) = found[-2:]
            found[-2:] = [(f"{part} {rest}", weight + more)]
    return [piece for found in pieces.values() for piece in found]


def is_short(script, text):
    return len(text) < PIECE[script == "unspaced"]


def runs(sentence):
    """(script, text, words) for each stretch of one script in a sentence, of 20 words or little more."""
    stretches: list[tuple[str, list[str], int]] = []
    for word in word_pattern().findall(sentence):
        word = word.strip("'’")
        unspaced = re.match(rf"[{UNSPACED}]", word) is not None
        if not unspaced and (len(word) < 2 or re.search(r"[\d_]", word)):
            continue  # a variable
        script = "unspaced" if unspaced else unicodedata.name(word[0], "").partition(" ")[0]
        if not stretches or stretches[-1][0] != script or stretches[-1][2] >= LONG:
            stretches.append((script, [], 0))
        _, words, weight = stretches[-1]
        stretches[-1] = (script, [*words, word], weight + (len(word) if unspaced else 1))
    return [(script, " ".join(words), weight) for script, words, weight in stretches]


@lru_cache(maxsize=1)
def word_pattern():
    import regex  # unlike `re` it knows letters' marks, which vowels are in many scripts

    return regex.compile(rf"(?V1)[{UNSPACED}]{{1,{LONG}}}|[[\p{{L}}\p{{M}}\p{{N}}_'’]--[{UNSPACED}]]+")


@lru_cache(maxsize=10_000)
def name(piece):
    from py3langid import classify

    code = classify(piece)[0]
    return VARIANTS.get(code, code)


def known(code):
    from py3langid import rank

    codes = sorted({label for label, _ in rank("")} | VARIANTS.keys())
    if code not in codes:
        hint = did_you_mean(code.lower(), codes, " Did you mean", cutoff=0.4)
        raise PosttrainError(f"language: {code!r} is no ISO 639-1 code of a known language.{hint}")
    return VARIANTS.get(code, code)

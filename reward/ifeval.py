"""1.0 where the response keeps all of a row's instructions, else 0.0; None where that cannot be said by rule.

The instructions are those of IFEval (arXiv 2311.07911): the columns `instruction_id_list` and `kwargs`, a
list of names and of what each takes, as google/IFEval has them. This is its prompt-level strict accuracy;
`share` pays the share of the instructions that are kept instead. The reasoning, up to the last </think>, is
no part of the response. An empty response keeps nothing.

All 25 kinds are read. Three hang on tools of the paper's own, and ours decide only where these could not
differ. Sentences and words in capitals are counted as few and as many as a reader might; the row has no
verdict where the two do not agree. A language other than the asked one is believed of 100 letters or more.
A kind that is not known, or lacks what it takes, has no verdict either. A row without a verdict on one
instruction is 0.0 all the same where another is broken.
"""

import json
import re

from py3langid import classify

from posttrain.types import PosttrainError
from posttrain.verify import text_of
from posttrain.words import after_reasoning

classify("")  # loads its model: not on the first call's time

LONGEST = 200_000  # characters of a response that are read
SURE = 100  # letters of which a language is believed
TOLD_BY = 10_000  # characters that tell a language
REPLIES = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
MARKERS = {"P.P.S": r"p\.\s?p\.\s?s", "P.S.": r"p\.\s?s\."}
VARIANTS = {"zh-cn": "zh", "zh-tw": "zh"}
# Where a sentence may end, what closes with it, and the word before.
END = re.compile(r"(?<![.!?])([.!?]++)(?=[\s\"'”’()\[\]{};:@*_]|$)")
CLOSING = "\"'”’)]"
BEFORE = re.compile(r"[^\s\"'“‘(\[*_]+$")
ABBREVIATIONS = set(
    "mr mrs ms dr prof sr jr st vs etc inc ltd co corp no vol fig gen col sgt capt lt rev hon gov sen rep "  # noqa: SIM905
    "dept est approx appt apt ave blvd rd jan feb mar apr jun jul aug sep sept oct nov dec mon tue wed thu "
    "fri sat sun min max cf al ed eds pp".split()
)
# Words that the paper's tokenizer cuts in two.
CUT_IN_TWO = {"CANNOT", "GONNA", "GOTTA", "LEMME", "WANNA", "GIMME"}


def ifeval(completions, instruction_id_list=None, kwargs=None, share: bool = False, **columns):
    nothing = [None] * len(completions)
    rows = zip(completions, instruction_id_list or nothing, kwargs or nothing, strict=True)
    return [judge(text_of(said), names, taken, share) for said, names, taken in rows]


def judge(text, names, taken, share):
    if not names:
        return None
    taken = json.loads(taken) if isinstance(taken, str) else taken
    if not isinstance(names, list) or not isinstance(taken, list) or len(names) != len(taken):
        raise PosttrainError("ifeval: a row has one of `kwargs` for each of `instruction_id_list`")
    text = after_reasoning(text)[:LONGEST]
    kept = [keeps(text, *one) if text.strip() else False for one in zip(names, taken, strict=True)]
    if share:
        return None if None in kept else kept.count(True) / len(kept)
    return 0.0 if False in kept else None if None in kept else 1.0


def keeps(text, name, taken):
    """Whether an instruction is kept; None where no rule can say."""
    look, keys = KINDS.get(name, (None, ()))
    # A table of rows has every key in every row, empty where the kind has no use for it.
    values = [(taken or {}).get(key) for key in keys]
    if look is None or None in values:
        return None
    return look(text, *values)


def compare(fewest, most, relation, number):
    """Whether a count, of which only its bounds are known, is "at least" or "less than" a number."""
    if relation not in ("at least", "less than"):
        return None
    low, high = ((count >= number) == (relation == "at least") for count in (fewest, most))
    return low if low == high else None


def counted(text, found, relation, number):
    return compare(found, found, relation, number)


def has_word(text, word):
    return re.search(re.escape(word.strip()), text, re.IGNORECASE) is not None


def word_often(text, word, number, relation):
    return counted(text, len(re.findall(re.escape(word.strip()), text, re.IGNORECASE)), relation, number)


def forbids(text, words):
    return not any(re.search(rf"\b{re.escape(word.strip())}\b", text, re.IGNORECASE) for word in words)


def letter_often(text, letter, number, relation):
    return counted(text, text.lower().count(letter.strip().lower()), relation, number)


def words(text, number, relation):
    return counted(text, len(re.findall(r"\w+", text)), relation, number)


def sentences(text, number, relation):
    text = text.strip()
    fewest = most = last = 0
    for match in END.finditer(text):
        behind = text[match.end() : match.end() + 10]
        last = match.end() + len(behind) - len(behind.lstrip(CLOSING))
        following = text[last : last + 40].lstrip().lstrip("\"'“‘(")
        word = BEFORE.search(text[max(0, match.start() - 40) : match.start()])
        word = word[0] if word else ""
        sure = text[last : last + 1].isspace()
        if match[1] == ".":  # of an abbreviation, an initial, a numbered line?
            plain = word.isalpha() and len(word) > 1 and word.lower() not in ABBREVIATIONS
            sure = sure and plain and following[:1].isupper()
        elif "." in match[1]:
            sure = False
        fewest, most = fewest + (sure or last == len(text)), most + 1
    if rest := text[last:].strip():  # what has no mark at its end
        fewest, most = fewest + any(char.isalnum() for char in rest), most + 1
    return compare(fewest, most, relation, number)


def capital_words(text, number, relation):
    fewest = sum(chunk.isupper() for chunk in text.split())
    most = sum(1 + (run in CUT_IN_TWO) for run in re.findall(r"\w+", text) if run.isupper())
    return compare(fewest, max(fewest, most), relation, number)


def paragraphs(text, number):
    """Between lines of three asterisks; an empty one in the middle breaks the rule."""
    parts = [part.strip() for part in re.split(r"\s?\*\*\*\s?", text)]
    return all(parts[1:-1]) and sum(map(bool, parts)) == number


def first_word(text, number, place, word):
    """There are so many paragraphs, an empty line between two, and one of them begins with a word."""
    parts = [part.strip() for part in text.split("\n\n")]
    if sum(map(bool, parts)) != number or not 1 <= place <= number or not parts[place - 1]:
        return False
    start = parts[place - 1].split()[0].lstrip("'").lstrip('"')
    return re.split(r"[.,?!'\"]", start)[0].lower() == word.lower()


def bullets(text, number):
    lines = [line.lstrip() for line in text.split("\n")]
    found = sum(line.startswith("-") for line in lines)
    rest = iter(lines)
    for line in rest:
        found += line.startswith("*") and line[1:2] not in ("", "*")
        if line == "*":  # a bullet all the same, of what comes next
            found += next(rest, None) is not None
    return found == number


def highlights(text, number):
    once = sum(bool(inner.strip()) for inner in re.findall(r"\*([^\n*]*)\*", text))
    twice = sum(bool(inner.strip()) for inner in re.findall(r"\*\*([^\n*]*)\*\*", text))
    return once + twice >= number


def sections(text, mark, number):
    return len(re.findall(rf"{re.escape(mark.strip())}\s?\d+", text)) >= number


def postscript(text, marker):
    marker = marker.strip()
    pattern = MARKERS[marker] if marker in MARKERS else re.escape(marker.lower())
    return re.search(pattern, text.lower()) is not None


def is_json(text):
    text = text.strip()
    if text.startswith("```"):
        text = re.sub(r"^```(?:json)?", "", text, flags=re.IGNORECASE)
    try:
        json.loads(text.removesuffix("```").strip())
    except (ValueError, RecursionError):
        return False
    return True


def titled(text):
    lines = [line for line in text.split("\n") if "<<" in line]
    titles = [line[line.find("<<") : line.rfind(">>") + 2] for line in lines if ">>" in line]
    return any(title.lstrip("<").rstrip(">").strip() for title in titles)


def placeholders(text, number):
    found = 0
    for line in text.split("\n"):
        end = 0
        while (start := line.find("[", end)) >= 0 and (end := line.find("]", start)) >= 0:
            found += 1
    return found >= number


def two_responses(text):
    parts = [part.strip() for part in text.split("******")]
    given = [part for part in parts if part]
    return all(parts[1:-1]) and len(given) == 2 and given[0] != given[1]


def repeats(text, prompt):
    return text.strip().lower().startswith(prompt.strip().lower())


def ends(text, phrase):
    return text.strip().strip('"').lower().endswith(phrase.strip().lower())


def quoted(text):
    text = text.strip()
    return len(text) > 1 and text[0] == text[-1] == '"'


def in_language(text, code):
    code = VARIANTS.get(code.lower(), code)
    if classify(text[:TOLD_BY].lower())[0] == code:
        return True
    return False if sum(char.isalpha() for char in text) >= SURE else None


def capitals(text):
    return text.isupper() and in_language(text, "en")


def small_letters(text):
    return text.islower() and in_language(text, "en")


# id: what looks, and the keys of `kwargs` that it takes
KINDS = {
    "keywords:existence": (lambda text, words: all(has_word(text, word) for word in words), ["keywords"]),
    "keywords:frequency": (word_often, ["keyword", "frequency", "relation"]),
    "keywords:forbidden_words": (forbids, ["forbidden_words"]),
    "keywords:letter_frequency": (letter_often, ["letter", "let_frequency", "let_relation"]),
    "language:response_language": (in_language, ["language"]),
    "length_constraints:number_sentences": (sentences, ["num_sentences", "relation"]),
    "length_constraints:number_paragraphs": (paragraphs, ["num_paragraphs"]),
    "length_constraints:number_words": (words, ["num_words", "relation"]),
    "length_constraints:nth_paragraph_first_word": (
        first_word,
        ["num_paragraphs", "nth_paragraph", "first_word"],
    ),
    "detectable_content:number_placeholders": (placeholders, ["num_placeholders"]),
    "detectable_content:postscript": (postscript, ["postscript_marker"]),
    "detectable_format:number_bullet_lists": (bullets, ["num_bullets"]),
    "detectable_format:constrained_response": (lambda text: any(one in text for one in REPLIES), []),
    "detectable_format:number_highlighted_sections": (highlights, ["num_highlights"]),
    "detectable_format:multiple_sections": (sections, ["section_spliter", "num_sections"]),
    "detectable_format:json_format": (is_json, []),
    "detectable_format:title": (titled, []),
    "combination:two_responses": (two_responses, []),
    "combination:repeat_prompt": (repeats, ["prompt_to_repeat"]),
    "startend:end_checker": (ends, ["end_phrase"]),
    "startend:quotation": (quoted, []),
    "change_case:capital_word_frequency": (capital_words, ["capital_frequency", "capital_relation"]),
    "change_case:english_capital": (capitals, []),
    "change_case:english_lowercase": (small_letters, []),
    "punctuation:no_comma": (lambda text: "," not in text, []),
}

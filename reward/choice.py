"""1.0 where the right letter is chosen, else 0.0; None for a row without a gold answer.

The gold answer is a letter. The answer is the last \\boxed{…}, else the last <answer>…</answer>, else the
last line: a choice alone, or after "answer:" ("The correct answer is (B).", "答案：B"). It begins with the
letter, as A, (A), A) or A. with or without the option's text behind it. More than one letter ("A or B",
"(A) (B)", "A, B") is a guess and worth 0.0, and so is a choice that is hedged or taken back ("not A", "A is
wrong, B").
"""

import re

from posttrain.types import PosttrainError
from posttrain.verify import extract, text_of
from posttrain.words import after_reasoning

LONGEST = 300  # characters of an answer; more is a story

ANSWER = re.compile(
    r"(?:answer|choice|option|答案|选项|答え|정답|ответ|réponse|respuesta|resposta|risposta|antwort|jawaban)"
    r"[ *_]*(?:is|est|es|ist|é|è|是|为|は|:|：)+[ *_]*[:：]?(.*)",
    re.IGNORECASE,
)
OPENING = r"[\s*_$\"'“‘`]*(?:\\(?:text|textbf|mathrm|mathbf)\{)?[\s*_]*"
# The chosen letter, and what marks it as one: (A)  [A]  A)  A.  A:  or nothing
CHOSEN = re.compile(rf"{OPENING}(?:[(\[（]\s*([A-Za-z])\s*[)\]）]|([A-Za-z])(?![^\W_])\s?([).:：、）]?))")
BRACKETED = re.compile(r"[(\[（]\s*([A-Z])\s*[)\]）]|(?<![^\W_])([A-Z])[)）]")
STANDING = re.compile(r"(?<![^\W_])([A-Z])(?![^\W_'’])")
NEXT = re.compile(r"[\W_]*((?:or|and|y|et|und|oder|ou|和|或)?)[\W_]*([A-Z])(?![^\W_'’])([).]?)")
# What may follow a bare letter: nothing, or a reason set apart.
ENDS = re.compile(r"[\s*_$}\"'”’`.。]*(?:$|[,;—–-]|because\b|since\b|as\b|因为)")


def choice(completions, answer, **columns):
    def judge(completion, gold):
        if gold is None:
            return None
        right = re.fullmatch(r"[\W_]*([A-Za-z])[\W_]*", str(gold))
        if right is None:
            raise PosttrainError(f"choice: the answer {str(gold)[:80]!r} is not a letter")
        return 1.0 if chosen(answer_of(text_of(completion))) == right[1].upper() else 0.0

    return [judge(completion, gold) for completion, gold in zip(completions, answer, strict=True)]


def answer_of(text):
    found = extract(text, "boxed") or extract(text, "answer_tag")
    if found is not None:
        return found
    text = after_reasoning(text).rstrip()
    line = text[text.rfind("\n") + 1 :]
    if len(line) > 2 * LONGEST:
        return ""
    named = ANSWER.search(line)
    return named[1] if named else line


def chosen(answer):
    """The one letter that an answer chooses, or None."""
    first = CHOSEN.match(answer) if len(answer) <= LONGEST else None
    if first is None:
        return None
    letter, rest = first[1] or first[2], answer[first.end() :]
    marked = bool(first[1] or first[3])
    if letter.islower() and not (marked or not rest.strip(" \t\n*_$}\"'”’`.。")):
        return None  # "a dog"
    letter = letter.upper()
    others = {match[1] or match[2] for match in BRACKETED.finditer(rest)}
    following = NEXT.match(rest)
    words = "AI" if marked else "I"  # "B. A dog", "B, I think"
    if following and (following[1] or following[3] or following[2] not in words):
        others.add(following[2])
    if not marked:  # with no mark what follows is a sentence and not the option's text
        others |= set(STANDING.findall(rest)) - {"A", "I"}
        if not ENDS.match(rest):
            return None
    return letter if others <= {letter} else None

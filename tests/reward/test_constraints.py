"""Constraints on a response, each checked by rule."""

import json

import pytest

from posttrain.types import PosttrainError

LIST = "Here you are:\n- one\n* two\n  • three\nDone."
SECTIONS = "Section 1\nText.\n\n**Section 2**: more.\n\nsection 3"


@pytest.mark.parametrize(
    ("text", "constraint", "kept"),
    [
        ("A cat sat.", {"kind": "keyword", "word": "CAT"}, True),
        ("A cat sat.", {"kind": "keyword", "word": " sat "}, True),
        ("Concatenate.", {"kind": "keyword", "word": "cat"}, False),
        ("cat, cat and Cat", {"kind": "keyword", "word": "cat", "min": 3}, True),
        ("cat and cat", {"kind": "keyword", "word": "cat", "min": 3}, False),
        ("cat and cat", {"kind": "keyword", "word": "cat", "min": 1, "max": 1}, False),
        ("A dog.", {"kind": "keyword", "word": "cat", "max": 0}, True),
        ("A cat.", {"kind": "keyword", "word": "cat", "max": 0}, False),
        ("C++ is", {"kind": "keyword", "word": "c++"}, True),
        ("New York is", {"kind": "keyword", "word": "new york"}, True),
        ("我用GPU训练模型。", {"kind": "keyword", "word": "gpu"}, True),
        ("我用GPU训练模型。", {"kind": "keyword", "word": "模型"}, True),
        ("STRASSE", {"kind": "keyword", "word": "straße"}, True),
        ("one two - three", {"kind": "words", "min": 3, "max": 3}, True),
        ("one two three four", {"kind": "words", "max": 3}, False),
        ("well-known words", {"kind": "words", "min": 2, "max": 2}, True),
        ("我用 GPU。", {"kind": "words", "min": 3, "max": 3}, True),
        ("हिन्दी भाषा", {"kind": "words", "min": 2, "max": 2}, True),
        ("One. Two! Three?", {"kind": "sentences", "min": 3, "max": 3}, True),
        ('It is 3.5 m. "Yes." No', {"kind": "sentences", "min": 3, "max": 3}, True),
        ("一。二！三", {"kind": "sentences", "min": 3, "max": 3}, True),
        ("Wait... what?", {"kind": "sentences", "max": 2}, True),
        ("One.\n\nTwo.\n \n\nThree.\nFour.", {"kind": "paragraphs", "min": 3, "max": 3}, True),
        ("One.\nTwo.", {"kind": "paragraphs", "min": 2}, False),
        (LIST, {"kind": "bullets", "min": 3, "max": 3}, True),
        (LIST, {"kind": "bullets", "min": 4}, False),
        ("-5 is\n--- \n-", {"kind": "bullets"}, False),
        (SECTIONS, {"kind": "sections", "title": "Section", "min": 3, "max": 3}, True),
        (SECTIONS, {"kind": "sections", "title": "Part"}, False),
        ("Well, yes.", {"kind": "starts_with", "text": "well"}, True),
        ("Oh well", {"kind": "starts_with", "text": "well"}, False),
        ("That is all.\n", {"kind": "ends_with", "text": "THAT IS ALL."}, True),
        ("That is all. Bye", {"kind": "ends_with", "text": "that is all."}, False),
        ("all low 1", {"kind": "lowercase"}, True),
        ("Not low", {"kind": "lowercase"}, False),
        ("123", {"kind": "lowercase"}, False),  # there is nothing that could be capital
        ("ALL UP ÄÖ", {"kind": "uppercase"}, True),
        ("NOT uP", {"kind": "uppercase"}, False),
        ("no comma", {"kind": "no_commas"}, True),
        ("a, comma", {"kind": "no_commas"}, False),
        ("一，二", {"kind": "no_commas"}, False),
        ("一、二", {"kind": "no_commas"}, False),
        ("واحد، اثنان", {"kind": "no_commas"}, False),
        ('"All of it."', {"kind": "quoted"}, True),
        ("«Всё»", {"kind": "quoted"}, True),
        ('"Part" of it', {"kind": "quoted"}, False),
        ('```json\n{"a": 1}\n```', {"kind": "json"}, True),
        ('So: {"a": 1}', {"kind": "json"}, False),
        ("Bye.\nP.S. I mean it.", {"kind": "postscript", "marker": "P.S."}, True),
        ("Bye.\n**P.S.:** I mean it.", {"kind": "postscript", "marker": "p.s."}, True),
        ("Bye. P.S. I mean it.", {"kind": "postscript", "marker": "P.S."}, False),
        ("Bye.\nP.S.", {"kind": "postscript", "marker": "P.S."}, False),
        ("<think>Low. Not, so</think>low", {"kind": "lowercase"}, True),
        ("<think>cat</think>dog", {"kind": "keyword", "word": "cat"}, False),
    ],
)
def test_kinds(reward, text, constraint, kept):
    assert reward([text], constraints=[[constraint]]) == [float(kept)]
    said = [{"role": "assistant", "content": text}]
    assert reward([said], constraints=[json.dumps([constraint])], prompts=["?"]) == [float(kept)]


def test_the_share_or_all(reward):
    row = [{"kind": "lowercase"}, {"kind": "no_commas"}, {"kind": "words", "max": 2}, {"kind": "json"}]
    assert reward(["two words"], constraints=[row]) == [0.75]
    assert reward(["two words"], constraints=[row], strict=True) == [0.0]
    assert reward(["two words"], constraints=[row[:3]], strict=True) == [1.0]


def test_fields_that_are_empty_are_not_there(reward):
    row = [{"kind": "words", "max": 2, "min": None, "word": None, "title": None}]
    assert reward(["two words"], constraints=[row]) == [1.0]


def test_none_without_constraints(reward):
    assert reward(["a", "b", "c"], constraints=[None, [], "[]"]) == [None] * 3
    assert reward(["a"]) == [None]


NEGATIVE = [
    {"kind": "no_commas"},
    {"kind": "keyword", "word": "cat", "max": 0},
    {"kind": "words", "max": 50},
    {"kind": "sentences", "max": 9},
]


@pytest.mark.parametrize("text", ["", " \n", "{", "...", "<think>I think</think>", "\x00"])
def test_saying_nothing_keeps_nothing(reward, text):
    assert reward([text], constraints=[NEGATIVE]) == [0.0]


@pytest.mark.parametrize("part", [".", "\n", "- ", "a", "\n .", "* \n", ")", "a.) "])
def test_huge_texts_are_quick(reward, part):
    every = [
        {"kind": kind, **fields}
        for kind, fields in {
            "keyword": {"word": "a"}, "words": {}, "sentences": {}, "paragraphs": {}, "bullets": {},
            "sections": {"title": "a"}, "no_commas": {}, "quoted": {}, "json": {},
            "postscript": {"marker": "a"},
        }.items()
    ]  # fmt: skip
    assert 0.0 <= reward([part * 10**6], constraints=[every])[0] <= 1.0


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([{"kind": "keywords", "word": "a"}], "Did you mean 'keyword'"),
        ([{"word": "a"}], "no kind None"),
        ([{"kind": "words", "mx": 3}], "has no 'mx'"),
        ([{"kind": "lowercase", "max": 3}], "has no 'max'"),
        ([{"kind": "keyword"}], "needs a text as 'word'"),
        ([{"kind": "keyword", "word": " "}], "needs a text as 'word'"),
        ([{"kind": "keyword", "word": 3}], "needs a text as 'word'"),
        ([{"kind": "words", "max": "3"}], "no number"),
        ([{"kind": "words", "max": True}], "no number"),
        ({"kind": "words"}, "a list of objects"),
        (["words"], "a list of objects"),
        ("{", "no JSON"),
    ],
)
def test_what_cannot_be_checked_is_refused(reward, row, message):
    with pytest.raises(PosttrainError, match=message):
        reward(["text"], constraints=[row])

"""IFEval's instructions, each kept and broken, and what no rule can say."""

import pytest

from posttrain.types import PosttrainError

LONG = "The quick brown fox jumps over the lazy dog, and then it goes home to sleep until the morning. " * 2
FRANCAIS = (
    "Le chat dort sur la table pendant que le chien mange sa soupe dans la cuisine avec les enfants. " * 2
)
# id, what it takes, texts that keep it, texts that break it
KINDS = [
    ("keywords:existence", {"keywords": ["Cat", "dog "]}, ["a dogged CAT"], ["a cat"]),
    ("keywords:frequency", {"keyword": "cat", "frequency": 2, "relation": "at least"},
     ["cat, Concat"], ["cat"]),
    ("keywords:frequency", {"keyword": "c+", "frequency": 2, "relation": "less than"}, ["c+ ccc"], ["c+ C+"]),
    ("keywords:forbidden_words", {"forbidden_words": ["cat"]}, ["concat"], ["A CAT."]),
    ("keywords:letter_frequency", {"letter": "#", "let_frequency": 2, "let_relation": "at least"},
     ["##"], ["#"]),
    ("language:response_language", {"language": "fr"}, [FRANCAIS, "le chat est sur la table"], [LONG]),
    ("length_constraints:number_sentences", {"num_sentences": 3, "relation": "at least"},
     ["One is. Two is! Three", "Is it? It is. Yes."], ["One. Two", "Dr. Smith saw it."]),
    ("length_constraints:number_sentences", {"num_sentences": 3, "relation": "less than"},
     ["It is 3.5 m. Yes.", "He said no.\nThat was all"], ["Why? Why? Why?"]),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, ["a\n***\nb", "***\na\n***\nb"],
     ["a\n\nb", "a *** *** b", "a *** b *** c"]),
    ("length_constraints:number_words", {"num_words": 3, "relation": "at least"}, ["a b-c"], ["a 1"]),
    ("length_constraints:nth_paragraph_first_word",
     {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "Well"},
     ["a\n\n\"Well, b"], ["Well\n\nb", "a\n\nwell\n\nc", "a\n\nWells"]),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, ["[a] [b]"], ["[a] [b", "[a\n]"]),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, ["x\np. s. y"], ["PS: y"]),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, ["x P.P.S y"], ["x P.S. y"]),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2},
     ["* a\n  - b\n**bold**", "*\n- a"], ["* a", "- a\n- b\n- c"]),
    ("detectable_format:constrained_response", {}, ["So: My answer is no."], ["No."]),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, ["*a* and *b*", "**a**, *b*"],
     ["*a* and * *", "*a\n*"]),
    ("detectable_format:multiple_sections", {"section_spliter": "SECTION", "num_sections": 2},
     ["SECTION 1\na\nSECTION 2"], ["Section 1 Section 2", "SECTION 1"]),
    ("detectable_format:json_format", {},
     ['{"a": 1}', '```JSON\n[1]\n```', "5"], ["{a: 1}", "Here: {}", "[" * 9000]),
    ("detectable_format:title", {}, ["x <<A title>> y"], ["<< >>", "<A>", "<<a\nb>>"]),
    ("combination:two_responses", {},
     ["a\n******\nb", "******a******b"], ["a", "a******a", "a******b******c"]),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Say it. "}, [" say it. Yes."], ["Yes. Say it."]),
    ("startend:end_checker", {"end_phrase": "The end."}, ['"So. the end."\n'], ["The end. Really."]),
    ("startend:quotation", {}, [' "a" '], ['"a', '"', "'a'"]),
    ("change_case:capital_word_frequency", {"capital_frequency": 2, "capital_relation": "at least"},
     ["NASA and IBM", "I am A"], ["NASA's rocket", "no"]),
    ("change_case:english_capital", {}, [LONG.upper()], ["UP aND UP", FRANCAIS.upper()]),
    ("change_case:english_lowercase", {}, [LONG.lower()], ["Up", FRANCAIS.lower()]),
    ("punctuation:no_comma", {}, ["a; b"], ["a, b"]),
]  # fmt: skip


def one(reward, text, name, **takes):
    return reward([text], [[name]], [[takes]])[0]


@pytest.mark.parametrize(("name", "takes", "keep", "break_"), KINDS, ids=[kind[0] for kind in KINDS])
def test_each_kind(reward, name, takes, keep, break_):
    assert [one(reward, text, name, **takes) for text in keep] == [1.0] * len(keep)
    assert [one(reward, text, name, **takes) for text in break_] == [0.0] * len(break_)
    assert one(reward, " \n", name, **takes) == 0.0
    if takes:
        assert one(reward, "text", name) is None, "what it takes is not there"
        every_key = {"relation": None, "unused": None} | takes  # as a table of rows has it
        assert one(reward, keep[0], name, **every_key) == 1.0


def test_all_25_kinds_are_tried(reward):
    known = reward.__globals__["KINDS"]
    assert len(known) == 25
    assert known.keys() == {kind[0] for kind in KINDS}


@pytest.mark.parametrize(
    ("text", "name", "takes"),
    [
        ("x", "detectable_format:dance", {}),
        ("We met Gen. Smith. He left.", "length_constraints:number_sentences", (3, "at least")),
        ("1. One\n2. Two", "length_constraints:number_sentences", (2, "less than")),
        ("One. Two.", "length_constraints:number_sentences", (2, "about")),
        ("I CANNOT", "change_case:capital_word_frequency", (3, "at least")),
        ("Bonjour", "language:response_language", {"language": "sw"}),
    ],
)
def test_what_no_rule_can_say_has_no_verdict(reward, text, name, takes):
    if isinstance(takes, tuple):
        keys = (
            ("capital_frequency", "capital_relation") if "capital" in name else ("num_sentences", "relation")
        )
        takes = dict(zip(keys, takes, strict=True))
    assert one(reward, text, name, **takes) is None


def test_several_instructions(reward):
    no_comma, title = ("punctuation:no_comma", {}), ("detectable_format:title", {})
    unknown = ("detectable_format:dance", {})

    def judge(text, *wanted, **args):
        return reward([text], [[name for name, _ in wanted]], [[takes for _, takes in wanted]], **args)[0]

    assert judge("<<a>> b", no_comma, title) == 1.0
    assert judge("<<a>>, b", no_comma, title) == 0.0
    assert judge("<<a>>, b", no_comma, title, share=True) == 0.5
    assert judge("<<a>> b", title, unknown) is None
    assert judge("a", title, unknown) == 0.0, "one is broken, whatever the other asks"
    assert judge("a", title, unknown, share=True) is None
    assert judge("<think>a, b</think> <<c>>", no_comma, title) == 1.0


def test_rows(reward):
    assert reward(["a"]) == [None]
    assert reward(["a", "a, b"], [["punctuation:no_comma"]] * 2, ["[{}]", '[{"x": null}]']) == [1.0, 0.0]
    said = [[{"role": "assistant", "content": "a"}]]
    assert reward(said, [["punctuation:no_comma"]], [[{}]], prompt=["Say a."], key=[1]) == [1.0]
    with pytest.raises(PosttrainError, match="a row has one of `kwargs`"):
        reward(["a"], [["punctuation:no_comma"]], [[]])


@pytest.mark.parametrize(
    "odd", ["." * 100_000 + "x", "[" * 100_000, "<<" * 50_000, "*" * 100_000, "\n" * 100_000 + "x"]
)
def test_odd_texts_are_quick(reward, odd):
    """Nothing here is quadratic: a second one would take minutes."""
    for name, takes, _, _ in KINDS:
        one(reward, odd, name, **takes)

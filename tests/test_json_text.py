"""Reading JSON out of a model's text: what is found, what is refused, and that odd texts are quick."""

from __future__ import annotations

from decimal import Decimal

import pytest

from posttrain.json_text import LONGEST, last_json, whole_json


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"a": 1}', {"a": 1}),
        ("42", 42),
        ('"text"', "text"),
        ("null", None),
        ('```json\n{"a": [1, 2]}\n```', {"a": [1, 2]}),
        ("```\n[1]\n```", [1]),
        ('Here it is:\n```json\n{"a": 1}\n```\nI hope it helps.', {"a": 1}),
        ('First {"a": 1}, no: {"a": 2}.', {"a": 2}),
        ('{"a": {"b": [1]}} is it', {"a": {"b": [1]}}),
        ('as in [see "this", then {"a": 1}', {"a": 1}),
        ('the set [1, 2) and then {"a": "]}{["}', {"a": "]}{["}),
        ('{"a": "she said \\"}\\""} done', {"a": 'she said "}"'}),
        ('{"a": 1} as in \\frac{x}{y} [sic]', {"a": 1}),
        ('<think>{"a": 1}</think>{"a": 2}', {"a": 2}),
        ('答案：{"名": "甲"}。', {"名": "甲"}),
        ('[1, {"a": 2}', {"a": 2}),
        ('{"a": 1e2}', {"a": 100.0}),
    ],
)
def test_found(text: str, value: object) -> None:
    assert last_json(text) == value


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "{", "}", "[", "no", "{'a': 1}", "{a: 1}", '{"a": }', "[1, 2,]", "(1, 2)",
        "[NaN]", "[Infinity]", "[-Infinity]", "[1e999]", "[1" + "0" * 400 + "]", '<think>{"a": 1}</think>',
        '<think>{"a": 1}</think> done', "\x00", '["\x00"]', "[" * 10**5, "[" * 10**5 + "]" * 10**5,
        "{" * 10**6,
        '{"a":' * 10**5, '"' * 10**6, "[\"" * 10**5, "\\" * 10**6, "[1] " * 3 + "[x] " * 20,
        "[" * 60 + "]" * 60, "[" + "1," * LONGEST + "1]",
    ],
)  # fmt: skip
def test_refused(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - which of them is of no interest
        last_json(text)


def test_a_long_text_is_searched_at_its_end() -> None:
    assert last_json("word " * 10**6 + '{"a": 1}') == {"a": 1}
    assert last_json("[x] " * 10**5 + '{"a": 1}') == {"a": 1}


def test_whole_json_takes_nothing_around_the_value() -> None:
    assert whole_json(' {"a": 1}\n') == {"a": 1}
    for text in ('so {"a": 1}', '{"a": 1}.', '{"a": 1} {"a": 2}'):
        with pytest.raises(ValueError, match="Extra data|Expecting value"):
            whole_json(text)


def test_exact_json_is_for_comparing() -> None:
    tenth, huge = whole_json("```json\n[0.10, 1e999]\n```", exact=True)
    assert (tenth, huge) == (Decimal("0.1"), Decimal("1e999")) and isinstance(tenth, Decimal)
    assert whole_json('{"a": 1, "a": 2}') == {"a": 2}
    refused = [
        '{"a": 1, "a": 2}',
        '[{"b": {"a": 1, "a": 1}}]',
        "[NaN]",
        "[1e" + "9" * 30 + "]",
        "[" * 60 + "]" * 60,
    ]
    for text in [*refused, "[" + "1," * LONGEST + "1]", "[" + "1" * 5000 + "]"]:
        with pytest.raises(ValueError):  # noqa: PT011 - which of them is of no interest
            whole_json(text, exact=True)

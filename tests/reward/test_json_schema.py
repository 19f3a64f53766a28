"""The JSON schema reward: what fits, what does not, and schemas that are refused."""

import json

import pytest

from posttrain.types import PosttrainError

SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "minLength": 1}, "age": {"type": "integer", "minimum": 0}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"name": "Ada", "age": 36}', 1.0),
        ('Here:\n```json\n{"name": "Ада", "age": 36}\n```\nDone.', 1.0),
        ('<think>{"name": 1}</think> {"name": "阿达", "age": 36}', 1.0),
        ('{"name": "Ada"} no: {"name": "Ada", "age": 36}', 1.0),
        ('{"name": "Ada", "age": 36} no: {"name": "Ada"}', 0.0),  # the last one counts
        ('<think>{"name": "Ada", "age": 36}</think>', 0.0),
        ('{"name": "Ada"}', 0.0),
        ('{"name": "Ada", "age": "36"}', 0.0),
        ('{"name": "Ada", "age": -1}', 0.0),
        ('{"name": "Ada", "age": 36, "more": 1}', 0.0),
        ('[{"name": "Ada", "age": 36}]', 0.0),
        ('{"name": "Ada", "age": NaN}', 0.0),
        ('{"name": "Ada", "age": 1e999}', 0.0),
        ('{"name": "Ada", "age": 3', 0.0),
        ("{'name': 'Ada', 'age': 36}", 0.0),
        ("", 0.0),
        ("{", 0.0),
        (json.dumps(SCHEMA), 0.0),  # the prompt, said again
        ("[" * 10**5, 0.0),
        ('{"name": ' * 10**5, 0.0),
        ('{"name": "' + "x" * 10**7 + '", "age": 1}', 0.0),
    ],
)
def test_a_schema_for_all_rows(reward, text, value):
    assert reward([text], schema=SCHEMA) == [value]
    assert reward([[{"role": "assistant", "content": text}]], schema=SCHEMA, prompts=["?"]) == [value]


def test_a_schema_for_each_row(reward):
    column = [{"type": "integer"}, json.dumps({"type": "string"}), None, True, False]
    assert reward(["1", '"a"', "1", "1", "1"], schema=column) == [1.0, 1.0, None, 1.0, 0.0]
    assert reward(['"a"', "1", "no", "no", "no"], schema=column) == [0.0, 0.0, None, 0.0, 0.0]
    assert reward(["1"]) == [None]


def test_references_within_the_schema(reward):
    schema = {"$ref": "#/$defs/tree", "$defs": {"tree": {"type": "array", "items": {"$ref": "#/$defs/tree"}}}}
    assert reward(["[[], [[]]]", "[[], [1]]"], schema=schema) == [1.0, 0.0]


@pytest.mark.parametrize("key", ["$ref", "$dynamicRef"])
@pytest.mark.parametrize("place", ["https://example.org/s.json", "file:///etc/passwd", "other.json#/a"])
def test_references_to_elsewhere_are_refused(reward, key, place):
    with pytest.raises(PosttrainError, match="outside of it"):
        reward(["1"], schema={"anyOf": [{"type": "string"}, {"items": {key: place}}]})


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"type": "strin"}, "no JSON schema"),
        ({"minimum": "1"}, "no JSON schema"),
        ("{", "not JSON"),
        ({"pattern": "("}, "no JSON schema"),
    ],
)
def test_what_is_no_schema_is_refused(reward, schema, message):
    with pytest.raises(PosttrainError, match=message):
        reward(["1"], schema=schema)


def test_patterns_match_as_they_should(reward):
    schema = {
        "properties": {"id": {"pattern": "^[a-z]+(-[a-z]+)*$"}},
        "patternProperties": {"^n_": {"type": "number"}},
        "additionalProperties": {"type": "string"},
    }
    good = ['{"id": "a-b-c"}', '{"n_x": 1}', '{"other": "text"}', "[1]"]
    bad = ['{"id": "a--b"}', '{"n_x": "1"}', '{"other": 1}']
    assert reward(good + bad, schema=schema) == [1.0] * 4 + [0.0] * 3


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"pattern": "^(a+)+$"}, "a" * 40 + "b"),
        ({"patternProperties": {"^(a|aa)+$": False}}, {"a" * 80 + "b": 1}),
        ({"patternProperties": {"^(a|aa)+$": True}, "additionalProperties": False}, {"a" * 80 + "b": 1}),
    ],
)
def test_patterns_that_would_take_for_ever_do_not_fit(reward, schema, value):
    assert reward([json.dumps(value)], schema=schema) == [0.0]


def test_an_older_draft(reward):
    schema = {"$schema": "http://json-schema.org/draft-04/schema#", "minimum": 1, "exclusiveMinimum": True}
    assert reward(["1", "2"], schema=schema) == [0.0, 1.0]

"""1.0 where the completion's last JSON value fits a JSON schema, else 0.0; None without a schema.

`schema` is an argument, one for all rows, or a column, one a row: an object, or its JSON as text. Its
`$schema` names the draft; without one it is 2020-12. References point within the schema ("#/$defs/…"):
others are refused, and nothing is fetched. `format` only describes, as the standard has it. A value is at
most 20,000 characters long and 50 brackets deep; a pattern that takes longer than a tenth of a second on
what the model wrote does not fit.
"""

import json
from functools import lru_cache

from posttrain.json_text import last_json
from posttrain.types import PosttrainError
from posttrain.verify import text_of

PATTERN_SECONDS = 0.1
REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")


def json_schema(completions, schema=None, **columns):
    schemas = schema if isinstance(schema, list) else [schema] * len(completions)
    return [judge(text_of(completion), one) for completion, one in zip(completions, schemas, strict=True)]


def judge(text, schema):
    if schema is None:
        return None
    fits = validator(schema if isinstance(schema, str) else json.dumps(schema))
    try:
        return 1.0 if fits.is_valid(last_json(text)) else 0.0
    except (ValueError, TimeoutError, RecursionError):
        return 0.0


@lru_cache(maxsize=256)
def validator(text):
    from jsonschema import exceptions, validators
    from referencing.jsonschema import EMPTY_REGISTRY

    try:
        schema = json.loads(text)
        draft = validators.validator_for(schema, default=validators.Draft202012Validator)
        draft.check_schema(schema)
    except (ValueError, TypeError, RecursionError) as error:
        raise PosttrainError(f"the schema is not JSON: {error}") from None
    except exceptions.SchemaError as error:
        raise PosttrainError(f"the schema is no JSON schema, at {error.json_path}: {error.message}") from None
    for reference in references(schema):
        if not reference.startswith("#"):
            raise PosttrainError(
                f"the schema refers to {reference!r}, outside of it: "
                "copy that part under $defs and refer to '#/$defs/…'"
            )
    bounded = validators.extend(
        draft, {"pattern": pattern, "patternProperties": properties, "additionalProperties": additional}
    )
    return bounded(schema, registry=EMPTY_REGISTRY)  # an empty registry that retrieves nothing


def references(schema):
    """Every reference in a schema, wherever it stands."""
    if isinstance(schema, dict):
        yield from (schema[key] for key in REFERENCES if isinstance(schema.get(key), str))
        schema = list(schema.values())
    if isinstance(schema, list):
        for part in schema:
            yield from references(part)


# The library's own three match with `re`, which some patterns keep busy for ever.


def search(pattern, text):
    import regex

    return regex.search(pattern, text, timeout=PATTERN_SECONDS) is not None


def pattern(validator, pattern, instance, schema):
    from jsonschema import ValidationError

    if isinstance(instance, str) and not search(pattern, instance):
        yield ValidationError("does not match the pattern")


def properties(validator, patterns, instance, schema):
    if isinstance(instance, dict):
        for pattern, inner in patterns.items():
            for key, value in instance.items():
                if search(pattern, key):
                    yield from validator.descend(value, inner, path=key, schema_path=pattern)


def additional(validator, inner, instance, schema):
    if isinstance(instance, dict):
        named, patterns = schema.get("properties", {}), schema.get("patternProperties", {})
        for key, value in instance.items():
            if key not in named and not any(search(pattern, key) for pattern in patterns):
                yield from validator.descend(value, inner, path=key)

"""Answers that are JSON: the same value, whatever the order of keys and the white space."""

from __future__ import annotations

from typing import Any

from posttrain.json_text import whole_json


def read_json(text: str) -> dict[str, Any] | list[Any] | None:
    """A text as a JSON object or array, in a code fence or not; None for all else.

    None too where a key stands twice, or a value is NaN: such a text has no one meaning.
    """
    try:
        value = whole_json(text, exact=True)
    except ValueError:
        return None
    return value if isinstance(value, dict | list) else None


def same_json(ours: Any, theirs: Any) -> bool:
    """Whether two values are the same: 1 is 1.0, but neither true nor "1"."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        return ours.keys() == theirs.keys() and all(same_json(ours[key], theirs[key]) for key in theirs)
    if isinstance(ours, list) and isinstance(theirs, list):
        return len(ours) == len(theirs) and all(map(same_json, ours, theirs))
    if isinstance(ours, bool) or isinstance(theirs, bool):
        return ours is theirs
    return ours == theirs

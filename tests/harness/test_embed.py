import json

import pytest

from posttrain.evaluate.page import inert_json
from posttrain.harness import embed
from posttrain.harness.readback import Question, Sample


def shown(text, span=None, allowed=10_000):
    sample = Sample(0, text, 1, "stop", "right", None, span)
    return embed.question(0, Question("q"), [[sample]], allowed)[5][0][0]


def units(text, start, end):
    """What JavaScript's text.slice(start, end) gives."""
    return text.encode("utf-16-le")[2 * start : 2 * end].decode("utf-16-le")


@pytest.mark.parametrize("text", ["so 42.", "🙂𝑛 → 𝑛+1, also 42", "a\r\nb\r\n\x00\u202e42\ud800 🙂"])
def test_the_answer_is_found_in_javascripts_units(text):
    start = text.index("42")
    _, seen, *_, first, last, _, _, _ = shown(text, (start, start + 2))
    assert units(seen, first, last) == "42"
    assert not set("\x00\r\u202e\ud800") & set(seen)
    assert len(seen) == len(text)


@pytest.mark.parametrize("at", [0, 5, 333, 5_000, 99_000, 99_998])
def test_a_long_line_keeps_its_beginning_and_its_answer(at):
    text = "x" * at + "42" + "y" * (99_998 - at)
    _, seen, *_, first, last, _, _, cuts = shown(text, (at, at + 2), 1000)
    assert len(seen) == 1000
    if first >= 0:
        assert units(seen, first, last) == "42"
    assert sum(left for _, left in cuts) == len(text) - 1000
    # What was left out and what is shown make up the whole.
    place, parts = 0, []
    for cut, left in [*cuts, (len(seen), 0)]:
        parts += [seen[place:cut], "·" * left]
        place = cut
    whole = "".join(parts)
    assert len(whole) == len(text)
    assert all(a in (b, "·") for a, b in zip(whole, text, strict=True))
    assert first >= 0


def test_all_of_them_fit():
    few = [Sample(0, "x" * 100_000, 1, "stop", "right")] * 3
    assert embed.limit(few) == embed.LONGEST
    many = [Sample(0, "x" * 50_000, 1, "stop", "right")] * 20_000
    allowed = embed.limit(many)
    assert allowed >= embed.LEAST and allowed * len(many) <= embed.MOST


def test_nothing_in_the_data_ends_its_element():
    evil = "</script><!--<script>\u2028\u2029\ud800\x00]]>\\u003c"
    text = inert_json({"a": [evil]})
    assert not set("<\u2028\u2029\x00\ud800") & set(text)
    assert json.loads(text)["a"][0] == evil.replace("\ud800", "\ufffd")
    text.encode("utf-8")

"""The cost of running into the limit, against DAPO's equation 13 by hand."""

import pytest

from posttrain.types import PosttrainError


@pytest.mark.parametrize(
    ("tokens", "value"), [(0, 0.0), (60, 0.0), (63, -0.25), (66, -0.5), (72, -1.0), (90, -1.0)]
)
def test_overlong(reward, tokens, value):
    assert reward(["text"], completion_ids=[[7] * tokens], max_tokens=72, buffer=12) == [value]


@pytest.mark.parametrize("buffer", [0, -1, 73])
def test_a_buffer_that_makes_no_sense_is_refused(reward, buffer):
    with pytest.raises(PosttrainError, match="buffer"):
        reward(["text"], completion_ids=[[7]], max_tokens=72, buffer=buffer)

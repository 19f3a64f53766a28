"""The reward for worked steps: it pays for steps that hold, and padding buys nothing."""

import pytest

QUESTION = "What is 3 + 4 + 5?"
WORK = "3 + 4 = 7\n7 + 5 = 12\nThe answer is: 12"


@pytest.mark.parametrize(
    ("text", "want", "value"),
    [
        (WORK, 1, 1.0),
        (WORK, 2, 1.0),
        (WORK, 4, 0.5),
        ("3 + 4 = 7\n7 + 5 = 13\nThe answer is: 13", 1, 0.5),
        ("3 + 4 = 8\nThe answer is: 12", 1, 0.0),
        ("The answer is: 12", 1, 0.0),
        ("The answer is: 3 + 4 + 5 = 12", 1, 0.0),
        ("", 1, 0.0),
        ("{", 1, 0.0),
        ("7 = 7\n" * 50, 1, 0.0),
        ("1 + 0 = 1\n" * 50, 1, 0.0),
        ("1 * 1 = 1, 1 / 1 = 1, 0 + 1 = 1", 1, 0.0),
        ("3 + 4 = 7\n" * 50, 4, 0.25),  # again is no second step
        ("9**9**9 = 9**9**9", 1, 0.0),
        ("9" * 10**7, 1, 0.0),
    ],
)
def test_steps(reward, text, want, value):
    assert reward([text], want=want) == [value]
    assert reward([[{"role": "assistant", "content": text}]], want=want, prompts=[QUESTION]) == [value]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (WORK, 1.0),
        ("20 + 20 = 40\nThe answer is: 12", 0.0),  # numbers from nowhere
        ("20 + 20 = 40\n" + WORK, 1.0),  # … neither pay nor cost
        ("7 + 5 = 12", 0.0),  # 7 not yet worked out
        ("3 + 4 = 8\n8 + 5 = 13", 0.0),  # 8 is no result
        ("3 - 4 = -1\n-1 + 5 = 4", 1.0),
    ],
)
@pytest.mark.parametrize(
    "prompt", [QUESTION, [{"role": "system", "content": "20"}, {"role": "user", "content": QUESTION}]]
)
def test_grounded_steps(reward, text, value, prompt):
    assert reward([text], prompts=[prompt], ground=True) == [value]

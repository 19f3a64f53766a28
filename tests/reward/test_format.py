"""The R1 format reward: strict, and soft about what stands around the tags."""

import pytest


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("<think>2 + 2</think><answer>4</answer>", 1.0),
        ("\n<think>\n想\n</think>\n\n<answer>\n4\n</answer>\n", 1.0),
        ("", 0.0),
        ("<think></think><answer></answer>", 0.0),
        ("<think>x</think><answer> </answer>", 0.0),
        ("<think>x</think>", 0.0),
        ("<answer>4</answer>", 0.0),
        ("<answer>4</answer><think>x</think>", 0.0),
        ("<think>x</think> so <answer>4</answer>", 0.0),
        ("well <think>x</think><answer>4</answer>", 0.0),
        ("<think>x</think><answer>4</answer> bye", 0.0),
        ("<think>x</think><answer>4</answer><answer>5</answer>", 0.0),
        ("<think>x<think>y</think></think><answer>4</answer>", 0.0),
        ("<think>x<answer>4</think></answer>", 0.0),
        ("<think>x</think><answer>4", 0.0),
        ("<THINK>x</THINK><ANSWER>4</ANSWER>", 0.0),
        ("<think>" * 10**6, 0.0),
    ],
)
def test_format(reward, text, value):
    assert reward([text], answer=["4"]) == [value]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("<think>2 + 2</think><answer>4</answer>", 1.0),
        ("好 <think>想</think> so <answer>4</answer> bye", 1.0),
        ("", 0.0),
        ("well", 0.0),
        ("<think></think> so <answer>4</answer>", 0.0),
        ("<think>x</think> so <answer>\n</answer>", 0.0),
        ("<answer>4</answer> so <think>x</think>", 0.0),
        ("<think>x<answer>4</think></answer>", 0.0),
        ("<think>x</think> so <answer>4", 0.0),
        ("<think>x</think><answer>4</answer><answer>5</answer>", 0.0),
        ("</answer><answer></think><think>", 0.0),
        ("x" * 10**6 + "<think>x</think><answer>4</answer>", 1.0),
        ("<think>" * 10**6, 0.0),
    ],
)
def test_soft(reward, text, value):
    assert reward([text], soft=True) == [value]
    assert reward([[{"role": "assistant", "content": text}]], soft=True) == [value]

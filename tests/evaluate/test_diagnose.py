import math

import pytest

from posttrain.evaluate.diagnose import why_flat


def record(step: int, **changes):
    base = {
        "step": step,
        "reward": 0.4,
        "reward/accuracy": 0.3,
        "reward/form": 0.8,
        "pass_rate": 0.3,
        "groups": 8,
        "groups_silent": 2,
        "masked_rows": 0,
        "reward_failures": {},
        "truncated": 0.02,
        "length": 50.0,
        "tokens": 3200,
        "entropy": 0.6,
        "mismatch": 0.01,
        "loss": 0.001,
        "grad_norm": 0.5,
        "learning_rate": 2e-5,
    }
    return {**base, **changes}


def run(n: int, **changes):
    return [record(i, **changes) for i in range(1, n + 1)]


def test_healthy_and_early_say_nothing():
    assert why_flat([]) is None
    assert why_flat(run(4, groups_silent=8, pass_rate=0.0)) is None
    assert why_flat(run(9)) is None  # flat, but too early to complain without a cause
    assert why_flat([record(i, reward=0.02 * i) for i in range(40)]) is None


def test_noisy_but_rising_is_healthy():
    rewards = [0.01 * i + 0.08 * (-1) ** i for i in range(60)]
    assert why_flat([record(i, reward=r) for i, r in enumerate(rewards)]) is None


def test_a_solved_task_with_signal_left_is_healthy():
    assert why_flat(run(40, reward=1.0, pass_rate=0.95, groups_silent=5)) is None


@pytest.mark.parametrize(
    ("changes", "says", "do"),
    [
        ({"groups_silent": 8, "pass_rate": 1.0}, "too easy", "harder data"),
        ({"groups_silent": 8, "pass_rate": 0.0}, "too hard", "easier data"),
        ({"groups_silent": 8, "pass_rate": 0.0, "reward/form": 0.0}, "'form'", "data.prompt"),
        ({"groups_silent": 8, "pass_rate": 0.01, "truncated": 0.9}, "90%", "max_tokens"),
        ({"groups_silent": 8, "pass_rate": 0.5, "entropy": 0.001}, "entropy", "learning_rate"),
        ({"groups_silent": 8, "pass_rate": 0.5}, "same reward", "temperature"),
        ({"learning_rate": 0.0}, "learning rate is 0", "warmup"),
        ({"loss": math.nan}, "not a finite number", "checkpoint"),
        ({"grad_norm": math.inf}, "not a finite number", "checkpoint"),
        (
            {"masked_rows": 32, "reward_failures": {"accuracy: took longer than 10 s": 32}},
            "50% of the completions",
            "samples.jsonl",
        ),
        (
            {"reward": None, "reward_failures": {"mine: KeyError": 64}, "masked_rows": 64},
            "mine: KeyError",
            "put it",
        ),
    ],
)
def test_no_signal_is_explained_after_five_steps(changes, says, do):
    said = why_flat(run(5, **changes))
    assert said is not None
    assert says in said
    assert do in said
    assert said.endswith(".")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"truncated": 0.7}, "max_tokens"),
        ({"entropy": 0.01}, "collapsed"),
        ({"mismatch": 0.5}, "float32"),
        ({"groups_silent": 6, "pass_rate": 0.02}, "too hard"),
        ({"learning_rate": 1e-9}, "only 1e-09"),
        ({"grad_norm": 0.0}, "gradient is zero"),
        ({}, "train.prompts"),
    ],
)
def test_flat_with_signal_is_explained(changes, says):
    said = why_flat(run(20, **changes))
    assert said is not None
    assert says in said
    assert said.startswith("Reward has not risen in 20 steps")


def test_a_slow_rise_over_a_long_run_is_healthy():
    rewards = [0.0005 * i + 0.05 * (-1) ** (i // 3) for i in range(1400)]
    assert why_flat([record(i, reward=r) for i, r in enumerate(rewards)]) is None


def test_falling_reward_counts_as_not_rising():
    assert why_flat([record(i, reward=1 - 0.02 * i) for i in range(30)]) is not None


def test_a_few_failures_do_not_drown_the_rest():
    assert why_flat(run(8, masked_rows=1, reward_failures={"accuracy: hang": 1})) is None


@pytest.mark.parametrize(
    "broken",
    [
        [{"step": i} for i in range(30)],
        [{"step": i, "reward": math.nan, "groups": None} for i in range(30)],
        [
            {"step": i, "reward": "x", "groups": 0, "groups_silent": "y", "reward_failures": []}
            for i in range(30)
        ],
        [{"reward": None, "reward_failures": {"a": None, "b": "many"}} for _ in range(30)],
        [None, 3, "x"] * 10,
    ],
)
def test_survives_missing_and_malformed_fields(broken):
    assert why_flat(broken) is None or isinstance(why_flat(broken), str)

"""Advantages: closed forms, masked rows, silent groups and numbers that could overflow."""

import math
import statistics
import subprocess
import sys

import pytest

from posttrain.train.advantages import AdvantageKind, advantages, default_kind

KINDS: list[AdvantageKind] = ["std", "mean", "leave_one_out"]


def of_scored(rewards, kind) -> list[float]:
    """Advantages of a group without masked rows."""
    result = [a for a in advantages(rewards, kind) if a is not None]
    assert len(result) == len(rewards)
    return result


def test_std_is_the_unbiased_z_score():
    rewards = [1.0, 0.1, 0.0, 0.0]
    mean, std = statistics.mean(rewards), statistics.stdev(rewards)
    assert advantages(rewards, "std") == pytest.approx(
        [(r - mean) / (std + 1e-4) for r in rewards], rel=1e-12
    )


def test_mean_and_leave_one_out():
    assert advantages([1.0, 0.0, 0.0, 0.0], "mean") == [0.75, -0.25, -0.25, -0.25]
    assert advantages([1.0, 0.0, 0.0, 0.0], "leave_one_out") == pytest.approx([1.0, -1 / 3, -1 / 3, -1 / 3])


def test_leave_one_out_is_the_reward_less_the_mean_of_the_others():
    rewards = [0.3, -1.2, 4.0, 0.3, 2.2]
    others = [statistics.mean(rewards[:i] + rewards[i + 1 :]) for i in range(len(rewards))]
    expected = [r - o for r, o in zip(rewards, others, strict=True)]
    assert advantages(rewards, "leave_one_out") == pytest.approx(expected)


@pytest.mark.parametrize("kind", KINDS)
def test_they_sum_to_zero_and_keep_the_order(kind):
    result = of_scored([0.3, -1.2, 4.0, 0.3, 2.2], kind)
    assert sum(result) == pytest.approx(0, abs=1e-12)
    assert sorted(range(5), key=lambda i: result[i])[::4] == [1, 2]
    assert result[0] == result[3]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("masked", [None, math.nan, math.inf, -math.inf])
def test_a_masked_row_is_left_out_and_stays_none(kind, masked):
    result = advantages([1.0, masked, 0.0, 0.5], kind)
    assert result[1] is None
    assert [result[0], *result[2:]] == advantages([1.0, 0.0, 0.5], kind)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "rewards", [[0.1] * 7, [1 / 3] * 3, [1e300] * 5, [0.0, -0.0], [0.3, 0.1 + 0.2], [-1.7] * 8]
)
def test_equal_rewards_give_exactly_zero(kind, rewards):
    result = advantages(rewards, kind)
    assert result == [0.0] * len(rewards)
    assert not any(result)  # how the loop recognises a silent group


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("rewards", "expected"),
    [([], []), ([1.0], [0.0]), ([None, None], [None, None]), ([None, 3.0], [None, 0.0])],
)
def test_fewer_than_two_scored_rows_have_nothing_to_compare(kind, rewards, expected):
    assert advantages(rewards, kind) == expected


@pytest.mark.parametrize("kind", KINDS)
def test_a_small_difference_is_a_signal(kind):
    assert all(advantages([1.0, 1.0 + 1e-9], kind))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", [1e-300, 1e200, 1.7e308])
def test_tiny_and_huge_rewards_stay_finite(kind, scale):
    result = of_scored([scale, 0.0, scale, 0.0], kind)
    assert all(math.isfinite(a) for a in result)
    assert result[0] > 0 > result[1]


def test_std_does_not_depend_on_scale_but_for_its_floor():
    assert advantages([1e6, 0.0, 3e6], "std") == pytest.approx(advantages([1e9, 0.0, 3e9], "std"), rel=1e-9)


def test_ints_and_bools_are_rewards_too():
    assert advantages([True, False], "mean") == advantages([1, 0], "mean") == [0.5, -0.5]


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="leave_one_out"):
        advantages([1.0, 0.0], "median")  # pyright: ignore[reportArgumentType]


def test_default_kinds():
    assert default_kind("dr_grpo") == "mean"
    assert {default_kind(v) for v in ("grpo", "dapo", "gspo", "cispo")} == {"std"}


def test_no_torch():
    code = "import sys, posttrain.train.advantages; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0

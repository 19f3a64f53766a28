"""The benchmarks run on a tiny model, check that the sides did the same work, and write their results."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import agreement, report
from posttrain.harness.answer import Answer, Finish

ROOT = Path(__file__).parents[1]


def bench(*options):
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", *options],
        capture_output=True,
        text=True,
        timeout=280,
        cwd=ROOT,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )


@pytest.mark.slow
def test_every_part_on_the_tiny_model(tmp_path):
    done = bench(
        *("step", "update", "long", "linear", "rollout"),
        *("--model", "tiny", "--tokens", "4", "--repeats", "1", "--out", str(tmp_path)),
    )
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads((tmp_path / "results.json").read_text())
    step, update = result["parts"]["step"], result["parts"]["update"]
    counted = [r for r in step["rounds"]["fixed"] if r["repeat"]]
    assert [r["tokens"] for r in counted] == [4 * 8 * 4] * 2
    assert all(0 < r["generate"] < r["seconds"] for r in counted)
    natural = [r["tokens"] for r in step["rounds"]["natural"] if r["repeat"]]
    assert natural == [natural[0]] * 3 and natural[0] <= 4 * 8 * 4
    rows = step["summary"]["fixed"]
    assert rows["trl"]["slower"] == pytest.approx(rows["posttrain"]["rate"] / rows["trl"]["rate"])
    # Losses and gradients were compared for real: the same where nothing is rounded, and close where it is.
    exact = update["same"]["posttrain, trl in float32"]
    assert exact["cosine"] > 0.999999 and exact["norm_ratio"] == pytest.approx(1, abs=1e-4)
    same = update["same"]["posttrain, trl_float32"]
    losses = {r["side"]: r["loss"] for r in update["rounds"]["update"] if r["repeat"] == 0}
    assert same["cosine"] > 0.999 and same["norm_ratio"] == pytest.approx(1, abs=0.01)
    assert abs(losses["posttrain"]) > 1e-4
    assert losses["posttrain"] == pytest.approx(losses["trl_float32"], rel=1e-3)
    assert {
        *("step_vs_trl", "step_vs_trl_float32", "step_vs_trl_fixed", "memory_vs_trl"),
        *("update_vs_trl", "update_vs_trl_float32", "long_prompt_update_vs_trl", "matmul_share"),
        *("rollout_vs_generate", "rollout_vs_generate_fixed", "rate_x4_batch", "rate_ragged"),
    } == set(result["ratios"])
    rollout = result["parts"]["rollout"]["summary"]["natural"]
    assert rollout["generate"]["weights"] > 0 and rollout["posttrain"]["start"] > 0
    text = (tmp_path / "RESULTS.md").read_text()
    assert "| trl_float32 |" in text and "## The update alone" in text


@pytest.mark.slow
def test_the_part_with_pictures_on_the_tiny_model(tmp_path):
    done = bench(
        *("vision", "--model", "tiny", "--tokens", "4", "--repeats", "1", "--picture", "64"),
        *("--out", str(tmp_path)),
    )
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads((tmp_path / "results.json").read_text())
    part = result["parts"]["vision"]
    # The work was the same: tokens, losses, and each part's gradient where nothing is rounded.
    assert {r["tokens"] for r in part["rounds"]["update"]} == {4 + 3 + 2 + 1 * 5}
    assert part["losses"]["trl, float32"] == pytest.approx(part["losses"]["posttrain, float32"], rel=1e-4)
    for name in ("tower", "connector", "language"):
        same = part["same"][f"posttrain, trl in float32: {name}"]
        assert report.difference(same["cosine"], same["norm_ratio"]) < 1e-4, name
    assert {r["tokens"] for r in part["rounds"]["first token"]} == {8}
    assert part["summary"]["update"]["trl"]["cpu"] > 0
    assert {"vision_update_vs_trl", "vision_frozen_vs_trl", "vision_first_token_vs_generate"} == set(
        result["ratios"]
    )
    assert "| posttrain, trl in float32: tower |" in (tmp_path / "RESULTS.md").read_text()


@pytest.mark.parametrize("angle", [0.0, 1e-3, 1.0])
@pytest.mark.parametrize("ratio", [0.5, 1.0, 2.0])
def test_the_difference_of_two_vectors_from_their_cosine_and_norms(angle, ratio):
    x, y = complex(ratio * math.cos(angle), ratio * math.sin(angle)), complex(1, 0)
    assert report.difference(math.cos(angle), ratio) == pytest.approx(abs(x - y), rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("options", [["--repeats", "0"], ["fast"], ["race", "--steps", "0"]])
def test_what_cannot_be_measured_is_refused(options):
    done = bench(*options)
    assert done.returncode == 2
    assert "error:" in done.stderr


def round_of(side, repeat, seconds, tokens=100, **more):
    return {"side": side, "repeat": repeat, "seconds": seconds, "tokens": tokens, "peak_gib": 1.0, **more}


def test_medians_leave_the_warm_up_out_and_ratios_go_by_token():
    rounds = [
        *(round_of("ours", k, s) for k, s in enumerate([99.0, 1.0, 2.0, 3.0])),
        *(round_of("theirs", k, s, tokens=50) for k, s in enumerate([1.0, 4.0, 4.0, 4.0])),
    ]
    rows = report.summarise(rounds)
    assert rows["ours"]["seconds"] == 2.0
    assert rows["theirs"]["slower"] == pytest.approx((100 / 2) / (50 / 4))
    assert (rows["theirs"]["slower_low"], rows["theirs"]["slower_high"]) == pytest.approx((100 / 3 / 12.5, 8))


def test_a_race_counts_every_step_and_says_what_was_not_reached():
    rounds = [
        *(round_of("posttrain", k, 60.0, strict=s) for k, s in enumerate([None, 0.25, None, 0.45])),
        *(round_of("trl_float32", k, 300.0, strict=s) for k, s in enumerate([None, 0.1, None, 0.3])),
    ]
    ours = report.curve(rounds, "posttrain")
    assert ours == [(2.0, 0.25), (4.0, 0.45)]
    assert report.reached(ours, 0.4) == 4.0
    assert report.reached(report.curve(rounds, "trl_float32"), 0.4) is None
    part = {"rounds": {"race": rounds}, "summary": {"race": report.summarise(rounds)}}
    assert report.ratios({"race": part}) == {"race_vs_trl": 5.0}
    text = "\n".join(report.race(part))
    assert "| 40% | 4.0 | not reached |" in text


def test_parts_measured_before_stay(tmp_path):
    def row(slower=1.0, **more):
        return {"slower": slower, "slower_low": 0.9, "slower_high": 2.0, **more}

    def part(**cases):
        return {
            "summary": cases,
            "model": "m",
            "prompts": 4,
            "completions": 8,
            "max_tokens": 128,
            "machine": {"device": "d", "cores": 2, "threads": 2},
            "versions": {"torch": "2"},
            "date": "2026-01-01",
        }

    engines = {"posttrain": row(), "vllm": row(1.2)}
    loads = {"x1": 10.0, "x4": 9.0, "x4 even": 12.0}
    report.store(tmp_path, "vllm", part(**{"32 rows": engines, "128 rows": engines}), {})
    rates = {f"posttrain {load}": row(packed_rate=rate) for load, rate in loads.items()}
    report.store(tmp_path, "linear", part(linear=rates), {})
    ratios = json.loads((tmp_path / "results.json").read_text())["ratios"]
    assert ratios == {
        "rollout_vs_vllm_32": 1.2,
        "rollout_vs_vllm_128": 1.2,
        "rate_x4_batch": 0.9,
        "rate_ragged": 0.75,
    }
    text = (tmp_path / "RESULTS.md").read_text()
    assert 0 < text.index(report.TITLES["linear"]) < text.index(report.TITLES["vllm"])


def answer(id, text, finish: Finish = "stop"):
    return Answer(id, 0, text, None, finish)


def test_agreement_counts_tokens_before_the_first_difference():
    one = [answer("a", "1234"), answer("b", "xyz"), answer("c", "same"), answer("d", "only here")]
    other = [answer("b", "xyzzy"), answer("c", "same"), answer("a", "12x4"), answer("e", "", "error")]
    found = agreement.agreement(one, other, lambda text: [ord(letter) for letter in text])
    assert (found["answers"], found["same"], found["alone"]) == (3, 1, 1)
    assert (found["tokens"], found["agreeing"]) == (4 + 5 + 4, 2 + 3 + 4)
    assert found["share"] == 9 / 13
    assert found["differences"] == [
        {"id": "a", "sample": 0, "at": 2, "one": "34", "other": "x4"},
        {"id": "b", "sample": 0, "at": 3, "one": "", "other": "zy"},
    ]
    assert agreement.agreement([], [], lambda text: [len(text)])["share"] == 1.0

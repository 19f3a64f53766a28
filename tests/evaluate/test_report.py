import json
import math
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest

from posttrain.evaluate.charts import (
    POINTS,
    Line,
    bar_chart,
    escape,
    line_chart,
    moving_mean,
    nice_ticks,
    thin,
)
from posttrain.evaluate.report import write_report
from posttrain.evaluate.runfolder import read_run
from posttrain.evaluate.words import compact, percent
from posttrain.evaluate.written import choose
from posttrain.types import PosttrainError

VOID = {"meta", "link", "br", "img", "input", "hr"}
EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)></pre></body>\"'><a href=javascript:alert(3)>"


class Page(HTMLParser):
    """The tags, attributes and text of a page; fails where a tag is not closed in its place."""

    def __init__(self, source: str):
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.texts: list[str] = []
        self._open: list[str] = []
        self.feed(source)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if "style" not in self._open:
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


def page_of(folder: Path) -> Page:
    path = write_report(folder)
    assert path == folder / "report.html"
    assert [p.name for p in folder.iterdir() if p.name.startswith(".")] == []  # nothing left half written
    return Page(path.read_text("utf-8"))


def rewrite(path: Path, change):
    records = [json.loads(line) for line in path.read_text().splitlines()]
    for record in records:
        change(record)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def test_a_finished_run(fake_run):
    folder = fake_run()
    result = json.loads((folder / "result.json").read_text())
    page = page_of(folder)
    before, after = result["before"], result["after"]
    for part in (
        "finished",
        "r1-zero-smollm2",
        f"got {percent(before['strict']['accuracy'])} of 256 unseen problems right",
        f"it gets {percent(after['strict']['accuracy'])} right",
        "the 95% intervals do not overlap",
        "Strict",
        "Lenient",
        "Sampled",
        "mean of 4 a problem",
        "Works it out in steps",
        "Reward",
        "Held-out accuracy",
        "Pass rate and silent groups",
        "Completion length",
        "Cut off",
        "Entropy",
        "Mismatch",
        "Speed",
        "Seconds a step",
        "wrong → right",
        "✓ right",
        "✗ wrong",
        "2.13.0+cpu",
        "recipe.yaml, as it was resolved",
        "learning_rate: 2.0e-05",
    ):
        assert part in page.text
    assert "not finished" not in page.text
    assert page.tags.count("svg") == 10
    assert page.tags.count("article") == 12
    assert "KL" not in page.text  # null in every record: not measured


def test_the_page_needs_nothing_from_outside_and_runs_nothing(fake_run):
    folder = fake_run()
    page = page_of(folder)
    assert not set(page.tags) & {"script", "iframe", "object", "embed", "img", "base", "form"}
    for _, name, value in page.attributes:
        assert not name.startswith("on")
        if name in ("src", "href", "action"):
            assert value == "data:,"
    source = (folder / "report.html").read_text()
    assert "@import" not in source
    assert "url(" not in source
    assert (
        "meta",
        "content",
        "default-src 'none'; style-src 'unsafe-inline'; img-src data:",
    ) in page.attributes


def test_charts_are_well_formed_and_described(fake_run):
    source = write_report(fake_run()).read_text()
    for svg in re.findall(r"<svg.*?</svg>", source):
        ElementTree.fromstring(svg)
        assert "nan" not in svg
        assert "inf" not in svg
    labels = re.findall(r'role="img" aria-label="([^"]+)"', source)
    assert len(labels) == source.count("<svg")
    assert any(
        re.match(r"Reward: total from [\d.]+ at step 1 to [\d.]+ at step 60\.", label) for label in labels
    )


def test_model_text_and_names_are_inert(fake_run):
    folder = fake_run(steps=20, n=8)
    rewrite(
        folder / "samples.jsonl", lambda r: r.update(completion=EVIL, prompt=EVIL, answer=EVIL, finish=EVIL)
    )
    rewrite(
        folder / "metrics.jsonl", lambda r: r.update({f"reward/{EVIL}": 0.5, "reward_failures": {EVIL: 9}})
    )
    result = json.loads((folder / "result.json").read_text())
    result |= {
        "name": EVIL,
        "model": EVIL,
        "seed": EVIL,
        "versions": {EVIL: EVIL},
        "machine": {"device": EVIL},
    }
    result["after"]["form"] = EVIL
    (folder / "result.json").write_text(json.dumps(result))
    with (folder / "recipe.yaml").open("a") as file:
        file.write(f"# {EVIL}\n")
    page = page_of(folder)
    assert not set(page.tags) & {"script", "img", "a"}
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    assert page.text.count("<script>alert(1)</script>") > 30  # shown as text


def test_what_was_left_out_is_counted(fake_run):
    folder = fake_run(steps=4, n=4)
    assert "had no reward" not in page_of(folder).text
    each = {"tokens": 320, "length": 40.0, "masked_rows": 3, "reward_failures": {"mine: returned nan": 2}}
    rewrite(folder / "metrics.jsonl", lambda r: "reward" in r and r.update(each))
    text = page_of(folder).text
    assert "12 of 32 training completions had no reward" in text
    assert "mine: returned nan 8" in text and "no reward applied (None) 4" in text
    rewrite(folder / "metrics.jsonl", lambda r: "reward" in r and r.update(masked_rows=0))
    assert "only reported (weight 0) failed" in page_of(folder).text
    many = {f"mine: {i}": i for i in range(1, 31)}
    odd = {"masked_rows": None, "reward_failures": many, "tokens": "x"}
    rewrite(folder / "metrics.jsonl", lambda r: "reward" in r and r.update(odd))
    text = page_of(folder).text
    assert "The 20 most frequent of 30" in text and "mine: 30 120" in text and "mine: 10 " not in text


def test_odd_characters(fake_run):
    folder = fake_run(steps=3, n=4)
    odd = "\x00\x1b[31m \x85 \ud83d مرحبا 你好 \u202eabc\u2069 \ufffe 🙂\r\n\t&amp;"
    rewrite(folder / "samples.jsonl", lambda r: r.update(completion=odd))
    text = page_of(folder).text
    assert "␀␛[31m � � مرحبا 你好 �abc� � 🙂 &amp;" in text
    assert escape("a\r\nb\tc<") == "a\nb\tc&lt;"


def test_huge_completions_are_clipped(fake_run):
    folder = fake_run(steps=3, n=6)
    rewrite(folder / "samples.jsonl", lambda r: r.update(completion="<x> " * 500_000, prompt="y" * 100_000))
    assert "more characters in samples.jsonl" in page_of(folder).text
    assert (folder / "report.html").stat().st_size < 1_000_000


def test_a_long_run_stays_small(fake_run):
    folder = fake_run(steps=3000)
    page = page_of(folder)
    assert (folder / "report.html").stat().st_size < 1_500_000
    assert "step 3000" in page.text


def test_a_run_that_was_killed(fake_run):
    folder = fake_run(steps=23, planned=60, result=False)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 24, "rew')
    page = page_of(folder)
    assert "not finished · step 23 of 60" in page.text
    assert "After 20 steps" in page.text  # where the last evaluation was
    metrics = (folder / "metrics.jsonl").read_text().splitlines(True)
    (folder / "metrics.jsonl").write_text("".join(line for line in metrics if '"step": 0' not in line))
    assert "After 20 steps" in page_of(folder).text, "without one before"
    assert "no final evaluation" in page.text
    assert "damaged" not in page.text  # a last line without its newline is being written


@pytest.mark.parametrize("missing", ["recipe.yaml", "metrics.jsonl", "samples.jsonl", "result.json"])
def test_any_file_may_be_missing_empty_cut_or_garbage(fake_run, missing):
    folder = fake_run(steps=12, n=8)
    whole = (folder / missing).read_bytes()
    for content in (
        None,
        b"",
        whole[: len(whole) // 2],
        b"\xff\xfe\x00{[",
        b"[" * 100_000,
        b"null\n",
        b"3\n[]\n",
    ):
        if content is None:
            (folder / missing).unlink()
        else:
            (folder / missing).write_bytes(content)
        assert "r1-zero-smollm2" in page_of(folder).text


@pytest.mark.parametrize("only", ["recipe.yaml", "metrics.jsonl", "samples.jsonl", "result.json"])
def test_one_file_alone_makes_a_page(fake_run, only):
    folder = fake_run(steps=12, n=8)
    for path in folder.iterdir():
        if path.name != only:
            path.unlink()
    assert "What produced it" in page_of(folder).text


def test_a_result_without_after_is_not_finished(fake_run):
    folder = fake_run(steps=12)
    result = json.loads((folder / "result.json").read_text())
    del result["after"]
    (folder / "result.json").write_text(json.dumps(result))
    assert "not finished" in page_of(folder).text


def test_a_model_that_was_not_measured_before_has_no_column_for_it(fake_run):
    folder = fake_run()
    result = json.loads((folder / "result.json").read_text())
    del result["before"]
    (folder / "result.json").write_text(json.dumps(result))
    metrics = (folder / "metrics.jsonl").read_text().splitlines(True)
    (folder / "metrics.jsonl").write_text("".join(line for line in metrics if '"step": 0' not in line))
    samples = (folder / "samples.jsonl").read_text().splitlines(True)
    (folder / "samples.jsonl").write_text("".join(line for line in samples if '"before"' not in line))
    heads = [f"<span>{head}</span>" for head in ("before", "after")]
    assert [head in write_report(folder).read_text() for head in heads] == [False, True]
    page = page_of(folder)
    assert "After 60 steps of reinforcement learning smollm2-135m gets 50% of 256 unseen" in page.text
    assert "Right and wrong answers in turn" in page.text and "latest training" not in page.text


def test_damaged_lines_are_counted_and_the_later_record_of_a_step_counts(tmp_path):
    lines = [
        '{"step": 0, "heldout": {"strict": {"accuracy": 0.1}}}',
        '{"step": 1, "reward": 0.1}',
        '{"step": 2, "reward": 0.2}',
        '{"step": 3, "rew{"step": 2, "reward": 0.9}',  # killed here; another process went on
        "",
        '{"step": null, "reward": 5}',
        '{"step": 2, "reward": 0.7}',
        '{"step": 2, "heldout": {"strict": {"accuracy": 0.4}}}',
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    run = read_run(tmp_path)
    assert [(r["step"], r["reward"]) for r in run.steps] == [(1, 0.1), (2, 0.7)]
    assert [step for step, _ in run.evaluations] == [0, 2]
    assert run.problems == ["1 damaged line of metrics.jsonl left out."]


def test_wrong_types_everywhere(tmp_path):
    bad = [math.nan, math.inf, "x", [], {}, None, True, -1, 10**400, 1e308]
    metrics = []
    keys = (
        "reward",
        "reward/a",
        "pass_rate",
        "groups",
        "groups_silent",
        "length",
        "entropy",
        "kl",
        "seconds",
    )
    for step, value in enumerate(bad, 1):
        heldout = {
            "strict": {"accuracy": value, "ci95": value, "n": value},
            "lenient": value,
            "length": value,
        }
        metrics.append(
            {"step": step, **dict.fromkeys(keys, value), "seconds_update": value, "heldout": heldout}
        )
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(m) + "\n" for m in metrics))
    for value in bad:
        evaluation = {"strict": {"accuracy": 0.5, "ci95": [value, value], "n": value}, "sampled": value}
        result = {"name": value, "model": value, "before": evaluation, "after": evaluation, "seconds": value}
        result |= {"versions": value, "seed": value, "steps": value, "machine": value}
        (tmp_path / "result.json").write_text(json.dumps(result))
        (tmp_path / "recipe.yaml").write_text(json.dumps({"name": value, "train": value, "model": value}))
        samples = [
            {"phase": p, "id": value, "prompt": value, "completion": value, "strict": value, "tokens": value}
            for p in ("before", "after", "train", value)
        ]
        (tmp_path / "samples.jsonl").write_text("".join(json.dumps(s) + "\n" for s in samples))
        page_of(tmp_path)


def test_overlapping_intervals_are_said_to_overlap(fake_run):
    folder = fake_run(steps=12)
    result = json.loads((folder / "result.json").read_text())
    result["after"] = result["before"]
    (folder / "result.json").write_text(json.dumps(result))
    page = page_of(folder)
    assert "the 95% intervals overlap" in page.text
    assert "+0 points" in page.text


def test_the_reason_for_flat_reward_is_on_the_page(fake_run):
    folder = fake_run(steps=12)
    rewrite(
        folder / "metrics.jsonl", lambda r: r.update(groups=8, groups_silent=8, pass_rate=0.0, truncated=0.9)
    )
    assert "Why reward is flat. All groups are silent" in page_of(folder).text


def test_training_samples_stand_in_while_there_is_nothing_to_compare(tmp_path):
    record = {
        "step": 7,
        "phase": "train",
        "split": "train",
        "prompt": "2+2?",
        "completion": "4",
        "total": 1.1,
    }
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps(record) + "\n" for _ in range(50)))
    page = page_of(tmp_path)
    assert page.tags.count("article") == 4
    assert "step 7" in page.text
    assert "reward 1.1" in page.text


def test_not_a_run_folder(tmp_path):
    with pytest.raises(PosttrainError, match="holds no run"):
        write_report(tmp_path)
    with pytest.raises(PosttrainError, match="not a folder"):
        write_report(tmp_path / "nowhere")


def pair(change: str, number: int):
    was, now = (None if word == "?" else word == "right" for word in change.split("→"))
    return {"before": {"strict": was, "n": number}, "after": {"strict": now}}


def test_choosing_what_to_show_hides_no_kind():
    pairs = [pair("wrong→right", i) for i in range(50)] + [pair("right→wrong", i) for i in range(9)]
    pairs += [pair("wrong→wrong", i) for i in range(30)] + [pair("right→right", 0), pair("?→right", 0)]
    shown = choose(pairs)
    kinds = [(p["before"]["strict"], p["after"]["strict"]) for p in shown]
    assert len(shown) == 12
    assert kinds[:6] == [(False, True)] * 6
    assert kinds.count((True, False)) == 2
    assert kinds.count((False, False)) == 2
    assert kinds.count((True, True)) == 1
    assert [p["before"]["n"] for p in shown[:6]] == list(range(6))  # the file's order, no picking
    assert len(choose(pairs[50:59])) == 9
    assert choose([]) == []


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (0, 0.37), (-0.4, 1.2), (0, 7e-5), (0, 9e9), (-3, 0), (0, 100), (0, 1e-200)]
)
def test_ticks_are_round_and_enclose(low, high):
    ticks = nice_ticks(low, high)
    assert ticks[0] <= low + 1e-9 * (high - low)
    assert ticks[-1] >= high - 1e-9 * (high - low)
    assert 2 <= len(ticks) <= 7
    steps = {round((b - a) / (ticks[1] - ticks[0]), 6) for a, b in pairwise(ticks)}
    assert steps == {1.0}


@pytest.mark.parametrize(("low", "high"), [(0, 0), (0, math.inf), (0, math.nan), (0, 1e-320)])
def test_ticks_of_nothing(low, high):
    assert nice_ticks(low, high) == [0.0, 1.0]


def test_thin_keeps_the_mean_and_the_ends():
    steps = [float(i) for i in range(1, 1001)]
    values: list[float | None] = [float(i) for i in range(1000)]
    values[10] = None
    thinned, (column,) = thin(steps, [values])
    assert len(thinned) <= POINTS
    assert (thinned[0], thinned[-1]) == (1.0, 1000.0)
    assert column[0] == 2.0
    assert column[2] == pytest.approx((11 + 12 + 13 + 14) / 4)
    assert thin([], []) == ([], [])


def test_moving_mean_ignores_gaps_and_keeps_them():
    assert moving_mean([0.0, None, 4.0, 8.0], 3) == [0.0, None, 6.0, 6.0]
    assert moving_mean([1.0, 2.0], 1) == [1.0, 2.0]


def test_charts_of_one_point_of_none_and_with_gaps():
    assert line_chart("t", [], [Line("a", [])], compact) == ""
    assert line_chart("t", [1.0], [Line("a", [None])], compact) == ""
    assert bar_chart("t", [1.0], [Line("a", [0.0])], compact) == ""
    assert bar_chart("t", [1.0], [Line("a", [-1.0])], compact) == ""
    assert "dots" in line_chart("t", [1.0], [Line("a", [0.5], band=[(0.4, 0.6)])], compact)
    gaps = line_chart("t", [1.0, 2.0, 3.0, 4.0], [Line("a", [1.0, 2.0, None, 1.0])], compact)
    assert gaps.count("M") >= 2
    assert "<rect" in bar_chart("t", [1.0, 2.0], [Line("a", [0.5, None]), Line("b", [None, 2.0])], compact)


@pytest.mark.parametrize("last", [0.0, 0.5, 1.0])
def test_labels_of_lines_that_end_together_do_not_cover_each_other(last):
    lines = [Line(f"l{i}", [0.0, 1.0, last]) for i in range(5)]
    chart = line_chart("t", [1.0, 2.0, 3.0], lines, compact, height=150)
    tops = sorted(float(top) for top in re.findall(r'class="end[^"]*" style="top:([\d.-]+)%', chart))
    assert len(tops) == 5
    assert min(b - a for a, b in pairwise(tops)) >= 9.9  # 15 px of 150
    assert tops[0] >= 0
    assert tops[-1] <= 100

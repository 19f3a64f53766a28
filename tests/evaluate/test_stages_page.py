"""The page of a run of stages, and the pages of single stages of every kind."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

from posttrain.evaluate.diagnose import why_flat
from posttrain.evaluate.report import write_report
from posttrain.evaluate.runfolder import read_run
from posttrain.evaluate.stages_page import write_stages_report
from posttrain.evaluate.suspicion import suspicions
from posttrain.types import PosttrainError

EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)></pre></body>\"'><a href=javascript:alert(3)>"
SELF = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


class Page(HTMLParser):
    """What a page shows; fails where a tag is not closed in its place, or brings in or runs anything."""

    def __init__(self, path: Path):
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.marks: set[str] = set()
        self.pieces: list[str] = []
        self.charts = 0
        source = path.read_text("utf-8")
        assert SELF in source
        self.feed(source)
        self.close()
        assert self.open == []
        self.text = " ".join(" ".join(self.pieces).split())
        for link in self.links:
            inside = (
                link[1:] in self.marks if link.startswith("#") else (path.parent / unquote(link)).is_file()
            )
            assert inside, link

    def handle_starttag(self, tag, attrs):
        assert tag not in {"script", "iframe", "object", "embed", "img", "base", "form"}
        self.charts += tag == "svg"
        for name, value in attrs:
            assert not name.startswith("on")
            if name == "id":
                assert value not in self.marks
                self.marks.add(value or "")
            if name == "href" and tag == "a":
                self.links.append(value or "")
        if tag not in {"meta", "link", "br", "path", "rect"}:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in {"path", "rect"}:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.pieces.append(data)


def whole(folder: Path) -> Page:
    path = write_stages_report(folder)
    assert path == folder / "report.html"
    return Page(path)


def path_of(folder: Path, name: str) -> Path:
    (path,) = folder.glob(f"{name}-????????")
    return path


def rewrite(path: Path, change):
    records = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    for record in records:
        change(record)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def test_a_finished_run_of_stages(fake_stages):
    folder = fake_stages()
    page = whole(folder)
    for part in (
        "posttrain finished",
        "r1-smollm2",
        "smollm2-135m got 3.1% of 64 unseen problems right. After cold_start , reason , second and final it",
        "it gets 78% right.",
        "From smollm2-135m , with zero instead: 3.1% → 16%",
        "smollm2-135m, 8 of its layers got 0%",
        "+75 points 95% interval +63 to +84, on the same 64 problems",
        "zero , from smollm2-135m too",
        "before training",
        "+45.3 +34 to +57",
        "312 examples, 3 epochs, 117 updates",
        "Kept 214 of 1,600 completions.",
        "accuracy below 1 1,100",
        "kept · 25% of its prompt's passed",
        "Be brief. 1 + 1?",
        "«<think>3</think> The answer is: 3<|end|>»",
        "Begins with cold_start",
        "Rows from draw",
        "Loss",
        "Token accuracy",
        "Reward",
        "Ann hat 11 Äpfel und kauft 3. 一共有几个?",
        "recipe.yaml, as it was resolved",
    ):
        assert part in page.text, part
    assert "not finished" not in page.text and "damaged" not in page.text
    assert sum(link.endswith("/report.html") for link in page.links) == 9
    assert page.charts == 12  # two a stage that learns
    assert (folder / "report.html").stat().st_size < 1_000_000


def test_an_unfinished_run_of_stages(fake_stages):
    page = whole(fake_stages(stop_at="second"))
    for part in (
        "not finished · 5 of 9 stages done",
        "After cold_start and reason it gets 56% right.",
        "Update 12, epoch 0.31 of 1.",
        "still going, or it was stopped",
        "Never ran. Nothing is here yet: the stage waits for its turn.",
    ):
        assert part in page.text, part


def test_nothing_ran_yet(fake_stages):
    page = whole(fake_stages(stop_at="base"))
    assert "none of them has been measured yet" in page.text
    assert page.charts == 0


def test_a_changed_stage_says_that_it_shows_an_earlier_result(fake_stages):
    folder = fake_stages()
    recipe = folder / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("steps: 28", "steps: 29"))
    page = whole(folder)
    assert "This is an earlier result; the stage will run again: train.steps: 28 then, 29 now." in page.text
    assert "6 of 9 stages done" not in page.text and "not finished" in page.text


def test_why_nothing_was_added_is_said(fake_stages):
    folder = fake_stages()
    reason = path_of(folder, "reason")
    result = json.loads((reason / "result.json").read_text())
    result["after"]["form"] = "boxed"
    (reason / "result.json").write_text(json.dumps(result))
    assert "What it added is not known: cold_start was judged in another form." in whole(folder).text


def test_a_comparison_on_some_of_the_problems_says_so(fake_stages):
    folder = fake_stages()
    samples = path_of(folder, "reason") / "samples.jsonl"
    rewrite(samples, lambda r: r.update(strict=None) if int(r["id"].removeprefix("heldout-")) < 10 else None)
    assert "points, on the 54 problems that both answered" in whole(folder).text


def test_hostile_text_everywhere_is_inert(fake_stages):
    folder = fake_stages()
    for stage in folder.glob("*-????????"):
        for name in ("samples.jsonl", "rows.jsonl"):
            if (stage / name).is_file():
                rewrite(stage / name, lambda r: r.update(prompt=EVIL, completion=EVIL, answer=EVIL))
        if (stage / "examples.txt").is_file():
            (stage / "examples.txt").write_text(EVIL)
        if (stage / "metrics.jsonl").is_file():
            rewrite(stage / "metrics.jsonl", lambda r: r.update({f"reward/{EVIL}": 0.5}))
        result = json.loads((stage / "result.json").read_text())
        result |= {"name": EVIL, "model": EVIL, "dtype": EVIL, "machine": {"device": EVIL}}
        if "sampled" in result:
            result["sampled"] |= {"dropped": {EVIL: 3}, "parts": {EVIL: 0.5}}
        (stage / "result.json").write_text(json.dumps(result))
        page = Page(write_report(stage))
        assert "<script>alert(1)</script>" in page.text
    recipe = folder / "recipe.yaml"
    recipe.write_text(recipe.read_text() + f"# {EVIL}\n")
    assert whole(folder).text.count("<script>alert(1)</script>") > 30


def test_names_of_other_scripts_are_linked(fake_stages):
    text = """\
name: Größe
output: {output}
model: {{name: smollm2-135m}}
data:
  train: {{source: "reasoning_gym:chain_sum", size: 40, seed: 1}}
  heldout: {{source: "reasoning_gym:chain_sum", size: 64, seed: 2}}
rewards: [{{use: accuracy}}]
stages:
  - {{name: 推理, kind: grpo}}
"""
    page = whole(fake_stages(text=text))
    assert "推理" in page.text and any("%E6" in link for link in page.links)


@pytest.mark.parametrize(
    "name", ["result.json", "samples.jsonl", "metrics.jsonl", "rows.jsonl", "examples.txt"]
)
def test_damaged_files_leave_a_page(fake_stages, name):
    folder = fake_stages()
    for content in (b"", b"\xff{[\n", b"[" * 100_000, b"null\n3\n", None):
        for stage in folder.glob("*-????????"):
            if content is None:
                (stage / name).unlink(missing_ok=True)
            elif (stage / name).is_file():
                (stage / name).write_bytes(content)
            Page(write_report(stage))
        whole(folder)


def test_huge_texts_are_clipped(fake_stages):
    folder = fake_stages()
    for stage in folder.glob("*-????????"):
        for name in ("samples.jsonl", "rows.jsonl"):
            if (stage / name).is_file():
                rewrite(stage / name, lambda r: r.update(completion="<x> " * 5_000))
        (stage / "examples.txt").write_text("<y>" * 100_000)
    page = whole(folder)
    assert "more characters in rows.jsonl" in page.text and "more characters in examples.txt" in page.text
    assert (folder / "report.html").stat().st_size < 2_500_000


def test_not_a_run_of_stages(tmp_path, fake_run):
    with pytest.raises(PosttrainError):
        write_stages_report(tmp_path)
    with pytest.raises(PosttrainError):
        write_stages_report(fake_run(steps=3, n=4))


# --- the pages of single stages ---


def test_a_stage_of_supervised_fine_tuning(fake_stages):
    path = path_of(fake_stages(), "cold_start")
    page = Page(write_report(path))
    for part in (
        "smollm2-135m got 3.1% of 64 unseen problems right.",
        "After 117 updates of supervised fine-tuning it gets 11% right.",
        "+8 points 95% interval +2 to +17, on the same 64 problems",
        "Loss",
        "Token accuracy",
        "Entropy",
        "Gradient norm",
        "Learning rate",
        "update 117",
        "Faint lines are single updates",
        "What it wrote",
        "What it learned from",
        "Examples 312",
        "Updates 117",
    ):
        assert part in page.text, part
    for part in ("Reward", "reinforcement", "silent", "Why reward is flat", "step 117"):
        assert part not in page.text, part
    assert page.charts == 8


def test_an_unfinished_stage_of_supervised_fine_tuning(fake_stages):
    path = path_of(fake_stages(stop_at="second"), "second")
    page = Page(write_report(path))
    assert "not finished · update 12, epoch 0.31 of 1" in page.text
    assert "no final evaluation" in page.text and "reinforcement" not in page.text
    for name in ("metrics.jsonl", "samples.jsonl", "examples.txt"):
        (path / name).unlink()
    (path / "result.json").unlink(missing_ok=True)
    page = Page(write_report(path))  # begun, and killed before anything was written
    assert "stage reason , 0 updates of supervised fine-tuning" in page.text


def test_a_stage_that_measures(fake_stages):
    page = Page(write_report(path_of(fake_stages(), "base")))
    assert "smollm2-135m gets 3.1% of 64 unseen problems right." in page.text
    assert "Right and wrong answers in turn" in page.text
    assert "✓ right" in page.text and "✗ wrong" in page.text
    for part in ("before", "reinforcement", "points", "not finished", "Reward"):
        assert part not in page.text, part


@pytest.mark.parametrize(
    ("name", "says"), [("draw", "kept 214 of 1,600 completions."), ("served", "written as bfloat16.")]
)
def test_stages_that_only_draw_or_export(fake_stages, name, says):
    page = Page(write_report(path_of(fake_stages(), name)))
    assert says in page.text and "finished" in page.text and "reinforcement" not in page.text


def test_updates_are_no_flat_rewards_and_no_gamed_ones(fake_stages):
    path = path_of(fake_stages(), "cold_start")
    run = read_run(path)
    assert len(run.steps) == 117
    assert why_flat(run.steps) is None
    flat = [
        {**record, "loss": 1.0, "entropy": 0.0, "grad_norm": 0.0, "learning_rate": 0.0}
        for record in run.steps
    ]
    assert why_flat(flat) is None
    assert suspicions(run) == []

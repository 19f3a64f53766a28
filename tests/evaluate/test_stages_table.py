"""What each stage came to and added: where the comparison comes from, and when there is none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.cells import cell_len

from posttrain.evaluate.branches import branches
from posttrain.evaluate.metrics import paired
from posttrain.evaluate.stages_table import WIDTH, StageRow, stage_rows, stages_table
from posttrain.evaluate.summary import summary
from posttrain.types import PosttrainError


def by_name(folder: Path) -> dict[str, StageRow]:
    return {row.name: row for row in stage_rows(folder)}


def strict(folder: Path, phase: str) -> dict[str, bool]:
    """What the samples of a stage's folder say, read without the code under test."""
    lines = [json.loads(line) for line in (folder / "samples.jsonl").read_text("utf-8").splitlines()]
    return {line["id"]: line["strict"] for line in lines if line["phase"] == phase}


def path_of(folder: Path, name: str) -> Path:
    (path,) = folder.glob(f"{name}-????????")
    return path


def rewrite(path: Path, change):
    records = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    for record in records:
        change(record)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def change_result(folder: Path, **changes: object) -> None:
    result = json.loads((folder / "result.json").read_text())
    (folder / "result.json").write_text(json.dumps(result | changes))


def test_rows_of_a_finished_run(fake_stages):
    rows = stage_rows(fake_stages())
    names = ["base", "zero", "cold_start", "reason", "draw", "second", "served", "final", "student"]
    assert [row.name for row in rows] == names
    assert {row.state for row in rows} == {"done"}
    assert [row.did for row in rows] == [
        "64 problems",
        "28 steps",
        "312 examples, 3 epochs, 117 updates",
        "28 steps",
        "kept 214 of 1,600 completions",
        "312 examples, 1 epoch, 117 updates",
        "written as bfloat16",
        "20 steps",
        "312 examples, 1 epoch, 117 updates",
    ]
    assert [row.parent for row in rows] == [
        None, None, None, "cold_start", "reason", "reason", "second", "second", None
    ]  # fmt: skip
    assert [row.rows_from for row in rows if row.rows_from] == [("draw",), ("draw",)]
    assert rows[0].minutes == pytest.approx(6.2)
    # Kinds that teach nothing add nothing; the export is looked through.
    since = [row.since for row in rows]
    assert since == ["", "zero", "cold_start", "cold_start", "", "reason", "", "second", "student"]


def test_what_a_stage_added_is_counted_on_the_same_problems(fake_stages):
    folder = fake_stages()
    rows = by_name(folder)
    for name, (parent, phase) in {
        "reason": ("cold_start", "after"),
        "final": ("second", "after"),  # through the export
        "zero": ("zero", "before"),
        "student": ("student", "before"),  # layers were dropped: another model than the base
    }.items():
        then, now = strict(path_of(folder, parent), phase), strict(path_of(folder, name), "after")
        gained = sum(now[i] and not then[i] for i in now)
        lost = sum(then[i] and not now[i] for i in now)
        added = rows[name].added
        assert added is not None and (gained, lost) != (0, 0)
        assert added.value == pytest.approx((gained - lost) / 64)
        assert (added.lo, added.hi) == paired(gained, lost, 64)
        assert added.n == 64


def test_an_evaluation_of_the_base_model_stands_in_for_the_stages_own(fake_stages):
    folder = fake_stages()
    zero = path_of(folder, "zero")
    result = json.loads((zero / "result.json").read_text())
    del result["before"]
    (zero / "result.json").write_text(json.dumps(result))
    (zero / "metrics.jsonl").unlink()
    row = by_name(folder)["zero"]
    assert row.since == "base" and row.added is not None
    (path_of(folder, "base") / "samples.jsonl").unlink()
    row = by_name(folder)["zero"]
    assert row.since == "cold_start" and row.added is not None  # another stage began with the same model
    (path_of(folder, "cold_start") / "samples.jsonl").unlink()
    row = by_name(folder)["zero"]
    assert row.added is None and row.note == "base answered other problems"


def test_only_problems_that_both_answered_count(fake_stages):
    folder = fake_stages()
    samples = path_of(folder, "reason") / "samples.jsonl"

    def change(record):
        at = int(record["id"].removeprefix("heldout-"))
        if at < 20:
            record["prompt"] = "another question under the same id"
        elif at < 30:
            record["strict"] = None

    rewrite(samples, change)
    added = by_name(folder)["reason"].added
    assert added is not None and added.n == 34
    rewrite(samples, lambda record: record.update(id=record["id"] + "!"))
    # Nothing in common with the parent, so the stage's own evaluation of the same model is taken.
    row = by_name(folder)["reason"]
    assert row.since == "reason" and row.added is not None


def test_another_form_is_not_compared(fake_stages):
    folder = fake_stages()
    reason = path_of(folder, "reason")
    result = json.loads((reason / "result.json").read_text())
    result["after"]["form"] = "boxed"
    (reason / "result.json").write_text(json.dumps(result))
    row = by_name(folder)["reason"]
    assert row.added is None and row.start is None
    assert row.note == "cold_start was judged in another form"
    assert row.after is not None


def test_an_unfinished_run(fake_stages):
    folder = fake_stages(stop_at="second")
    rows = by_name(folder)
    assert [rows[name].state for name in ("draw", "second", "served", "final")] == [
        "done",
        "begun",
        "new",
        "new",
    ]
    assert rows["second"].did == "update 12, epoch 0.31 of 1"
    assert rows["second"].after is None and rows["second"].added is None
    assert rows["second"].start is not None  # what it began with is known
    assert rows["final"].did == "never ran" and rows["final"].run is None
    folder = fake_stages(stop_at="reason")
    assert by_name(folder)["reason"].did == "step 12 of 28"


def test_a_changed_recipe_shows_earlier_results_and_says_so(fake_stages):
    folder = fake_stages()
    recipe = folder / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("steps: 28", "steps: 29"))
    rows = by_name(folder)
    assert rows["zero"].state == "earlier" and rows["zero"].why == "train.steps: 28 then, 29 now"
    assert rows["cold_start"].state == "done"
    assert rows["zero"].added is not None and rows["reason"].added is not None
    assert "earlier: the recipe" in stages_table(folder)
    # A newer result of the parent than the one that the stage began with is no start for it.
    old = path_of(folder, "cold_start")
    old.rename(old.with_name("cold_start-00000000"))
    row = by_name(folder)["reason"]
    assert row.since == "reason" and row.added is not None


@pytest.mark.parametrize(
    "name", ["result.json", "samples.jsonl", "metrics.jsonl", "inputs.json", "done.json"]
)
def test_damaged_files_cost_what_they_held_alone(fake_stages, name):
    folder = fake_stages()
    stages = [path_of(folder, stage) for stage in ("base", "reason", "second")]
    deep = b"[" * (100 if name == "done.json" else 100_000)
    for content in (b"", b"\xff{[", deep, b"null\n", b"3\n[]\n", None):
        for stage in stages:
            if content is None:
                (stage / name).unlink(missing_ok=True)
            elif (stage / name).exists():
                (stage / name).write_bytes(content)
        rows = by_name(folder)
        assert rows["final"].after is not None
        for line in stages_table(folder).splitlines():
            assert cell_len(line) <= WIDTH
        for stage in stages:
            summary(stage)


def test_wrong_values_in_a_result(fake_stages):
    folder = fake_stages()
    for bad in (None, "x", [], {}, True, -1, 1e308, float("nan")):
        for stage in ("base", "reason", "second", "draw", "served"):
            keys = ("after", "before", "seconds", "steps", "examples", "sampled", "machine", "kind", "model")
            change_result(path_of(folder, stage), **dict.fromkeys(keys, bad))
        stages_table(folder)
        sampled = dict.fromkeys(("prompts", "completions", "kept", "dropped", "pass_rates", "parts"), bad)
        change_result(path_of(folder, "draw"), kind="sample", sampled=sampled)
        stages_table(folder)
        summary(path_of(folder, "draw"))


def test_the_table_fits_and_lines_up(fake_stages):
    folder = fake_stages(stop_at="second")
    lines = stages_table(folder).splitlines()
    assert all(cell_len(line) <= WIDTH for line in lines)
    assert len(lines) == 11
    at = lines[0].index("kind")
    assert {line[at - 1] for line in lines[:10]} == {" "}
    assert "+" in lines[4] and "56% [44–68]" in lines[4]
    wide = "思考" * 12
    text = f"name: 试\noutput: {{output}}\nstages:\n  - {{{{name: {wide}, kind: eval, model: {{{{name: smollm2-135m}}}}, data: {{{{train: {{{{source: a.jsonl}}}}, heldout: {{{{source: b.jsonl}}}}}}}}, rewards: [{{{{use: accuracy}}}}]}}}}\n"  # noqa: E501
    folder = fake_stages(text=text, stop_at=wide)
    lines = stages_table(folder).splitlines()
    assert all(cell_len(line) <= WIDTH for line in lines)
    assert lines[1].startswith("思考思考") and "…" in lines[1]


def test_control_characters_do_not_reach_the_terminal(fake_stages):
    folder = fake_stages()
    served = path_of(folder, "served")
    change_result(served, dtype="bf\x1b[31m16\r")
    assert "\x1b" not in stages_table(folder) and "\r" not in stages_table(folder)
    draw = path_of(folder, "draw")
    change_result(draw, sampled={"dropped": {"\x1b[2J": 3}, "kept": 1, "completions": 4})
    assert "\x1b" not in summary(draw)


def test_not_a_folder_of_stages(tmp_path, fake_run):
    with pytest.raises(PosttrainError, match=r"holds no recipe\.yaml"):
        stage_rows(tmp_path)
    (tmp_path / "recipe.yaml").write_text("stages: [")
    with pytest.raises(PosttrainError):
        stage_rows(tmp_path)
    folder = fake_run(steps=3, n=4)
    with pytest.raises(PosttrainError):
        stage_rows(folder)


def test_branches_follow_the_models(fake_stages):
    found = branches(stage_rows(fake_stages()))
    shown = [(branch.origin, [row.name for row in branch.rows], branch.root) for branch in found]
    assert shown == [
        (("smollm2-135m", None), ["base", "cold_start", "reason", "second", "final"], True),
        (("smollm2-135m", None), ["zero"], False),
        (("smollm2-135m", 8), ["student"], True),
    ]
    assert branches(stage_rows(fake_stages(stop_at="base"))) == []


def test_an_evaluation_stands_after_what_it_measured(fake_stages):
    text = """\
name: two
output: {output}
model: {{name: smollm2-135m}}
data:
  train: {{source: "reasoning_gym:chain_sum", size: 40, seed: 1}}
  heldout: {{source: "reasoning_gym:chain_sum", size: 64, seed: 2}}
rewards: [{{use: accuracy}}]
stages:
  - {{name: zero, kind: grpo}}
  - {{name: second, kind: sft, model: {{name: "stage:zero"}}}}
  - {{name: base, kind: eval, model: {{name: "stage:zero"}}}}
"""
    (branch,) = branches(stage_rows(fake_stages(text=text)))
    assert [row.name for row in branch.rows] == ["zero", "base", "second"]


def test_summaries_of_every_kind(fake_stages):
    folder = fake_stages()
    texts = {
        name: summary(path_of(folder, name)) for name in ("base", "cold_start", "reason", "draw", "served")
    }
    assert "3.1% [0.9% to 10.7%]   (in the asked-for form)" in texts["base"]
    assert "->" not in texts["base"] and "64 problems in 6.2 minutes" in texts["base"]
    assert "3.1% [0.9% to 10.7%] -> 10.9%" in texts["cold_start"]
    assert "312 examples, 3 epochs, 117 updates in 6.2 minutes, 1.9 GiB at most" in texts["cold_start"]
    assert "28 steps in 6.2 minutes" in texts["reason"]
    assert "kept 214 of 1,600 completions" in texts["draw"]
    assert "dropped   accuracy below 1 1,100, cut off 200, a repeat 86" in texts["draw"]
    assert "rows.jsonl" in texts["draw"] and "model " not in texts["draw"]
    assert "written as bfloat16" in texts["served"] and "/model " in texts["served"]

import csv
import io
import json
import math

import pytest
from rich.cells import cell_len

from posttrain.evaluate.metrics import wilson
from posttrain.harness.show import CSV_HEAD, WIDTH, table, write_exports

EVIL = "a|b<img src=x onerror=alert(1)>`**\n# x\x1b[31m\u202e[y](javascript:z)"


def rewrite(folder, change):
    result = json.loads((folder / "result.json").read_text())
    change(result)
    (folder / "result.json").write_text(json.dumps(result))


def exports(folder):
    paths = write_exports(folder)
    assert [path.name for path in paths] == ["result.md", "result.csv", "lm_eval.json"]
    return {path.name: path.read_text("utf-8") for path in paths}


def test_every_number_has_its_interval_and_every_warning_is_below(evaluation):
    folder = evaluation()
    rewrite(folder, lambda result: result["tasks"]["gsm8k"]["warnings"].append("Mind the " + "gap " * 60))
    shown = table(folder)
    result = json.loads((folder / "result.json").read_text())
    lines = shown.splitlines()
    for task in result["tasks"].values():
        for name, metric in task["metrics"].items():
            lo, hi = metric["ci95"]
            wanted = f"{100 * metric['value']:.1f}%", f"[{100 * lo:.1f}–{100 * hi:.1f}]"
            assert any(all(part in line.split() for part in (name, *wanted)) for line in lines), name
    flat = " ".join(shown.split())
    for warning in (w for task in result["tasks"].values() for w in task["warnings"]):
        assert " ".join(warning.split()) in flat
    assert max(cell_len(line) for line in lines) <= WIDTH


def test_what_papers_report_stands_below(evaluation):
    flat = " ".join(table(evaluation(tasks=(("aime24", 3, 2, 0.5),))).split())
    assert "= aime24: Qwen3-0.6B is reported at 10.7% (thinking, 32k tokens; arXiv 2505.09388" in flat


def test_wide_and_hostile_names_stay_within_the_terminal(evaluation):
    folder = evaluation()

    def change(result):
        task = result["tasks"].pop("gsm8k")
        task["warnings"] = [EVIL, "汉" * 300]
        task["metrics"]["汉" * 80] = {"value": 1.0, "ci95": [0.0, 1.0], "n": 10**9}
        result["tasks"]["汉" * 60] = task
        result["model"] = EVIL

    rewrite(folder, change)
    shown = table(folder)
    assert max(cell_len(line) for line in shown.splitlines()) <= WIDTH
    assert not set("\x1b\u202e") & set(shown)
    assert shown.count("汉") > 300


def test_a_half_done_folder_has_a_table_that_says_so(evaluation):
    folder = evaluation()
    (folder / "result.json").unlink()
    shown = table(folder)
    assert "no result.json" in shown
    assert "gsm8k" in shown
    assert "No numbers yet" in exports(folder)["result.md"]
    assert json.loads(exports(folder)["lm_eval.json"])["results"] == {}


def test_csv_has_a_row_a_metric_with_exact_numbers(evaluation):
    folder = evaluation()
    rows = list(csv.DictReader(io.StringIO(exports(folder)["result.csv"])))
    assert tuple(rows[0]) == CSV_HEAD
    result = json.loads((folder / "result.json").read_text())
    wanted = [(t, m, e) for t, task in result["tasks"].items() for m, e in task["metrics"].items()]
    assert [(row["task"], row["metric"]) for row in rows] == [(t, m) for t, m, _ in wanted]
    for row, (task, name, metric) in zip(rows, wanted, strict=True):
        assert [float(row["value"]), float(row["ci95_low"]), float(row["ci95_high"])] == [
            metric["value"],
            *metric["ci95"],
        ]
        assert row["primary"] == str(int(name == result["tasks"][task]["primary"]))


def test_markdown_holds_one_row_a_line_whatever_the_names(evaluation):
    folder = evaluation()

    def change(result):
        result["model"] = EVIL
        result["tasks"]["gsm8k"]["warnings"] = [EVIL]

    rewrite(folder, change)
    text = exports(folder)["result.md"]
    heads = [line for line in text.splitlines() if line.startswith("#")]
    assert len(heads) == 3  # none was added by a name
    assert "<img" not in text
    for line in (line for line in text.splitlines() if line.startswith("|")):
        assert line.replace("\\|", "").count("|") in (9, 6, 3)


def test_lm_eval_json_is_read_as_its_own_table_reads_it(evaluation):
    folder = evaluation()
    text = exports(folder)["lm_eval.json"]
    found = json.loads(text, parse_constant=lambda name: pytest.fail(name))
    result = json.loads((folder / "result.json").read_text())
    read = []
    for task, numbers in found["results"].items():
        assert task in found["versions"]
        assert task in found["n-shot"]
        numbers.pop("alias")
        for key, value in numbers.items():
            metric, _, kind = key.partition(",")
            assert kind
            if metric.endswith("_stderr"):
                continue
            error = numbers[f"{metric}_stderr,{kind}"]
            assert isinstance(value, float) and (error == "N/A" or isinstance(error, float))
            assert found["higher_is_better"][task][metric] is True
            read.append((task, value))
    metrics = [(t, e["value"]) for t, task in result["tasks"].items() for e in task["metrics"].values()]
    assert read == metrics
    assert "exact_match,none" in found["results"]["gsm8k"]
    assert "exact_match,maj@4" in found["results"]["gsm8k"]
    assert found["n-samples"]["gsm8k"] == {"original": 6, "effective": 6}


def test_its_standard_error_is_the_textbook_one_where_questions_are_many(evaluation):
    folder = evaluation()
    p, n = 0.3, 20_000

    def change(result):
        result["tasks"]["gsm8k"]["metrics"]["avg@4"] = {"value": p, "ci95": list(wilson(p * n, n)), "n": n}
        result["tasks"]["gsm8k"]["metrics"]["pass@1"] = {"value": 0.5}

    rewrite(folder, change)
    numbers = json.loads(exports(folder)["lm_eval.json"])["results"]["gsm8k"]
    assert numbers["exact_match_stderr,none"] == pytest.approx(math.sqrt(p * (1 - p) / n), rel=1e-3)
    assert numbers["pass@1_stderr,none"] == "N/A"


def test_numbers_that_are_none(evaluation):
    folder = evaluation()

    def change(result):
        task = result["tasks"]["gsm8k"]
        task["metrics"] = {
            "avg@4": {"value": math.nan},
            "pass@1": None,
            "x": {"value": 0.5, "ci95": ["a", None]},
        }
        task["facts"] = {"truncated": math.inf, "failed": "many", "mean_tokens": None}
        task["made_by"] = {"sampling": {"temperature": math.nan}, "data": None}
        task["reported"] = ["x", {"model": None}]
        result["versions"], result["machine"], result["seconds"] = [], None, "long"

    rewrite(folder, change)
    assert "no interval" in table(folder)
    assert "NaN" not in exports(folder)["lm_eval.json"]

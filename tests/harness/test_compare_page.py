import json

import pytest
from rich.cells import cell_len

from posttrain.harness.compare_page import comparison_table, parted, write_comparison
from posttrain.harness.readback import Question, Sample, Task, read_evaluation

STATISTICS = {
    "gsm8k": {
        "difference": 0.083,
        "ci95": [0.021, 0.147],
        "p": 0.0004,
        "n": 6,
        "gained": 5,
        "lost": 1,
        "needed": {"0.01": 18211},
    },
    "mgsm_zh": {"difference": -0.25, "ci95": [-0.6, 0.1], "p": 0.21, "n": 4, "needed": {}},
}


def data_of(path):
    text = path.read_text("utf-8").split('id="data">')[1].split("</script>")[0]
    return json.loads(text)


def asked(name, *verdicts, text="?"):
    words = {1: "right", 0: "wrong", None: "open"}
    return Question(name, text, None, [Sample(i, "", 1, "stop", words[v]) for i, v in enumerate(verdicts)])


def test_the_questions_that_part():
    then = [
        asked("a", 0),
        asked("b", 1),
        asked("c", 1, 1, 0, 0),
        asked("d", None),
        asked("e", 1),
        asked("f", 1),
    ]
    now = [asked("a", 1), asked("b", 1), asked("c", 1, 0, 0, None), asked("d", 1), asked("f", 0, text="!")]
    now += [asked("g", 1)]
    found = parted(Task("t", questions=then), Task("t", questions=now))
    # b: alike; d: not judged before; e and g: only in one; f: another question under the same id
    assert [(one.after.id, one.change) for one in found] == [("a", "gained"), ("c", "lost")]
    assert found[1].size == pytest.approx(1 / 2 - 1 / 3)


def test_the_page_shows_differences_and_both_sides(evaluation):
    a, b = evaluation("a"), evaluation("b", seed=3, shift=0.2, model="runs/after")
    out = write_comparison(a, b, STATISTICS, a.parent / "compare.html")
    source = out.read_text("utf-8")
    static = source.split("<script")[0]
    for part in (
        "runs/after",
        "Qwen/Qwen3-0.6B",
        "+8.3",
        "+2.1, +14.7",
        "&lt;0.001",
        "-25.0",
        "-60.0, +10.0",
    ):
        assert part in static
    assert static.count("this alone shows no difference") == 1
    assert "6 questions, 5 up, 1 down" in static
    assert "18,211" in static
    data = data_of(out)
    before, after = read_evaluation(a), read_evaluation(b)
    wanted = [one for pair in zip(before.tasks, after.tasks, strict=True) for one in parted(*pair)]
    assert wanted
    assert [(q[1], q[4]) for q in data["questions"]] == [(one.after.id, one.change) for one in wanted]
    assert [[len(side) for side in q[5]] for q in data["questions"]] == [
        [len(one.before.samples), len(one.after.samples)] for one in wanted
    ]
    assert f"became right</span> <small>{sum(one.change == 'gained' for one in wanted)}<" in static


def test_what_was_asked_in_another_way_is_said(evaluation):
    a, b = evaluation("a"), evaluation("b", tasks=(("gsm8k", 6, 4, 0.6), ("new", 1, 1, 0.5)))
    result = json.loads((b / "result.json").read_text())
    result["tasks"]["gsm8k"]["made_by"]["template"] = "other"
    (b / "result.json").write_text(json.dumps(result))
    static = write_comparison(a, b, {}, a.parent / "c.html").read_text("utf-8").split("<script")[0]
    assert "<b>gsm8k</b> template differs" in static
    assert "<b>new</b> was only asked in B" in static
    assert "<b>mgsm_zh</b> was only asked in A" in static


def test_nothing_in_common_and_nothing_known(evaluation):
    a, b = evaluation("a", tasks=(("x", 1, 1, 0.5),)), evaluation("b", tasks=(("y", 1, 1, 0.5),))
    assert "no task was answered by both" in write_comparison(a, b, {}, a.parent / "c.html").read_text()
    strange = {"x": None, "y": {"difference": "a", "ci95": 3, "needed": {"a": None, "0.01": "b"}}}
    same = write_comparison(b, b, strange, a.parent / "c.html").read_text()
    assert "On no question that both answered" in same


def test_the_table_of_two(evaluation):
    a, b = evaluation("a", model="m" * 200), evaluation("b", model="汉\x1b[31m" * 60)
    shown = comparison_table(a, b, STATISTICS)
    assert "+8.3 [+2.1, +14.7] <0.001 6" in " ".join(shown.split())
    assert max(cell_len(line) for line in shown.splitlines()) <= 110
    assert "\x1b" not in shown


def test_a_difference_has_to_pass_both_tests(evaluation):
    a, b = evaluation("a"), evaluation("b", model="runs/after")
    edge = {"gsm8k": {**STATISTICS["gsm8k"], "p": 0.06}}
    assert "this alone shows no difference" in write_comparison(a, b, edge, a.parent / "c.html").read_text()

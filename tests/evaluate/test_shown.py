"""The report of a model that sees: each picture once, boxes in place, and whether it looks at all."""

from __future__ import annotations

import io
import json
import re
import xml.etree.ElementTree as xml
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from posttrain.evaluate import shown as shown_module
from posttrain.evaluate.report import write_report
from posttrain.evaluate.runfolder import read_run
from posttrain.evaluate.seeing import added, points, sign_lines, signs
from posttrain.evaluate.shown import Shown
from posttrain.evaluate.stages_page import write_stages_report
from posttrain.evaluate.stages_table import stages_table
from posttrain.evaluate.summary import summary
from posttrain.evaluate.thumbnails import keep
from posttrain.picture import Picture

BLANK = {
    "accuracy": 0.4,
    "ci95": [0.3, 0.5],
    "n": 64,
    "paired": {"difference": 0.05, "ci95": [-0.1, 0.2], "p": 0.6, "test": "mcnemar", "n": 64},
}
SAID = "As far as 64 questions tell, the model may answer as well without seeing <b>."
TOWER = {"rank": 9.5, "cosine": 0.75, "norm": 3.0, "alarms": []}


def picture(number: int, size: tuple[int, int] = (64, 32)) -> Picture:
    file = io.BytesIO()
    Image.new("RGB", size, (number, 0, 0)).save(file, "PNG")
    return Picture(file.getvalue())


def sample(folder: Path, number: int, phase: str, completion: str = "<answer>[8, 4, 24, 20]</answer>") -> Any:
    right = phase == "after"
    return {
        "step": 0, "split": "heldout", "phase": phase, "id": str(number), "prompt": "<image>Where?",
        "completion": completion, "answer": "[4, 2, 20, 12]", "parts": {}, "total": 1.0, "finish": "stop",
        "tokens": 3, "strict": right, "lenient": right, "pictures": [keep(folder, picture(number))],
    }  # fmt: skip


def made_to_see(folder: Path, count: int = 5) -> Path:
    """Gives a made-up run pictures and what is measured of a model that sees."""
    samples = [sample(folder, i, phase) for phase in ("before", "after") for i in range(count)]
    (folder / "samples.jsonl").write_text("".join(json.dumps(one) + "\n" for one in samples))
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for line in metrics:
        if "heldout" in line:
            line["heldout"] |= {"tower": TOWER | {"rank": 9.5 + line["step"]}, "blank": BLANK}
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metrics))
    result = json.loads((folder / "result.json").read_text())
    for phase in ("before", "after"):
        result[phase] |= {"blank": BLANK, "shuffled": BLANK | {"accuracy": 0.3}, "warnings": [SAID]}
    result["after"]["tower"] = TOWER | {"alarms": ["The tower is blind: alas."]}
    (folder / "result.json").write_text(json.dumps(result))
    return folder


@pytest.fixture
def seeing(fake_run: Callable[..., Path]) -> Path:
    return made_to_see(fake_run(steps=30, n=8))


def drawings(page: str) -> list[xml.Element]:
    found = re.findall(r'<svg class="picture.*?</svg>', page, re.DOTALL)
    return [xml.fromstring(one) for one in found]


def test_each_picture_stands_in_the_page_once(seeing: Path) -> None:
    page = write_report(seeing).read_text()
    images = re.findall(r"data:image/\w+;base64,[\w+/=]+", page)
    assert len(images) == len(set(images)) == 5
    assert page.count("<symbol") == 5
    used = [use.get("href") for one in drawings(page) for use in one.iter("use")]
    assert len(used) == 15, "of each question, and of what was said before and after"
    assert {f'id="{name[1:]}"' in page for name in used if name} == {True}
    assert "&lt;image&gt;" not in page, "what is shown needs no word"
    assert "http:" not in page and "https:" not in page


def test_boxes_stand_where_the_answer_says(seeing: Path) -> None:
    question, before, after, *_ = drawings(write_report(seeing).read_text())
    assert question.get("viewBox") == before.get("viewBox") == "0 0 64 32", "pixels of the picture"
    assert (question.get("width"), question.get("height")) == ("192", "96")

    def boxes(one: xml.Element, css: str) -> list[tuple[float, ...]]:
        found = [rect for rect in one.iter("rect") if rect.get("class") == css]
        return [tuple(float(rect.get(key, "")) for key in ("x", "y", "width", "height")) for rect in found]

    assert boxes(question, "true") == [(4, 2, 16, 10)] and boxes(question, "said") == []
    for side in (before, after):
        assert boxes(side, "true") == [(4, 2, 16, 10)]
        assert boxes(side, "said") == [(8, 4, 16, 16)]


def test_a_point_is_drawn_too(seeing: Path) -> None:
    made = Shown([seeing]).said(sample(seeing, 1, "after", "there: (10, 20)"))
    [circle, said] = xml.fromstring(made).iter("circle")
    assert (said.get("cx"), said.get("cy"), said.get("class")) == ("10", "20", "said")
    assert circle.get("class") == "under"


def test_where_it_looked_is_shown_with_the_sample(seeing: Path) -> None:
    name = f"{picture(0).digest[:16]}-01234567-looked"
    Image.new("RGB", (9, 9), "orange").save(seeing / "pictures" / f"{name}.png")
    lines = [json.loads(line) for line in (seeing / "samples.jsonl").read_text().splitlines()]
    for line in lines:
        if line["phase"] == "after" and line["id"] == "0":
            line["looked"] = name
    (seeing / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = write_report(seeing).read_text()
    assert page.count('alt="Where the model looked"') == 1
    assert "gradient × input" in page


@pytest.mark.parametrize(
    "pictures",
    [
        None,
        "x",
        [1],
        [{"digest": "../../../etc/pass", "size": [1, 1]}],
        [{"digest": '"><script>alert(', "size": [1, 1]}],
        [{"digest": "0" * 16, "size": [1, 1]}],
        [{"digest": "0" * 16, "size": ["a", None]}],
        [{"digest": "0" * 16, "size": [-1, float("inf")]}],
        [{"digest": "0" * 16}],
    ],
)
def test_what_names_no_kept_picture_shows_nothing(seeing: Path, pictures: Any) -> None:
    record = sample(seeing, 1, "after") | {"pictures": pictures, "looked": "../../x-looked"}
    made = Shown([seeing])
    assert made.asked(record) == made.said(record) == made.definitions() == made.about() == ""


def test_a_page_has_so_many_pictures_and_says_so(seeing: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(shown_module, "MOST", 3)
    page = write_report(seeing).read_text()
    assert page.count("<symbol") == 3
    assert "Of the pictures, 3 are shown." in page


def test_many_pictures_of_one_question_are_cut(seeing: Path) -> None:
    record = sample(seeing, 1, "after") | {"pictures": [keep(seeing, picture(i)) for i in range(7)]}
    made = Shown([seeing]).asked(record)
    assert made.count("<svg") == 4 and "and 3 more" in made
    assert "<rect" not in made, "of which picture the box is nobody says"


def test_the_page_tells_what_is_right_without_seeing(seeing: Path) -> None:
    page = write_report(seeing).read_text()
    assert "blank pictures; the real ones add +5.0 [-10.0, +20.0]" in page
    assert "Does it see?" in page
    assert "without seeing &lt;b&gt;. The tower is blind: alas." in page
    for title in ("Image tokens&#x27; rank", "Pictures&#x27; distance", "Image tokens&#x27; length"):
        assert title in page
    assert "pictures add to blank" in page and "<td>0.25</td>" in page


def test_the_terminal_tells_it_too(seeing: Path) -> None:
    told = summary(seeing)
    assert (
        "blank     40.0% [30.0% to 50.0%] -> 40.0% [30.0% to 50.0%]   "
        "(blank pictures; the real ones add +5.0 [-10.0, +20.0] points)" in told
    )
    assert "shuffled  30.0%" in told
    assert f"sees?     {SAID}" in told and "sees?     The tower is blind: alas." in told


def test_signs_are_those_of_the_end(seeing: Path) -> None:
    run = read_run(seeing)
    assert signs(run) == [SAID, "The tower is blind: alas."]
    run.result.pop("after")
    run.evaluations[-1][1]["tower"]["alarms"] = ["going\x1b[2J bad"]
    assert signs(run) == ["going\x1b[2J bad"], "before training nobody expects it to see"
    assert "\x1b" not in sign_lines(run)[0]
    run.evaluations = []
    assert signs(run) == []


@pytest.mark.parametrize("found", [None, 1, {}, {"paired": {"difference": 1, "ci95": [0]}}, {"paired": []}])
def test_a_damaged_record_adds_nothing(found: Any) -> None:
    assert added({"blank": found}, "blank") is None
    assert points(None) == ""


def test_a_run_of_words_has_none_of_it(fake_run: Callable[..., Path]) -> None:
    folder = fake_run(steps=20, n=8)
    page, told = write_report(folder).read_text(), summary(folder)
    for word in ("<symbol", "Does it see?", "blank pictures", "Image tokens", 'class="pictures"'):
        assert word not in page, word
    assert "sees?" not in told and "blank" not in told


def test_stages_show_pictures_and_blank_answers(fake_stages: Callable[..., Path]) -> None:
    folder = fake_stages()
    assert "blank" not in stages_table(folder)
    for path in folder.glob("*/samples.jsonl"):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        for line in lines:
            if line["phase"] in ("before", "after"):
                line["pictures"] = [keep(path.parent, picture(int(line["id"].split("-")[1]) % 250))]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    for path in folder.glob("*/result.json"):
        result = json.loads(path.read_text())
        if isinstance(result.get("after"), dict):
            result["after"] |= {"blank": BLANK, "warnings": [SAID]}
            path.write_text(json.dumps(result))
    told = stages_table(folder)
    assert "40% [30–50]" in told and "blank: the same with blank pictures" in told
    assert max(map(len, told.splitlines())) <= 110
    page = write_stages_report(folder).read_text()
    images = re.findall(r"data:image/\w+;base64,[\w+/=]+", page)
    assert len(images) == len(set(images)) > 0
    assert "Blank: accuracy with blank pictures." in page
    assert "With blank pictures" in page and "without seeing &lt;b&gt;" in page

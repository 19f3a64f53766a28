"""A model that reads the question alone is found out; one that looks at the picture is not."""

from __future__ import annotations

import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from posttrain import measure
from posttrain.evaluate.harness import evaluate, judge_specs
from posttrain.evaluate.metrics import paired
from posttrain.harness.answer import Answer
from posttrain.harness.blind import against, blank, blind, nothing_of, replaced, shuffled, warning
from posttrain.harness.comparison import mcnemar
from posttrain.harness.page import write_page
from posttrain.harness.show import table
from posttrain.harness.task import load_task
from posttrain.picture import GREY, Picture
from posttrain.rewards import Rewards, RewardSpec
from posttrain.types import Prompt, Sampling


def picture(number: int, size: tuple[int, int] = (8, 6)) -> Picture:
    file = io.BytesIO()
    Image.new("RGB", size, (number % 256, number // 256, 7)).save(file, "PNG")
    return Picture(file.getvalue())


def prompt(id: int, *pictures: Picture, answer: str = "1") -> Prompt:
    parts: list[Any] = [{"type": "image", "image": one} for one in pictures]
    content: Any = [
        {"role": "system", "content": "look"},
        {"role": "user", "content": [*parts, {"type": "text", "text": f"what is number {id}?"}]},
    ]
    return Prompt(str(id), content, answer)


class Model:
    """Answers what `says` makes of a prompt; its tower's mean is `mean`."""

    def __init__(self, says: Any, mean: tuple[float, float, float] | None = (0.5, 0.25, 0.0)):
        self.says, self.calls = says, 0
        self.encode = type("Encode", (), {} if mean is None else {"mean": mean})()

    def answer(self, requests: Any, sampling: Any, on_answer: Any, on_progress: Any = None) -> None:
        self.calls += 1
        for request in requests:
            on_answer(Answer(request.id, request.sample, self.says(request.prompt), 3, "stop"))

    def describe(self) -> dict[str, Any]:
        return {}

    def close(self) -> None:
        pass


def looks(asked: Prompt) -> str:
    """Reads the number that the picture's color is."""
    red, green, _ = asked.pictures[0].open().getpixel((0, 0))  # pyright: ignore[reportGeneralTypeIssues]
    return f"The answer is: {red + 256 * green}"


def guesses(asked: Prompt) -> str:
    """Knows from the words what the answers are."""
    return f"The answer is: {asked.id}"


def questions(count: int) -> list[Prompt]:
    return [prompt(i, picture(i), answer=str(i)) for i in range(count)]


@pytest.fixture(scope="module")
def judge() -> Any:
    with Rewards(judge_specs("the_answer_is", RewardSpec("accuracy"))) as rewards:
        yield rewards


def evaluated(says: Any, asked: list[Prompt], judge: Any, **more: Any) -> tuple[dict[str, Any], Any]:
    model: Any = Model(says)
    settings: dict[str, Any] = {"form": "the_answer_is", "samples": 0, "temperature": 1.0, "seed": 0}
    settings |= {"sampling": Sampling(8), "judge": judge, "without": blind(asked, model, 0)}
    return evaluate(model, asked, **(settings | more))


def test_a_model_that_reads_the_words_alone_is_found_out(judge: Any) -> None:
    found, _ = evaluated(guesses, questions(40), judge)
    assert [found[key]["accuracy"] for key in ("strict", "blank", "shuffled")] == [1.0, 1.0, 1.0]
    assert found["blank"]["paired"]["difference"] == 0
    [said] = found["warnings"]
    assert "may answer as well without seeing: 100.0% right with the pictures, 100.0% with blank" in said


def test_a_model_that_looks_passes(judge: Any) -> None:
    found, records = evaluated(looks, questions(40), judge)
    assert [found[key]["accuracy"] for key in ("strict", "blank", "shuffled")] == [1.0, 0.0, 0.0]
    assert found["blank"]["paired"] == {
        "difference": 1.0,
        "ci95": list(paired(40, 0, 40)),
        "p": mcnemar(40, 0),
        "test": "mcnemar",
        "n": 40,
        "gained": 40,
        "lost": 0,
    }
    assert "warnings" not in found
    assert all(record["strict"] for record in records)


def test_one_that_looks_at_some_is_told_by_how_many_questions_there_are(judge: Any) -> None:
    def half(asked: Prompt) -> str:
        return looks(asked) if int(asked.id) % 8 == 0 else guesses(asked)

    few, _ = evaluated(half, questions(16), judge)
    many, _ = evaluated(half, questions(80), judge)
    assert few["blank"]["paired"]["difference"] == many["blank"]["paired"]["difference"] == 1 / 8
    assert "Ask more of them." in few["warnings"][0]
    assert "warnings" not in many


def test_questions_of_words_alone_are_not_asked_again(judge: Any) -> None:
    asked = [Prompt("w", "words", "w"), *questions(3)]
    model: Any = Model(guesses)
    kinds = blind(asked, model, 0)
    assert {kind: [one.id for one in some] for kind, some in kinds.items()} == {
        "blank": ["0", "1", "2"],
        "shuffled": ["0", "1", "2"],
    }
    assert blind(asked[:1], model, 0) == {}
    assert list(blind(asked[:2], model, 0)) == ["blank"], "nobody to swap with"
    found, _ = evaluated(guesses, asked, judge)
    assert found["strict"]["n"] == 4 and found["blank"]["n"] == 3
    plain, records = evaluated(guesses, asked[:1], judge)
    assert [*plain] == ["strict", "lenient", "sampled", "form", "length", "steps_share", "truncated"]
    assert "pictures" not in records[0]


def test_a_blank_picture_is_the_towers_mean_and_of_the_same_size() -> None:
    model: Any = Model(looks)
    [made] = blind(questions(1), model, 0)["blank"]
    image = made.pictures[0].open()
    assert image.size == (8, 6)
    assert image.getcolors() == [(48, (128, 64, 0))]  # 0.5, 0.25 and 0 of 255
    none: Any = Model(looks, mean=None)
    assert nothing_of(none) == GREY
    turned = Image.new("RGB", (4, 9))
    exif = turned.getexif()
    exif[0x0112] = 6  # a quarter turn
    file = io.BytesIO()
    turned.save(file, "JPEG", exif=exif)
    assert blank(Picture(file.getvalue()), GREY).open().size == (9, 4)


def test_pictures_go_to_where_the_old_ones_stood() -> None:
    a, b, c, d = (picture(i) for i in range(4))
    asked = prompt(0, a, b)
    made = replaced(asked, [c, d])
    assert made.pictures == (c, d) and asked.pictures == (a, b)
    assert made.question == asked.question and made.answer == asked.answer
    text = Prompt("t", "<image> and <image>", None, {}, (a, b))
    assert replaced(text, [d, c]).beside == (d, c)


@pytest.mark.parametrize("seed", range(5))
def test_none_keeps_its_own_pictures(seed: int) -> None:
    ones = [prompt(i, picture(i)) for i in range(7)]
    twos = [prompt(10 + i, picture(20 + i), picture(40 + i)) for i in range(3)]
    alone = [prompt(30, picture(1), picture(2), picture(3))]
    asked = [*ones, *alone, *twos]
    made = shuffled(asked, seed)
    assert [one.id for one in made] == [one.id for one in [*ones, *twos]]
    mine = {one.id: one.pictures for one in asked}
    assert all(one.pictures != mine[one.id] for one in made)
    assert Counter(one.pictures for one in made) == Counter(mine[one.id] for one in made)
    assert made == shuffled(asked, seed)
    assert {one.id: one.pictures for one in made} == {
        one.id: one.pictures for one in shuffled(asked[::-1], seed)
    }


def test_seeds_shuffle_differently() -> None:
    asked = [prompt(i, picture(i)) for i in range(30)]
    assert shuffled(asked, 0) != shuffled(asked, 1)


def test_questions_about_one_picture_get_another_one() -> None:
    asked = [prompt(i, picture(i // 4)) for i in range(12)]  # three pictures, four questions each
    made = shuffled(asked, 3)
    assert len(made) == 12
    assert all(one.pictures[0] != asked[int(one.id)].pictures[0] for one in made)
    most = [prompt(i, picture(0)) for i in range(5)] + [prompt(5, picture(1))]
    left = shuffled(most, 0)  # five of six show one picture: four of them have nobody to swap with
    assert len(left) == 2
    assert all(one.pictures[0] != most[int(one.id)].pictures[0] for one in left)
    assert shuffled([], 0) == []


def verdicts(*right: bool | None) -> list[dict[str, Any]]:
    return [{"id": str(i), "sample": 0, "right": one} for i, one in enumerate(right)]


def test_only_what_was_judged_both_times_counts() -> None:
    found = against(verdicts(True, True, None, False), verdicts(True, False, True, None))
    assert found is not None
    assert found["n"] == found["paired"]["n"] == 2 and found["value"] == 0.5
    assert found["paired"]["difference"] == 0.5
    assert against(verdicts(True), verdicts(None)) is None
    assert against([], []) is None


def test_worse_with_the_picture_is_no_proof_of_sight() -> None:
    found = against(verdicts(*[False] * 40), verdicts(*[True] * 40))
    assert found is not None
    assert "-100.0 points" in (warning(found) or "")


# --- posttrain eval --blind ---

TASK = """\
name: seen
data: {source: "scenes:count", size: 40, seed: 5}
images: [image]
verifier: {use: accuracy, args: {form: the_answer_is}}
"""


def asked(tmp_path: Path, says: Any, blind: bool = True, text: str = TASK) -> Any:
    (tmp_path / "seen.yaml").write_text(text)
    return measure.Asked(
        [load_task(str(tmp_path / "seen.yaml"))], "m", "native", lambda: Model(says), blind=blind
    )


def answer_key(tmp_path: Path) -> dict[str, str]:
    """What is right, by picture."""
    from posttrain.harness.questions import load_prompts

    rows = load_prompts(load_task(str(tmp_path / "seen.yaml")))
    return {row.pictures[0].digest + row.question: row.answer or "" for row in rows}


def test_eval_blind_writes_beside_the_real_answers(tmp_path: Path) -> None:
    key: dict[str, str] = {}

    def sees(one: Prompt) -> str:
        return f"The answer is: {key.get(one.pictures[0].digest + one.question, '-1')}"

    folder = tmp_path / "out"
    of = asked(tmp_path, sees)
    key |= answer_key(tmp_path)
    measure.evaluate(of, folder)
    result = json.loads((folder / "result.json").read_text())["tasks"]["seen"]
    assert result["metrics"]["accuracy"]["value"] == 1.0
    assert result["blind"]["blank"]["value"] == 0.0
    assert result["blind"]["shuffled"]["value"] < 0.2  # a pair may be the same question by chance
    assert not [one for one in result["warnings"] if "without seeing" in one]
    assert "with blank pictures" in table(folder)
    page = write_page(folder).read_text()
    assert page.count("the real ones add +100.0") >= 1
    shown = json.loads(page.split('id="data">')[1].split("</script>")[0])
    assert len(shown["pictures"]) == len(set(shown["pictures"])) == 40, "each picture once"
    assert all(one.startswith("data:image/") for one in shown["pictures"])
    assert [len(question[6]) for question in shown["questions"]] == [1] * 40
    again = measure.Asked(of.tasks, "m", "native", lambda: pytest.fail("asked again"), blind=True)  # pyright: ignore
    measure.evaluate(again, folder)
    measure.rescore(folder, ["verifier.args.form=last_number"])
    judged = json.loads((folder / "result.json").read_text())["tasks"]["seen"]
    assert judged["blind"].keys() == {"blank", "shuffled"}


def test_eval_blind_finds_the_one_that_does_not_look(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    measure.evaluate(asked(tmp_path, lambda _: "The answer is: 2"), folder)
    result = json.loads((folder / "result.json").read_text())["tasks"]["seen"]
    assert result["blind"]["blank"]["value"] == result["metrics"]["accuracy"]["value"] > 0
    assert [one for one in result["warnings"] if "may answer as well without seeing" in one]


def test_eval_without_the_flag_is_as_before(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    measure.evaluate(asked(tmp_path, lambda _: "2", blind=False), folder)
    assert "blind" not in json.loads((folder / "result.json").read_text())["tasks"]["seen"]
    assert sorted(path.name for path in (folder / "seen").iterdir()) == [
        "answers.jsonl",
        "data.json",
        "rows.jsonl",
        "task.yaml",
        "verdicts.jsonl",
    ]
    words = """\
name: words
data: {source: "reasoning_gym:chain_sum", size: 3, seed: 1}
verifier: {use: accuracy}
"""
    with pytest.raises(measure.PosttrainError, match="shows no pictures"):
        measure.evaluate(asked(tmp_path, guesses, text=words), tmp_path / "other")

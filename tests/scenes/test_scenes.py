"""Made visual tasks: answers read again from the pixels, rows that hang on seed and place alone, refusals."""

from __future__ import annotations

import io
import json
import re
from collections import Counter, deque
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from posttrain import scenes
from posttrain.data import load
from posttrain.recipe_data import Data
from posttrain.rewards import Rewards, RewardSpec
from posttrain.scenes import arithmetic
from posttrain.scenes._draw import COLORS, LINES
from posttrain.types import Completion, PosttrainError, Prompt

NAMES = ("arithmetic", "charts", "compare", "count", "describe", "locate", "mazes", "read", "tables")
ROWS = 150
# The share of the most frequent answer, at most: what answering it always is right about.
MOST_FREQUENT = {
    "arithmetic": 0.12, "charts": 0.2, "compare": 0.25, "count": 0.22, "describe": 0.05, "locate": 0.01,
    "mazes": 0.32, "read": 0.03, "tables": 0.12,
}  # fmt: skip


def rows(name: str, count: int = ROWS, seed: int = 1, **args: Any) -> list[tuple[np.ndarray, dict[str, Any]]]:
    made = [scenes.make(name, index, seed, args) for index in range(count)]
    return [(pixels(row), row) for row in made]


def pixels(row: dict[str, Any]) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(row["image"]["bytes"]))).astype(int)


def of_color(image: np.ndarray, color: Any) -> np.ndarray:
    return (image == np.array(COLORS.get(color, color))).all(axis=2)


def shapes(image: np.ndarray, color: str) -> list[tuple[str, tuple[int, int, int, int]]]:
    """The connected parts of a colour: what each is by how much of its box it fills, and its box."""
    parts: Any = ndimage.label(of_color(image, color))
    labels, count = parts
    found = []
    for number, box in enumerate(ndimage.find_objects(labels), start=1):
        filled = (labels[box] == number).mean()
        kind = "square" if filled > 0.95 else "circle" if filled > 0.68 else "triangle"
        y, x = box
        found.append((kind, (x.start, y.start, x.stop, y.stop)))
    assert len(found) == count
    return found


def words(row: dict[str, Any], pattern: str) -> tuple[str, ...]:
    match = re.fullmatch(pattern, row["question"])
    assert match, row["question"]
    return match.groups()


def glyphs(alphabet: str) -> dict[tuple[int, bytes], str]:
    """Each letter by the pixels that it has, without what is empty around it."""
    found = {}
    for letter in alphabet:
        image = Image.new("1", (20, 20))
        ImageDraw.Draw(image).text((4, 4), letter, fill=1, font=ImageFont.load_default_imagefont())
        found[key(np.asarray(image.crop(image.getbbox())))] = letter
    assert len(found) == len(alphabet), "no two letters look alike"
    return found


def key(ink: np.ndarray) -> tuple[int, bytes]:
    ink = ink[ink.any(axis=1)]
    return ink.shape[1], ink.astype(np.uint8).tobytes()


def text_of(ink: np.ndarray, known: dict[tuple[int, bytes], str]) -> str | None:
    """What is written, where letters have an empty column between them; None where a letter is unknown."""
    parts: Any = ndimage.label(ink.any(axis=0))
    letters = [ink[:, columns] for (columns,) in ndimage.find_objects(parts[0])]
    for scale in range(1, 9):
        read = [known.get(key(letter[letter.any(axis=1)][::scale, ::scale])) for letter in letters]
        if all(read):
            return "".join(letter for letter in read if letter)
    return None


# -- answers, read from the pixels


def test_the_tasks_are_what_the_folder_holds() -> None:
    assert scenes.names() == NAMES


@pytest.mark.parametrize(
    "args", [{}, {"pixels": 96, "most": 9, "distractors": 12}, {"pixels": 128, "most": 20, "distractors": 20}]
)
def test_count(args: dict[str, Any]) -> None:
    for image, row in rows("count", **args):
        color, shape = words(row, r"How many (\w+) (\w+)s are there\?")
        assert row["answer"] == str([kind for kind, _ in shapes(image, color)].count(shape))


@pytest.mark.parametrize(
    "args", [{}, {"pixels": 32, "gap": 1, "most": 3}, {"pixels": 100, "most": 10, "gap": 8}]
)
def test_compare(args: dict[str, Any]) -> None:
    kinds = set()
    for image, row in rows("compare", **args):
        kinds.add(row["kind"])
        if row["kind"] == "number":
            one, other = words(row, r"Are there more (\w+) or more (\w+) shapes\?")
            counts = [len(shapes(image, color)) for color in (one, other)]
        elif row["kind"] == "size":
            _, one, other = words(row, r"Which (\w+) is larger, the (\w+) one or the (\w+) one\?")
            counts = [of_color(image, color).sum() for color in (one, other)]
        else:
            a, _, b, _ = words(row, r"Is the (\w+) (\w+) left or right of the (\w+) (\w+)\?")
            one, other = "right", "left"
            counts = [np.nonzero(of_color(image, color))[1].mean() for color in (a, b)]
        assert counts[0] != counts[1]
        assert row["answer"] == (one if counts[0] > counts[1] else other)
    assert kinds == {"number", "size", "place"}


@pytest.mark.parametrize("args", [{}, {"pixels": 32, "distractors": 8}, {"pixels": 200, "unit": "percent"}])
def test_locate(args: dict[str, Any]) -> None:
    for image, row in rows("locate", **args):
        color, shape = words(row, r"Where is the (\w+) (\w+)\?.*")
        [box] = [box for kind, box in shapes(image, color) if kind == shape]
        answer = json.loads(row["answer"])
        size = args.get("pixels", 64)
        if args.get("unit") == "percent":
            assert np.abs(np.array(answer) * size / 100 - box).max() <= size / 200
            assert "percent" in row["question"]
        else:
            assert tuple(answer) == box
            assert f"in pixels; the picture is {size} x {size}." in row["question"]


@pytest.mark.parametrize("args", [{}, {"pixels": 200, "length": 8}, {"length": 1}])
def test_read(args: dict[str, Any]) -> None:
    digits = glyphs("0123456789")
    letters = glyphs("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
    word = glyphs("abcdefghijklmnopqrstuvwxyz")
    known = {"digits": digits, "letters": letters, "word": word}
    seen: Counter[str] = Counter()
    for image, row in rows("read", **args):
        ink = (image != 255).any(axis=2)
        assert text_of(ink, known[row["kind"]]) == row["answer"]
        if row["kind"] != "word":
            assert len(row["answer"]) == args.get("length", 3)
        seen[row["kind"]] += 1
    assert len(seen) == 3 and min(seen.values()) > ROWS / 5


@pytest.mark.parametrize(("digits", "size"), [(1, 64), (2, 96)])
def test_arithmetic_is_what_a_classifier_of_other_digits_reads(digits: int, size: int) -> None:
    from sklearn.neighbors import KNeighborsClassifier

    drawn = [
        (np.asarray(image)[1:9, 1:9], digit)
        for digit, many in enumerate(arithmetic.written("train"))
        for image in many
    ]
    reader = KNeighborsClassifier(3).fit([image.ravel() for image, _ in drawn], [digit for _, digit in drawn])
    side, right = size // (digits + 1), 0
    for image, row in rows("arithmetic", pixels=size, digits=digits, part="test"):
        numbers = []
        for top in (size // 2 - side, size - side):
            number = 0
            for left in range(side if digits > 1 else size - side, size - side + 1, side):
                left += (size - side) % side
                cell = Image.fromarray(image[top : top + side, left : left + side, 0].astype(np.uint8))
                small = np.asarray(cell.resize((10, 10), Image.Resampling.BOX))[1:9, 1:9]
                if small.min() < 200:
                    number = number * 10 + int(reader.predict([small.ravel()])[0])
            numbers.append(number)
        a, b = numbers
        right += row["answer"] == str(a + b if row["kind"] == "sum" else a - b)
    assert right > 0.93**digits * ROWS, right


def test_the_parts_of_the_handwriting_have_nothing_in_common() -> None:
    parts = [
        {image.tobytes() for many in arithmetic.written(part) for image in many} for part in ("train", "test")
    ]
    assert not parts[0] & parts[1]
    assert [len(part) for part in parts] == [1437, 360]


@pytest.mark.parametrize("args", [{}, {"pixels": 128, "bars": 6, "most": 20}, {"bars": 2, "most": 3}])
def test_charts(args: dict[str, Any]) -> None:
    for image, row in rows("charts", **args):
        lines = np.nonzero(of_color(image[:, -1:], LINES)[:, 0])[0]
        assert len(lines) == args.get("most", 9) + 1
        heights = {}
        for color in COLORS:
            bars = of_color(image, color)
            bars[:, : 8 if len(lines) <= 10 else 15] = False  # the numbers at the lines
            if bars.any():
                heights[color] = int((lines >= np.nonzero(bars)[0].min()).sum()) - 1
        assert len(heights) == args.get("bars", 4)
        if row["kind"] == "value":
            [color] = words(row, r"How high is the (\w+) bar\?")
            assert row["answer"] == str(heights[color])
        else:
            end = max if row["kind"] == "tallest" else min
            best = [color for color, height in heights.items() if height == end(heights.values())]
            assert best == [row["answer"]]


@pytest.mark.parametrize(
    "args", [{}, {"pixels": 128, "rows": 6, "columns": 4, "digits": 2}, {"rows": 1, "columns": 1}]
)
def test_tables(args: dict[str, Any]) -> None:
    known = glyphs("0123456789")
    across, down = args.get("columns", 3) + 1, args.get("rows", 3) + 1
    for image, row in rows("tables", 60, **args):
        wide, high = image.shape[1] // across, image.shape[0] // down
        ink = of_color(image, "black")
        table = [
            [
                text_of(ink[y * high : (y + 1) * high, x * wide : (x + 1) * wide], known)
                for x in range(1, across)
            ]
            for y in range(1, down)
        ]
        numbers = [[int(text or "-1") for text in line] for line in table]
        assert min(map(min, numbers)) >= 0
        if row["kind"] == "cell":
            column, line = words(row, r"What number is in column (\w), row (\d)\?")
            assert row["answer"] == str(numbers[int(line) - 1]["ABCDEFGHI".index(column)])
        else:
            [column] = words(row, r"What is the sum of column (\w)\?")
            assert row["answer"] == str(sum(line["ABCDEFGHI".index(column)] for line in numbers))


@pytest.mark.parametrize("args", [{}, {"squares": 3}, {"squares": 15, "pixels": 128}])
def test_mazes(args: dict[str, Any]) -> None:
    squares = args.get("squares", 7)
    for image, row in rows("mazes", **args):
        side = image.shape[0] // squares
        middle = image[side // 2 :: side, side // 2 :: side][:squares, :squares]
        walls = of_color(middle, "black")
        [start], [goal] = (np.argwhere(of_color(middle, color)).tolist() for color in ("green", "red"))
        steps = np.full(walls.shape, -1)
        steps[tuple(start)] = 0
        queue = deque([tuple(start)])
        while queue:
            y, x = queue.popleft()
            for at in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
                inside = 0 <= at[0] < squares and 0 <= at[1] < squares
                if inside and not walls[at] and steps[at] < 0:
                    steps[at] = steps[y, x] + 1
                    queue.append(at)
        found = int(steps[tuple(goal)])
        assert row["answer"] == (str(found) if row["kind"] == "length" else "yes" if found > 0 else "no")


# -- all tasks


@pytest.mark.parametrize("name", NAMES)
def test_a_row_hangs_on_seed_and_place_alone(name: str) -> None:
    one = [scenes.make(name, index, 7) for index in range(20)]
    assert [scenes.make(name, index, 7, {}) for index in reversed(range(20))] == one[::-1]
    other = [scenes.make(name, index, 8) for index in range(20)]
    assert sum(a == b for a, b in zip(one, other, strict=True)) < 3
    assert len({row["image"]["bytes"] for row in one}) > 15
    assert {"image", "question", "answer"} <= one[0].keys()
    assert all(pixels(row).shape == (64, 64, 3) for row in one)


@pytest.mark.parametrize("name", NAMES)
def test_the_most_frequent_answer_is_no_way_out(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    made = [scenes.make(name, index, 3) for index in range(1000)]
    answers = Counter(row["answer"] for row in made)
    (answer, times), *_ = answers.most_common(1)
    with capsys.disabled():
        print(f"\nscenes:{name}: {len(answers)} answers, the most frequent is {answer!r}: {times / 1000:.1%}")
    assert times / 1000 < MOST_FREQUENT[name]


def test_gold_answers_get_full_marks() -> None:
    forms = {"count": "The answer is: {}", "locate": "It is at <answer>{}</answer>"}
    rewards = {"count": ("count", {}), "locate": ("iou", {})}
    for name in (name for name in NAMES if name != "describe"):  # captions are for examples
        use, args = rewards.get(name, ("accuracy", {}))
        made = [scenes.make(name, index, 5) for index in range(40)]
        prompts = [Prompt(str(i), row["question"], row["answer"]) for i, row in enumerate(made)]
        golds = [forms.get(name, "The answer is: {}").format(row["answer"]) for row in made]
        with Rewards([RewardSpec(use, 1.0, args)]) as judge:
            right = judge.score(prompts, [Completion([1], [0.0], "stop", text) for text in golds])
            wrong = judge.score(
                prompts, [Completion([1], [0.0], "stop", "The answer is: 4711") for _ in made]
            )
        assert [score.total for score in right] == [1.0] * 40, name
        assert [score.total for score in wrong] == [0.0] * 40, name


@pytest.mark.parametrize(
    ("name", "args", "said"),
    [
        ("cuont", {}, "scenes has no task 'cuont'; did you mean 'count'?"),
        ("_draw", {}, "scenes has no task '_draw'"),
        ("zzzz", {}, "there are arithmetic, charts"),
        (
            "count",
            {"distractor": 3},
            "scenes:count has no argument 'distractor'; did you mean 'distractors'?",
        ),
        ("count", {"rng": 3}, "has no argument 'rng'; it takes pixels, most, distractors, colors, shapes"),
        ("count", {"pixels": 10}, "scenes:count: pixels is 10: choose a whole number from 32 to 1024"),
        ("count", {"pixels": "64"}, "pixels is '64'"),
        ("count", {"pixels": 64.0}, "pixels is 64.0"),
        ("count", {"most": True}, "most is True"),
        ("count", {"most": 0}, "most is 0: choose a whole number from 1"),
        ("count", {"pixels": 32, "most": 20, "distractors": 20}, "40 shapes do not fit into 32 x 32"),
        ("compare", {"kinds": ["sizes"]}, "kinds is 'sizes'; did you mean 'size'?"),
        ("compare", {"kinds": []}, "kinds is []: choose a list of number, size, place"),
        ("compare", {"kinds": 3}, "kinds is 3"),
        ("compare", {"gap": 12}, "gap is 12: choose a whole number from 1 to 8"),
        ("compare", {"pixels": 32, "most": 10}, "20 shapes do not fit"),
        ("locate", {"unit": "pixel"}, "unit is 'pixel'; did you mean 'pixels'?"),
        ("locate", {"unit": 1}, "choose pixels or percent"),
        ("locate", {"distractors": 9}, "from 0 to 8"),
        ("read", {"length": 9}, "from 1 to 8"),
        ("read", {"kinds": "word", "pixels": 32}, "5 letters do not fit into 32 pixels"),
        ("arithmetic", {"part": "tset"}, "part is 'tset'; did you mean 'test'?"),
        ("arithmetic", {"digits": 4}, "from 1 to 3"),
        ("charts", {"bars": 7}, "from 2 to 6"),
        ("charts", {"most": 50}, "do not fit into 64 x 64"),
        ("tables", {"rows": 9}, "9 rows of 3 numbers do not fit"),
        ("tables", {"columns": 9}, "do not fit"),
        ("mazes", {"squares": 25}, "25 squares do not fit into 64 pixels"),
        ("mazes", {"squares": 2}, "from 3 to 25"),
    ],
)
def test_refusals(name: str, args: dict[str, Any], said: str) -> None:
    with pytest.raises(PosttrainError) as error:
        scenes.make(name, 0, 1, args)
    assert said in str(error.value)


@pytest.mark.parametrize("name", NAMES)
def test_extremes_that_are_allowed(name: str) -> None:
    for args in ({"pixels": 128}, {"pixels": 1024}):
        assert pixels(scenes.make(name, 0, 1, args)).shape[0] == args["pixels"]
    scenes.make(name, 10**12, 2**70)


def source(name: str, size: int, **keys: Any) -> Data:
    train = {"source": f"scenes:{name}", "size": size, "seed": 1, **keys}
    heldout = {"size": 10, "seed": 2}
    return Data.model_validate({"train": train, "heldout": heldout, "images": ["image"]})


def test_as_a_source_of_rows() -> None:
    few, _ = load(source("arithmetic", 5, args={"part": "train"}))
    more, heldout = load(source("arithmetic", 30))
    assert more[:5] == few, "row i does not hang on how many there are"
    assert len(more) == 30, "the same words about other pictures are other questions"
    assert len(heldout) == 10
    assert more[0].columns.keys() == {"question", "kind", "task"}
    assert more[0].pictures[0].open().size == (64, 64)
    with pytest.raises(PosttrainError, match="data.train: scenes has no task 'artihmetic'; did you mean"):
        load(source("artihmetic", 5))
    with pytest.raises(PosttrainError, match="data.train: scenes:count: most is 99"):
        load(source("count", 5, args={"most": 99}))


def test_captions_name_what_is_there() -> None:
    for image, row in rows("describe", 60):
        seen = Counter((color, kind) for color in COLORS for kind, _ in shapes(image, color))
        told = {}
        for part in row["answer"].split(", "):
            number, color, kind = part.split()
            told[color, kind.removesuffix("s")] = int(number)
            assert kind.endswith("s") == (number != "1")
        assert told == seen, row["answer"]


def test_captions_with_boxes_say_where() -> None:
    for image, row in rows("describe", 60, pixels=100, boxes=True):
        seen = {(c, kind, box) for c in COLORS for kind, box in shapes(image, c)}
        told = []
        for part in row["answer"].split("; "):
            color, kind, box = part.split(" ", 2)
            told.append((color, kind, tuple(json.loads(box))))
        assert set(told) == seen and len(told) == len(seen)
        sorts = [([*COLORS].index(color), kind) for color, kind, _ in told]  # kinds' order is the alphabet's
        assert sorts == sorted(sorts)


@pytest.mark.parametrize("name", ["count", "describe", "locate"])
def test_fewer_colors_and_shapes_are_easier(name: str) -> None:
    distractors = {} if name == "describe" else {"distractors": 1}
    for image, row in rows(name, 40, colors=2, shapes=1, **distractors):
        assert {kind for c in COLORS for kind, _ in shapes(image, c)} == {"circle"}
        assert not any(of_color(image, c).any() for c in list(COLORS)[2:])
        assert not re.search("square|triangle|blue|yellow", row["question"] + row["answer"])


def test_too_few_sorts_are_told() -> None:
    with pytest.raises(PosttrainError, match="make 2 sorts of things; choose more"):
        scenes.make("locate", 0, 1, {"colors": 2, "shapes": 1, "distractors": 2})
    with pytest.raises(PosttrainError, match="make 1 sorts"):
        scenes.make("count", 0, 1, {"colors": 1, "shapes": 1})

"""Rows with pictures: where they stand in a prompt, what is refused, what rows are known by."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from posttrain import past
from posttrain.data import examples, load
from posttrain.picture import Picture
from posttrain.recipe import Data
from posttrain.types import PosttrainError, Prompt

RED, GREEN, BLUE, WHITE = "red", "green", "blue", "white"


def png(color: str, size: int = 4) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (size, size), color).save(file, "PNG")
    return file.getvalue()


def uri(color: str) -> str:
    return "data:image/png;base64," + base64.b64encode(png(color)).decode()


def row(color: str = RED, **more: Any) -> dict[str, Any]:
    return {"question": "Which colour?", "answer": color, "image": uri(color), **more}


def data(folder: Path, train: list[Any], heldout: list[Any] | None = None, **keys: Any) -> Data:
    sources = {}
    for name, rows in (("train", train), ("heldout", [row(WHITE)] if heldout is None else heldout)):
        file = folder / f"{name}.jsonl"
        file.write_text("".join(json.dumps(one) + "\n" for one in rows), encoding="utf-8")
        sources[name] = {"source": str(file)}
    return Data.model_validate({"images": ["image"], **sources, **keys})


def first(folder: Path, one: dict[str, Any], **keys: Any) -> Prompt:
    return load(data(folder, [one], **keys))[0][0]


def refusal(of: Data) -> str:
    with pytest.raises(PosttrainError) as error:
        load(of)
    return str(error.value)


def shown(prompt: Prompt) -> list[Any]:
    """The last message's parts: a text, or a picture's colour."""
    content: Any = prompt.content
    assert isinstance(content, list)
    return [
        part["text"] if part["type"] == "text" else colour(part["image"]) for part in content[-1]["content"]
    ]


def colour(picture: Picture) -> str:
    return {png(name): name for name in (RED, GREEN, BLUE, WHITE)}[picture.read()]


# -- where pictures stand


def test_before_the_words_where_nothing_says_otherwise(tmp_path: Path) -> None:
    prompt = first(tmp_path, row(level=3), system="Be brief.", prompt="{question}\nOne word.")
    assert shown(prompt) == [RED, "Which colour?\nOne word."]
    assert prompt.content[0] == {"role": "system", "content": "Be brief."}
    assert prompt.question == "Be brief.\n<image>Which colour?\nOne word.", "as samples.jsonl tells it"
    assert [colour(picture) for picture in prompt.pictures] == [RED]
    assert prompt.columns == {"question": "Which colour?", "level": 3}, "rewards get no picture"
    assert prompt.pictures[0].name == "data.train, row 0, column 'image'"


def test_where_the_template_says(tmp_path: Path) -> None:
    prompt = first(tmp_path, row(), prompt="Look: <image>\n{question}")
    assert shown(prompt) == ["Look: ", RED, "\nWhich colour?"]
    two = row(image=[uri(RED), uri(BLUE)])
    heldout = [row(WHITE, image=[uri(WHITE)] * 2)]
    assert shown(first(tmp_path, two, prompt="<image> or <image>? {question}", heldout=heldout)) == [
        RED,
        " or ",
        BLUE,
        "? Which colour?",
    ]
    assert shown(first(tmp_path, two)) == [RED, BLUE, "Which colour?"]


def test_where_the_question_says(tmp_path: Path) -> None:
    assert shown(first(tmp_path, row(question="<image>\nWhat?"))) == [RED, "\nWhat?"]


def test_several_columns_in_their_order(tmp_path: Path) -> None:
    one = row(second=[uri(GREEN), uri(BLUE)])
    more = {"heldout": [row(WHITE, second=None)]}
    assert shown(first(tmp_path, one, images=["second", "image"], **more))[:3] == [GREEN, BLUE, RED]


def test_raw_text(tmp_path: Path) -> None:
    prompt = first(tmp_path, row(image=[uri(RED), uri(BLUE)]), chat=False, prompt="Q: {question}\nA:")
    assert prompt.content == prompt.question == "<image><image>Q: Which colour?\nA:"
    assert [colour(picture) for picture in prompt.pictures] == [RED, BLUE]
    marked = first(tmp_path, row(), chat=False, prompt="Q: {question} <image>\nA:")
    assert marked.content == "Q: Which colour? <image>\nA:"


@pytest.mark.parametrize("empty", [None, []])
def test_a_row_may_be_without(empty: Any, tmp_path: Path) -> None:
    prompt = first(tmp_path, row(image=empty))
    assert prompt.content == [{"role": "user", "content": "Which colour?"}]
    assert prompt.pictures == ()


def test_rows_of_words_alone_beside_them(tmp_path: Path) -> None:
    words = tmp_path / "words.jsonl"
    words.write_text(json.dumps({"question": "1+1? <image> is a tag", "answer": "2"}) + "\n")
    train, _ = load(data(tmp_path, [row()], also=[{"source": str(words), "images": []}]))
    assert train[1].content == [{"role": "user", "content": "1+1? <image> is a tag"}]
    said = refusal(data(tmp_path, [row()], also=[{"source": str(words)}]))
    assert said.startswith("data.images: data.also.0, row 0 has no column 'image'")


# -- chat messages that stand in the row


def user(*parts: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": list(parts)}]


HERE, TEXT = {"type": "image"}, {"type": "text", "text": "Which?"}


def test_messages_with_their_pictures_in_them(tmp_path: Path) -> None:
    part = {"type": "image", "image": uri(GREEN), "text": None}  # as Parquet fills the parts up
    prompt = first(tmp_path, {"prompt": user(TEXT | {"image": None}, part), "answer": "green"})
    assert shown(prompt) == ["Which?", GREEN]
    prompt = first(
        tmp_path,
        {"prompt": user(part), "answer": "", "n": 1},
        images=[],
        heldout=[{"prompt": user(TEXT), "answer": ""}],
    )
    assert shown(prompt) == [GREEN] and prompt.columns == {"n": 1}


@pytest.mark.parametrize("named", [["images"], []])
def test_messages_with_places_take_the_columns_pictures(named: list[str], tmp_path: Path) -> None:
    messages = [*user(HERE, TEXT), {"role": "assistant", "content": "Red."}, *user(TEXT, HERE)]
    one = {"prompt": messages, "answer": "blue", "images": [uri(RED), uri(BLUE)]}
    plain = [{"prompt": user(TEXT), "answer": "", "images": None}]
    prompt = first(tmp_path, one, images=named, heldout=plain)
    assert [colour(picture) for picture in prompt.pictures] == [RED, BLUE]
    assert shown(prompt) == ["Which?", BLUE]
    assert prompt.columns == {}, "they are no columns of rewards then"


def test_messages_without_places(tmp_path: Path) -> None:
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "Which?"}]
    prompt = first(tmp_path, {"prompt": messages, "answer": "red", "image": uri(RED)})
    assert shown(prompt) == [RED, "Which?"]
    marked = [{"role": "user", "content": "Is <image> it?"}]
    assert shown(first(tmp_path, {"prompt": marked, "answer": "red", "image": uri(RED)})) == [
        "Is ",
        RED,
        " it?",
    ]


@pytest.mark.parametrize(
    ("one", "keys", "words"),
    [
        (row(), {"prompt": "<image> <image> {question}"}, "2 places for pictures"),
        (row(), {"prompt": "<image> {question}", "system": "<image>"}, "2 places"),
        (row(image=None), {"prompt": "<image> {question}"}, "1 place for pictures"),
        (row(question="<image> <image>"), {"chat": False}, "and 1 picture in the row's"),
        (row(image=[uri(RED)] * 2), {"prompt": "<image> {question}"}, "and 2 pictures in the row's"),
        ({"prompt": user(HERE, TEXT), "answer": "", "image": None}, {}, "1 place"),
        ({"prompt": user(HERE, TEXT), "answer": "", "image": [uri(RED)] * 2}, {}, "2 pictures"),
        ({"prompt": user(HERE, TEXT), "answer": ""}, {"images": []}, "1 place"),
        ({"prompt": user(HERE, TEXT), "answer": ""}, {}, "no column 'image'"),
        (
            {"prompt": user(TEXT | {"text": "<image>"}, HERE | {"image": uri(RED)}), "answer": ""},
            {},
            "1 place",
        ),
        (
            {"prompt": [{"role": "system", "content": "s"}], "answer": "", "image": uri(RED)},
            {},
            "no user message",
        ),
        ({"prompt": user({"type": "video"}), "answer": ""}, {}, "something else"),
        ({"prompt": user(HERE | {"image": 3}), "answer": ""}, {}, "not int 3"),
        (row(image="nowhere.png"), {}, "column 'image': no image file 'nowhere.png'"),
        (row(image=uri(RED)[:62]), {}, "column 'image': the image of"),
        (row(image=3), {}, "not int 3"),
    ],
)
def test_refusals_name_the_row(one: Any, keys: dict[str, Any], words: str, tmp_path: Path) -> None:
    heldout = [{"question": "q", "answer": "", "image": None}]
    if "<image>" in keys.get("prompt", ""):
        heldout = [row(WHITE)]
    said = refusal(data(tmp_path, [one], heldout, **keys))
    assert "data.train, row 0" in said and words in said


def test_held_out_rows_of_the_same_source_have_its_columns() -> None:
    train = {"source": "scenes:count", "size": 3, "seed": 1, "images": ["image"]}
    _, heldout = load(Data.model_validate({"train": train, "heldout": {"size": 2, "seed": 2}}))
    assert len(heldout[0].pictures) == 1


def test_what_a_recipe_refuses(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\{image\} is a picture; write <image> where it belongs"):
        data(tmp_path, [row()], prompt="{image} {question}")
    scenes = {"source": "scenes:count", "size": 2, "seed": 1}
    with pytest.raises(ValueError, match="pictures of scenes:count are in the column 'image'"):
        Data.model_validate({"train": scenes, "heldout": {"size": 1, "seed": 2}})
    with pytest.raises(ValueError, match="seed"):
        Data.model_validate(
            {"train": {"source": "scenes:count", "size": 2}, "heldout": {}, "images": ["image"]}
        )
    with pytest.raises(ValueError, match="makes the same rows"):
        Data.model_validate({"train": scenes, "heldout": {"size": 1, "seed": 1}, "images": ["image"]})


# -- what a row is known by


def test_the_same_words_about_other_pictures_are_other_questions(tmp_path: Path) -> None:
    train, heldout = load(
        data(tmp_path, [row(RED), row(BLUE), row(GREEN)], [row(GREEN), row(WHITE), row(WHITE)])
    )
    assert [prompt.answer for prompt in train] == [RED, BLUE]
    assert [prompt.answer for prompt in heldout] == [GREEN, WHITE]
    raw = load(data(tmp_path, [row(RED), row(GREEN)], [row(GREEN)], chat=False))[0]
    assert [prompt.answer for prompt in raw] == [RED]
    made = examples(data(tmp_path, [row(RED), row(GREEN)], [row(GREEN)]), "{answer}")[0]
    assert [one["completion"][0]["content"] for one in made] == [RED]


def test_other_words_around_them_do_not_hide_a_held_out_question(tmp_path: Path) -> None:
    one = data(tmp_path, [row(RED), row(GREEN, question="<image> which  COLOUR?")], [row(GREEN)])
    other = one.model_copy(update={"train": one.train.model_copy(update={"prompt": "Now: {question}"})})
    assert [prompt.answer for prompt in load(other)[0]] == [RED]
    words = data(tmp_path, [row(RED), row(GREEN)], [row(GREEN)], prompt="Describe it.")
    asked = words.model_copy(update={"train": words.train.model_copy(update={"prompt": "What is that?"})})
    assert [prompt.answer for prompt in load(asked)[0]] == [RED], "the picture alone is the question"


def test_a_later_turn_is_about_the_pictures_before_it(tmp_path: Path) -> None:
    def talk(color: str) -> dict[str, Any]:
        turns = [*user(HERE | {"image": uri(color)}, TEXT), {"role": "assistant", "content": color}]
        return {
            "messages": [
                *turns,
                {"role": "user", "content": "Sure?"},
                {"role": "assistant", "content": "Yes."},
            ]
        }

    heldout = [{"prompt": user(HERE | {"image": uri(GREEN)}, TEXT), "answer": "green"}]
    made, _ = examples(data(tmp_path, [talk(RED), talk(GREEN), talk(BLUE)], heldout), "{answer}")
    colors = [colour(one["messages"][0]["content"][0]["image"]) for one in made]
    assert colors == [RED, BLUE], "only the one that shows the held-out picture goes"


def test_fingerprints_cover_pictures(tmp_path: Path) -> None:
    def found(rows: Any) -> Any:
        return past.with_inputs(tmp_path, None, rows, [], [])["inputs"]["data.train"]

    def prompts(color: str, **keys: Any) -> list[Prompt]:
        return load(data(tmp_path, [row(color, answer="x")], **keys))[0]

    def made(color: str, **keys: Any) -> Any:
        return examples(data(tmp_path, [row(color, answer="x")], **keys), "{answer}")[0]

    for rows in (prompts, made):
        for chat in (True, False):
            assert found(rows(RED, chat=chat)) == found(rows(RED, chat=chat)) != found(rows(BLUE, chat=chat))
    (tmp_path / "red.png").write_bytes(png(RED))
    by_path = load(data(tmp_path, [row(answer="x", image="red.png")]))[0]
    assert found(by_path) == found(prompts(RED)), "its bytes count, and not where they are"


# -- examples


def test_examples_keep_their_pictures(tmp_path: Path) -> None:
    [one], _ = examples(data(tmp_path, [row()]), "It is {answer}.")
    assert colour(one["prompt"][0]["content"][0]["image"]) == RED
    assert one["completion"] == [{"role": "assistant", "content": "It is red."}]
    [raw], _ = examples(data(tmp_path, [row()], chat=False), " {answer}")
    assert raw["prompt"] == "<image>Which colour?" and raw["completion"] == " red"
    assert [colour(picture) for picture in raw["images"]] == [RED]
    ready = {"prompt": "Is <image> red?", "completion": " Yes.", "image": uri(RED)}
    [text], _ = examples(data(tmp_path, [ready], chat=False), "{answer}")
    assert text["prompt"] == "Is <image> red?" and colour(text["images"][0]) == RED
    [words], _ = examples(data(tmp_path, [ready | {"prompt": "Hi", "image": None}], chat=False), "{answer}")
    assert words == {"prompt": "Hi", "completion": " Yes."}
    with pytest.raises(PosttrainError, match="1 place for pictures"):
        examples(data(tmp_path, [ready | {"image": None}], chat=False), "{answer}")
    moved = [ready, ready | {"prompt": "is red <image>?"}]
    heldout = [{"question": "Is red?", "answer": "x", "image": uri(RED)}]
    made, _ = examples(
        data(tmp_path, [*moved, ready | {"image": uri(BLUE)}], heldout, chat=False), "{answer}"
    )
    assert [colour(one["images"][0]) for one in made] == [RED, BLUE], (
        "'?' parts the second from it, a mark not"
    )


def test_conversations_take_their_pictures_from_a_column(tmp_path: Path) -> None:
    talk = [*user(HERE, TEXT), {"role": "assistant", "content": "Red."}]
    [one], _ = examples(data(tmp_path, [{"messages": talk, "image": uri(RED)}]), "{answer}")
    assert colour(one["messages"][0]["content"][0]["image"]) == RED


# -- sources


def test_paths_begin_at_the_file_of_the_rows(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(png(BLUE))
    assert shown(first(tmp_path, row(image="images/a.png")))[0] == BLUE


def test_parquet_with_encoded_images(tmp_path: Path) -> None:
    def parquet(name: str, *colors: str) -> dict[str, str]:
        cells = [{"bytes": png(color), "path": None} for color in colors]
        rows = [
            {"question": "Which?", "answer": color, "image": cell, "images": [cell, cell]}
            for color, cell in zip(colors, cells, strict=True)
        ]
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / name)
        return {"source": str(tmp_path / name)}

    sources = {"train": parquet("a.parquet", RED, BLUE, WHITE), "heldout": parquet("b.parquet", WHITE)}
    train, _ = load(Data.model_validate({**sources, "images": ["image"]}))
    assert [shown(prompt)[0] for prompt in train] == [RED, BLUE]
    train, _ = load(Data.model_validate({**sources, "images": ["images"]}))
    assert shown(train[1]) == [BLUE, BLUE, "Which?"]


def image_folder(folder: Path, *colors: str) -> Path:
    folder.mkdir()
    lines = []
    for number, color in enumerate(colors):
        (folder / f"{number}.png").write_bytes(png(color))
        lines.append({"file_name": f"{number}.png", "question": "Which?", "answer": color})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_a_folder_of_images_as_datasets_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    train, heldout = image_folder(tmp_path / "train", RED, BLUE), image_folder(tmp_path / "test", WHITE)
    sources = {"train": {"source": f"folder:{train}"}, "heldout": {"source": f"folder:{heldout}"}}
    prompts, _ = load(Data.model_validate({**sources, "images": ["image"]}))
    theirs: list[Any] = list(datasets.load_dataset("imagefolder", data_dir=str(train), split="train"))
    assert [prompt.answer for prompt in prompts] == [one["answer"] for one in theirs]
    for prompt, one in zip(prompts, theirs, strict=True):
        assert prompt.pictures[0].open().tobytes() == one["image"].convert("RGB").tobytes()
        assert prompt.columns == {"question": "Which?"}
    (train / "1.png").unlink()
    assert "data.train, row 1, column 'image': no image file" in refusal(
        Data.model_validate({**sources, "images": ["image"]})
    )
    (train / "metadata.jsonl").write_text('{"question": "q"}\n')
    assert "row 0: has no file_name" in refusal(Data.model_validate({**sources, "images": ["image"]}))
    (train / "metadata.jsonl").unlink()
    assert "metadata.jsonl; a folder of images has one" in refusal(
        Data.model_validate({**sources, "images": ["image"]})
    )


def test_the_hubs_loader_hands_bytes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    features = datasets.Features(
        {
            "question": datasets.Value("string"),
            "answer": datasets.Value("string"),
            "image": datasets.Image(),
            "images": datasets.List(datasets.Image()),
        }
    )

    def of(*colors: str) -> datasets.Dataset:
        rows = [
            {"question": "Which?", "answer": color, "image": {"bytes": png(color), "path": None}}
            for color in colors
        ]
        return datasets.Dataset.from_list(
            [one | {"images": [one["image"]] * 2} for one in rows], features=features
        )

    sets = {"train": of(RED, BLUE), "test": of(WHITE)}
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, split, **__: sets[split])
    train, _ = load(Data.model_validate({"train": {"source": "hub:a/b"}, "heldout": {}, "images": ["image"]}))
    assert [shown(prompt)[0] for prompt in train] == [RED, BLUE], "the very bytes"
    assert list(train[0].columns) == ["question", "images"]
    train, _ = load(
        Data.model_validate({"train": {"source": "hub:a/b"}, "heldout": {}, "images": ["images"]})
    )
    assert shown(train[0]) == [RED, RED, "Which?"]

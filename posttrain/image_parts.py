"""Pictures put into a prompt: the parts of chat messages that a row holds, and the places for its columns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from posttrain.picture import MARK, Picture
from posttrain.types import ImagePart, Message, PosttrainError, TextPart

Part = TextPart | ImagePart
Content = str | list[Message]


def cells_as_pictures(cell: Any, where: str, folder: Path | None) -> list[Picture]:
    """The pictures of a row's cell: one, a list of them, none for null. PosttrainError for a broken one.

    Only headers are looked at: a picture whose body is damaged is found when it is opened.
    """
    cells = cell if isinstance(cell, list | tuple) else [] if cell is None else [cell]
    pictures = [Picture.of(one, where, folder) for one in cells]
    for picture in pictures:
        picture.check()
    return pictures


def read_messages(given: list[Any], where: str, folder: Path | None) -> list[Message]:
    """Chat messages of a row, checked, with a Picture in each image part that holds an image.

    A part {"type": "image"} without one is a place, which `in_messages` fills. Messages of words alone come
    back as they are. PosttrainError names the row.
    """
    if not given:
        raise PosttrainError(f"{where}: the prompt has no messages")
    return [_message(message, where, folder) for message in given]


def _message(message: Any, where: str, folder: Path | None) -> Message:
    content = message.get("content") if isinstance(message, dict) else None
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(message, dict) or not isinstance(message.get("role"), str) or not parts:
        raise PosttrainError(
            f'{where}: a prompt message is {{"role": …, "content": …}}, not {_short(message)}'
        )
    if not isinstance(parts, list) or not all(map(_is_part, parts)):
        raise PosttrainError(
            f'{where}: a part of a prompt message is {{"type": "text", "text": …}} or '
            f'{{"type": "image", "image": …}}; this one holds something else: {_short(content)}'
        )
    if all(part["type"] == "text" for part in parts):
        return message  # type: ignore[return-value] - checked above
    made: list[Any] = []
    for part in parts:
        if part["type"] == "text":
            made.append({"type": "text", "text": part["text"]})
        elif part.get("image") is None:
            made.append({"type": "image"})
        else:
            made += [
                {"type": "image", "image": one} for one in cells_as_pictures([part["image"]], where, folder)
            ]
    return {**message, "content": made}  # type: ignore[return-value] - checked above


def _is_part(part: Any) -> bool:
    if not isinstance(part, dict):
        return False
    return part.get("type") == "image" or (part.get("type") == "text" and isinstance(part.get("text"), str))


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else text[:200] + "…"


def places(messages: Sequence[Message]) -> int:
    """How many image parts of messages still lack their picture."""
    parts = (part for message in messages for part in message["content"] if not isinstance(part, str))
    return sum(part["type"] == "image" and "image" not in part for part in parts)


def has_pictures(messages: Sequence[Message]) -> bool:
    """Whether messages have an image part, with its picture or without."""
    parts = (part for message in messages for part in message["content"] if not isinstance(part, str))
    return any(part["type"] == "image" for part in parts)


def in_messages(messages: list[Message], pictures: Sequence[Picture], where: str) -> list[Message]:
    """Messages with pictures at their places, in order: image parts without one, and each <image> in a text.

    Without any place, all pictures stand before the words of the first user message.

    Raises:
        PosttrainError: as many places as pictures there are not, or no user message.
    """
    left = iter(pictures)
    open_ = sum(_text_of(message).count(MARK) for message in messages) + places(messages)
    if not open_ and not has_pictures(messages) and pictures:
        return _before(messages, pictures, where)
    _same(open_, len(pictures), where)
    return [_filled(message, left) if pictures else message for message in messages]


def with_images(content: Content, image: Callable[[Picture], str]) -> str | list[Any]:
    """A prompt's content with a text for each picture: what JSON, or another process, gets of it."""

    def told(part: Part) -> dict[str, Any]:
        return {"type": "image", "image": image(part["image"])} if part["type"] == "image" else {**part}

    if isinstance(content, str) or not has_pictures(content):
        return content
    return [
        {**message, "content": parts if isinstance(parts := message["content"], str) else [*map(told, parts)]}
        for message in content
    ]


def in_text(text: str, pictures: Sequence[Picture], where: str) -> str:
    """Raw text with an <image> for each picture, before it where it has none. PosttrainError as above."""
    marks = text.count(MARK)
    if not marks:
        return MARK * len(pictures) + text
    _same(marks, len(pictures), where)
    return text


def _same(places: int, pictures: int, where: str) -> None:
    if places != pictures:
        raise PosttrainError(
            f"{where}: {places} place{'s' * (places != 1)} for pictures ({MARK} in the text, or image parts) "
            f"and {pictures} picture{'s' * (pictures != 1)} in the row's image columns; "
            "the two have to be equal"
        )


def _text_of(message: Message) -> str:
    content = message["content"]
    return content if isinstance(content, str) else "".join(p["text"] for p in content if p["type"] == "text")


def _before(messages: list[Message], pictures: Sequence[Picture], where: str) -> list[Message]:
    at = next((i for i, message in enumerate(messages) if message["role"] == "user"), None)
    if at is None:
        raise PosttrainError(f"{where}: no user message for the row's pictures")
    first: list[Part] = [{"type": "image", "image": picture} for picture in pictures]
    made: Message = {**messages[at], "content": [*first, *_parts(messages[at])]}
    return [*messages[:at], made, *messages[at + 1 :]]


def _parts(message: Message) -> list[Part]:
    content = message["content"]
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _filled(message: Message, left: Any) -> Message:
    """A message with pictures from `left` in its places; one of words alone stays as it is."""
    if MARK not in _text_of(message) and not places([message]):
        return message
    made: list[Part] = []
    for part in _parts(message):
        if part["type"] == "image":
            made.append(part if "image" in part else {"type": "image", "image": next(left)})
            continue
        for number, text in enumerate(part["text"].split(MARK)):
            if number:
                made.append({"type": "image", "image": next(left)})
            if text:
                made.append({"type": "text", "text": text})
    return {**message, "content": made}

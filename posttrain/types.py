"""The nouns that flow through posttrain. Plain dataclasses, no torch: every floor may import them.

A step in one line:
    Prompt -> engine -> Group of Completions -> rewards (Score each) -> advantages -> packed batch -> loss

Shapes in names elsewhere: N completions in a batch, G in a group, P prompt tokens, R response tokens,
T packed tokens, V vocabulary.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, TypedDict

from posttrain.errors import PosttrainError as PosttrainError
from posttrain.picture import MARK, Picture


class TextPart(TypedDict):
    """One piece of a message's content, as chat templates read it: {"type": "text", "text": "2 + 2 = ?"}."""

    type: Literal["text"]
    text: str


class ImagePart(TypedDict):
    """An image in a message: {"type": "image", "image": Picture(…)}."""

    type: Literal["image"]
    image: Picture


class Message(TypedDict):
    """One chat message: {"role": "user", "content": "What is 2 + 2?"}."""

    role: str
    content: str | list[TextPart | ImagePart]


@dataclass(frozen=True)
class Prompt:
    """One row of data.

    `content` is raw text (continued as it is) or a list of chat messages (put through the model's template).
    `columns` holds every other column of the row; reward functions receive them, and `answer`, by keyword.
    Pictures are parts of messages; raw text has an <image> for each of `beside`.

    Example: Prompt("train-17", [{"role": "user", "content": "2 + 2 = ?"}], "4", {"difficulty": 1})
    """

    id: str
    content: str | list[Message]
    answer: str | None
    columns: dict[str, Any] = field(default_factory=dict)
    beside: tuple[Picture, ...] = ()

    @property
    def question(self) -> str:
        """The prompt as one readable text, for samples and reports; an <image> stands for a picture."""
        if isinstance(self.content, str):
            return self.content
        return "\n".join(_text(message["content"]) for message in self.content)

    @property
    def pictures(self) -> tuple[Picture, ...]:
        """The pictures, in the order in which the model meets them."""
        return self.beside if isinstance(self.content, str) else tuple(pictures_in(self.content))


def pictures_in(messages: list[Message]) -> Iterator[Picture]:
    """The pictures of chat messages, in their order."""
    for message in messages:
        parts = message["content"]
        yield from (part["image"] for part in parts if not isinstance(part, str) and part["type"] == "image")


def _text(content: str | list[TextPart | ImagePart]) -> str:
    if isinstance(content, str):
        return content
    return "".join(part["text"] if part["type"] == "text" else MARK for part in content)


class Encoded(list[int]):
    """A prompt's token ids, with what a tower takes of each of its pictures (multimodal.Seen).

    Equal to another where ids and pictures are the same: two prompts of the same words may show other things.
    """

    def __init__(self, tokens: Iterable[int] = (), pictures: Iterable[Any] = ()):
        super().__init__(tokens)
        self.pictures = tuple(pictures)

    def __eq__(self, other: object) -> bool:
        theirs = getattr(other, "pictures", ())
        same = len(self.pictures) == len(theirs) and all(map(operator.is_, self.pictures, theirs))
        return same and list.__eq__(self, other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = None  # as a list's


Finish = Literal["stop", "length"]


@dataclass
class Completion:
    """What the policy wrote after a prompt.

    `tokens` includes the end token when `finish` is "stop"; `text` does not. `logprobs` holds, for each
    token, the natural-log probability under the distribution that it was drawn from (after temperature and
    truncation).
    """

    tokens: list[int]
    logprobs: list[float]
    finish: Finish
    text: str


@dataclass
class Score:
    """The rewards of one completion.

    `total` is the weighted sum of `parts`; None means the row must not be trained on, because no rule applied
    to it or because a rule failed on it. `failures` says which rule failed and why.

    Example: Score(1.1, {"accuracy": 1.0, "format": 1.0}, {})
    """

    total: float | None
    parts: dict[str, float | None]
    failures: dict[str, str] = field(default_factory=dict)


@dataclass
class Group:
    """One prompt with its G completions and their scores (empty until scored)."""

    prompt: Prompt
    prompt_tokens: list[int]
    completions: list[Completion]
    scores: list[Score] = field(default_factory=list)


@dataclass(frozen=True)
class Sampling:
    """How an engine draws tokens. temperature 0 is greedy; top_k 0, top_p 1, min_p 0 leave all tokens in."""

    max_tokens: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0

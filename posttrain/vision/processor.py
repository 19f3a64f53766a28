"""Prompts with pictures as a model takes them: image tokens where pictures stand, and pixels for its tower.

PIL and torch alone, no torchvision.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from posttrain import picture as pictures
from posttrain.multimodal import Seen
from posttrain.picture import Picture
from posttrain.types import Encoded, Message, PosttrainError, Prompt

if TYPE_CHECKING:
    from PIL import Image

    from posttrain.vision.towers import Pixel

KEPT = 2**28  # bytes of pictures' pixels that are kept: samples of one prompt follow each other

Shown = tuple[list[int], Seen]  # the tokens that a picture becomes, and what a tower takes of it


class Reader:
    """Encodes prompts for one model: what is the same whatever its pictures become.

    Args:
        token: the id of an image, which the tokenizer knows.
        kept: pictures whose pixels are kept.
    """

    mean: Pixel | None = None
    """The colour that the tower takes for nothing, where that is known."""
    varies = False
    """Whether pixels of two pictures may be of unlike shape, so that no batch holds both."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, token: int, kept: int):
        self.tokenizer, self.token = tokenizer, token
        mark = tokenizer.convert_ids_to_tokens(token)
        assert isinstance(mark, str), "an image's token is one of the vocabulary"
        self.mark = self.raw = mark  # raw: a picture's place in a text that goes through no template
        self._shown = lru_cache(kept)(self.shown)
        self._parts = reads_parts(tokenizer, mark)

    def shown(self, one: Picture) -> Shown:
        """What a picture becomes. PosttrainError where it cannot be read."""
        raise NotImplementedError

    def __call__(self, prompt: Prompt) -> list[int]:
        """A prompt's token ids, with the pixels of its pictures.

        Raises:
            PosttrainError: a picture that cannot be read, or a text that has an image's token in it by
                itself; it names the row.
        """
        given = prompt.pictures
        if isinstance(prompt.content, str):
            ids = self._plain(prompt.content)
        else:
            ids = self._chat(prompt.content)
        if not ids:
            raise PosttrainError(f"{prompt.id} came to no tokens at all; is data.prompt empty?")
        there = ids.count(self.token)
        if there != len(given):
            raise PosttrainError(
                f"{prompt.id} has {len(given)} pictures, but its text has {there} times {self.mark}, the "
                "place of one; take it out of the text"
            )
        if not given:
            return ids
        shown = [self._shown(one) for one in given]
        places = iter(shown)
        out = [t for i in ids for t in (next(places)[0] if i == self.token else [i])]
        return Encoded(out, [seen for _, seen in shown])

    def _plain(self, text: str) -> list[int]:
        return self.tokenizer.encode(text.replace(pictures.MARK, self.raw))

    def _chat(self, messages: Iterable[Message]) -> list[int]:
        if self.tokenizer.chat_template is None:
            raise PosttrainError("the model has no chat template; set data.chat: false to continue raw text")
        return self.templated([self.told(message) for message in messages])

    def templated(self, messages: list[dict[str, Any]]) -> list[int]:
        """Token ids of messages through the chat template, an image's token at the place of each."""
        ids: Any = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        return self.begun(ids)

    def begun(self, ids: list[int]) -> list[int]:
        """A chat's ids, from its template's own: those of a family of the Hub begin with the token that its
        tokenizer puts before any text, whether or not the template writes it."""
        return ids

    def told(self, message: Message) -> dict[str, Any]:
        """A message as the template reads it: parts, or for a language model's one text with image tokens."""
        content = message["content"]
        parts: list[Any] = [{"type": "text", "text": content}] if isinstance(content, str) else content
        if self._parts:
            told: Any = [p if p["type"] == "text" else {"type": "image"} for p in parts]
        else:
            told = "".join(p["text"] if p["type"] == "text" else self.mark for p in parts)
        return {**message, "content": told}

    def tokens(self, one: Picture) -> list[int]:
        """What a picture becomes in the text."""
        return self._shown(one)[0]

    def seen(self, one: Picture) -> Seen:
        """What a tower takes of a picture; the last few are kept."""
        return self._shown(one)[1]


def reads_parts(tokenizer: PreTrainedTokenizerFast, mark: str) -> bool:
    """Whether a chat template writes an image's mark for an image part, and a text part's words."""
    word = "words"
    parts: Any = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": word}]}]
    if tokenizer.chat_template is None:
        return False
    try:
        said: Any = tokenizer.apply_chat_template(parts, tokenize=False)
    except Exception:  # a template is a program of the checkpoint's and may fail in any way
        return False
    return said.count(mark) == 1 and word in said.partition(mark)[2] and repr(word) not in said


class Processor(Reader):
    """For a model with a tower of this package.

    Args:
        config: of the model (`posttrain.vision.model`).
        tokenizer: one that knows the image token.
    """

    def __init__(self, config: Any, tokenizer: PreTrainedTokenizerFast):
        from posttrain.vision import towers
        from posttrain.vision.model import connector_for

        tower = config.vision_config
        with torch.device("meta"):
            self.tower = towers.build(tower.kind, tower.settings)
            self.connector = connector_for(self.tower, config.connector, 1, config.tokens_per_image)
        self.mean = self.tower.mean
        self.resize, self.varies = config.resize, config.resize == "native"
        self.most_pixels = config.most_pixels or self.tower.image_size**2
        super().__init__(tokenizer, config.image_token_id, max(1, KEPT // (12 * self.most_pixels)))

    def tokens(self, one: Picture) -> list[int]:
        return super().tokens(one) if self.varies else [self.token] * self.connector.tokens

    def shown(self, one: Picture) -> Shown:
        pixels = self.pixels(one.open())
        count = self.connector.count(self.tower.grid(*pixels.shape[-2:]))
        return [self.token] * count, {"pixel_values": pixels}

    def pixels(self, image: Image.Image) -> Tensor:
        """An RGB image of any size -> [1, 3, H, W], normalized."""
        values = torch.from_numpy(np.array(self.scaled(image).image, dtype=np.float32)).div_(255)
        values.sub_(torch.tensor(self.tower.mean)).div_(torch.tensor(self.tower.std))
        return values.permute(2, 0, 1)[None].contiguous()

    def scaled(self, image: Image.Image) -> pictures.Scaled:
        """An image as the tower gets it."""
        if self.resize == "native":
            return pictures.native(image, self.tower.stride * self.connector.block, self.most_pixels)
        return getattr(pictures, self.resize)(image, self.tower.image_size)

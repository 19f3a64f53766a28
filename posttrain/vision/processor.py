"""Prompts with pictures as a model takes them: image tokens where pictures stand, and pixels for its tower.

PIL and torch alone, no torchvision.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from posttrain import picture as pictures
from posttrain.multimodal import Seen
from posttrain.picture import Picture
from posttrain.types import Encoded, ImagePart, Message, PosttrainError, Prompt, TextPart

KEPT = 512  # pictures' pixels that are kept: samples of one prompt follow each other


class Processor:
    """Encodes prompts for one model.

    Args:
        config: of a model with a tower of this package (`posttrain.vision.model`).
        tokenizer: one that knows the image token.
    """

    def __init__(self, config: Any, tokenizer: PreTrainedTokenizerFast):
        from posttrain.vision import towers

        self.tokenizer = tokenizer
        self.token: int = config.image_token_id
        mark = tokenizer.convert_ids_to_tokens(self.token)
        assert isinstance(mark, str), "an image's token is one of the vocabulary"
        self.mark, self.count = mark, config.image_seq_length
        tower = config.vision_config
        with torch.device("meta"):
            built = towers.build(tower.kind, tower.settings)
        self.side, self.mean, self.std = built.image_size, built.mean, built.std
        self.resize = getattr(pictures, config.resize)
        self.seen = lru_cache(KEPT)(self._read)

    def __call__(self, prompt: Prompt) -> list[int]:
        """A prompt's token ids, with the pixels of its pictures.

        Raises:
            PosttrainError: a picture that cannot be read, or a text that has an image's token in it by
                itself; it names the row.
        """
        shown = prompt.pictures
        if isinstance(prompt.content, str):
            ids = self._plain(prompt.content)
        else:
            ids = self._chat(prompt.content)
        if not ids:
            raise PosttrainError(f"{prompt.id} came to no tokens at all; is data.prompt empty?")
        there = ids.count(self.token)
        if there != len(shown):
            raise PosttrainError(
                f"{prompt.id} has {len(shown)} pictures, but its text has {there} times {self.mark}, the "
                "place of one; take it out of the text"
            )
        if not shown:
            return ids
        out = [t for i in ids for t in ([i] * self.count if i == self.token else [i])]
        return Encoded(out, [self.seen(one) for one in shown])

    def _plain(self, text: str) -> list[int]:
        return self.tokenizer.encode(text.replace(pictures.MARK, self.mark))

    def _chat(self, messages: Iterable[Message]) -> list[int]:
        if self.tokenizer.chat_template is None:
            raise PosttrainError("the model has no chat template; set data.chat: false to continue raw text")
        texts = [{"role": m["role"], "content": self.text(m["content"])} for m in messages]
        ids: Any = self.tokenizer.apply_chat_template(texts, add_generation_prompt=True, return_dict=False)
        return ids

    def text(self, content: str | list[TextPart | ImagePart]) -> str:
        """One text with the image token for each picture: templates of language models read no parts."""
        if isinstance(content, str):
            return content
        return "".join(p["text"] if p["type"] == "text" else self.mark for p in content)

    def _read(self, one: Picture) -> Seen:
        return {"pixel_values": self.pixels(one.open())}

    def pixels(self, image: Image.Image) -> Tensor:
        """An RGB image of any size -> [1, 3, S, S], normalized."""
        scaled: Image.Image = self.resize(image, self.side).image
        values = torch.from_numpy(np.array(scaled, dtype=np.float32)).div_(255)
        values.sub_(torch.tensor(self.mean)).div_(torch.tensor(self.std))
        return values.permute(2, 0, 1)[None].contiguous()

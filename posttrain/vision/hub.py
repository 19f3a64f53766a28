"""The processors of checkpoints that see: their files, and pictures through the family's own code.

Without torchvision: transformers' image processors that use PIL, and no half for videos.
"""

from __future__ import annotations

import inspect
import json
import sys
import tempfile
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import transformers
from transformers import AutoImageProcessor, PreTrainedModel, PreTrainedTokenizerFast
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
from transformers.utils.hub import cached_file

from posttrain.multimodal import Seen
from posttrain.picture import Picture
from posttrain.types import PosttrainError
from posttrain.vision.processor import Reader, Shown
from posttrain.vision.towers import Pixel

if TYPE_CHECKING:
    from PIL import Image

PROCESSOR, IMAGES, TEMPLATE = "processor_config.json", "preprocessor_config.json", "chat_template.json"
FILES = (PROCESSOR, IMAGES, "video_preprocessor_config.json", TEMPLATE)
TRIED = ((128, 128), (512, 128), (1024, 1024), (2000, 500))  # pixels
KEPT = 16  # pictures whose tensors are kept; one may be many tiles
MISSING = f"the checkpoint has no processor of pictures; put its {PROCESSOR} and {IMAGES} beside its weights"


def files(where: str) -> dict[str, bytes]:
    """A processor's files in a folder or of a Hub id, by name; without those of its tokenizer."""
    found: dict[str, bytes] = {}
    for name in FILES:
        path = cached_file(
            where,
            name,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
            _raise_exceptions_for_gated_repo=False,
        )
        if path is not None:
            found[name] = Path(path).read_bytes()
    return found


def template(found: Mapping[str, bytes]) -> str | None:
    """The chat template, where a processor's files hold it and not the tokenizer's."""
    return json.loads(found[TEMPLATE]).get("chat_template") if TEMPLATE in found else None


class HubReader(Reader):
    """Encodes prompts for a model of transformers, as its family's own processor does.

    Args:
        found: the processor's files. What is wrong with them is said where a picture first comes.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, found: Mapping[str, bytes]
    ):
        config: Any = model.config
        super().__init__(tokenizer, config.image_token_id, KEPT)
        around = (getattr(config, f"vision_{end}_token_id", None) for end in ("start", "end"))
        start, end = ("" if i is None else tokenizer.convert_ids_to_tokens(i) for i in around)
        self.raw = f"{start}{self.mark}{end}"
        first = tokenizer.encode("")[:1]
        self._first = first if first == [tokenizer.bos_token_id] else []
        makes: Any = model.get_image_features
        self._takes = inspect.signature(makes).parameters
        self._processor: Any = None
        self._wrong = ""
        try:
            self._processor = _processor(config, tokenizer, found)
            self.mean = _mean(self._processor.image_processor)
        except (ImportError, OSError, ValueError, TypeError, AttributeError, KeyError) as error:
            said = " ".join(str(error).split())[:300]
            self._wrong = (
                f"the model's own processor of pictures does not run here: {said}" if found else MISSING
            )

    def shown(self, one: Picture) -> Shown:
        if self._processor is None:
            raise PosttrainError(f"{one.name}: {self._wrong}")
        image = one.open()
        try:
            return self._made(image)
        except Exception as error:  # each family's way to refuse, such as a side 200 times the other
            said = " ".join(str(error).split())[:300]
            raise PosttrainError(
                f"{one.name}: the model's own processor refuses the picture ({said}); leave its row out"
            ) from None

    def _made(self, image: Image.Image) -> Shown:
        text = [self._processor.image_token]
        made = self._processor(images=[image], text=text, return_tensors="pt", add_special_tokens=False)
        seen: Seen = {name: made[name] for name in made if name in self._takes}
        if "pixel_attention_mask" in seen:  # [1, tiles, …]: the tiles of several pictures are joined
            seen = {name: x.transpose(0, 1) for name, x in seen.items()}
        return made["input_ids"][0].tolist(), seen

    @cached_property
    def varies(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """See Reader: tried on a few sizes. False where the processor does not run, which its first picture
        will tell."""
        from PIL import Image

        try:
            made = [self._made(Image.new("RGB", size))[1] for size in TRIED]
        except Exception:
            return False
        return len({tuple(sorted((name, x.shape[1:]) for name, x in seen.items())) for seen in made}) > 1

    def whole(self, image: Image.Image) -> bool:
        """Whether the processor shows the tower all of an image, and cuts nothing off."""
        images: Any = self._processor.image_processor
        if not getattr(images, "do_center_crop", False):
            return True
        size, crop = ({*dict(some).values()} - {None} for some in (images.size, images.crop_size))
        return image.width == image.height and size == crop

    def begun(self, ids: list[int]) -> list[int]:
        return [*self._first, *ids] if ids[:1] != self._first else ids


def _processor(config: Any, tokenizer: PreTrainedTokenizerFast, found: Mapping[str, bytes]) -> Any:
    if not found:
        raise OSError(MISSING)
    told = json.loads(found.get(PROCESSOR, b"{}"))
    named = told.get("processor_class") or json.loads(found.get(IMAGES, b"{}")).get("processor_class")
    kind: Any = getattr(transformers, named or "", None) or PROCESSOR_MAPPING[type(config)]
    with tempfile.TemporaryDirectory() as folder:
        for name, data in found.items():
            (Path(folder) / name).write_bytes(data)
        config.save_pretrained(folder)  # names the image processor where its own file does not
        images: Any = AutoImageProcessor.from_pretrained(folder, backend="pil")
    given = told | {"image_processor": images, "tokenizer": tokenizer, "video_processor": None}
    takes = inspect.signature(kind.__init__).parameters
    return of_images(kind)(**{name: value for name, value in given.items() if name in takes})


def _mean(images: Any) -> Pixel | None:
    mean = getattr(images, "image_mean", None)
    return tuple(mean) if isinstance(mean, list | tuple) and len(mean) == 3 else None


def of_images(kind: Any) -> Any:
    """A processor's class without its half for videos, which needs torchvision."""

    def get_attributes(cls: Any) -> list[str]:
        return [name for name in kind.get_attributes() if name != "video_processor"]

    module: Any = sys.modules[kind.__module__]
    # SmolVLM's refuses to be without it, for the lengths of videos.
    if getattr(module, "num2words", True) is None:
        module.num2words = str
    return type(kind.__name__, (kind,), {"get_attributes": classmethod(get_attributes)})

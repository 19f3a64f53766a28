"""An image as rows hold it: where its encoded bytes are, opening it safely, and bringing it to a size.

Nothing is decoded before its size is known, and nothing is fetched: an address on the web is refused.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from posttrain.errors import PosttrainError

if TYPE_CHECKING:
    from PIL import Image

MARK = "<image>"  # where a picture stands in a text
MOST_PIXELS = 50_000_000  # what an open picture may have: 150 MB as RGB
GREY = (128, 128, 128)
# Not all that Pillow can open: for some formats it starts other programs.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
_DO = f"put it right or leave the row out (formats read: {', '.join(FORMATS)})"
_ORIENTATION = 0x0112  # EXIF's tag

Box = tuple[float, float, float, float]
Filter = Literal["bicubic", "bilinear"]


@dataclass(frozen=True)
class Picture:
    """An encoded image: its bytes, or its file's path. `name` is for messages: the row that it stands in.

    Two are equal where bytes and path are, whatever they are called; `digest` tells what they show apart.
    """

    data: bytes | None = field(default=None, repr=False)
    path: str | None = None
    name: str = field(default="an image", compare=False)

    @staticmethod
    def of(cell: Any, where: str, folder: Path | None = None) -> Picture:
        """A picture from what a row holds for it; its bytes are not read yet.

        Args:
            cell: a path, encoded bytes, {"bytes": …, "path": …} as datasets' Image feature has it, an image
                of PIL (kept as PNG) or a data URI in base64.
            where: the row, for messages.
            folder: where relative paths begin, before the folder in which posttrain was started.

        Raises:
            PosttrainError: it is none of these, or there is no such file.
        """
        if isinstance(cell, Picture):
            return cell
        if isinstance(cell, Mapping) and cell.keys() & {"bytes", "path"}:
            data, path = cell.get("bytes"), cell.get("path")
            cell = path if data is None else data
        if isinstance(cell, bytes | bytearray | memoryview):
            if not len(cell):
                raise PosttrainError(f"{where}: the image has no bytes; {_DO}")
            return Picture(bytes(cell), None, where)
        if isinstance(cell, str) and cell[:5].lower() == "data:":
            return Picture(_from_uri(cell, where), None, where)
        if isinstance(cell, str | Path) and str(cell).strip():
            return Picture(None, _found(str(cell), where, folder), where)
        if "PIL.Image" in sys.modules and isinstance(cell, sys.modules["PIL.Image"].Image):
            return Picture(_as_png(cell, where), None, where)
        raise PosttrainError(
            f"{where}: an image is a path, encoded bytes, {{bytes, path}}, an image of PIL or a data URI, "
            f"not {_short(cell)}"
        )

    @property
    def cell(self) -> str:
        """What a row of JSON holds for it, and `of` reads again: its path, or a data URI."""
        if self.path is not None:
            return self.path
        return "data:application/octet-stream;base64," + base64.b64encode(self.read()).decode("ascii")

    @cached_property
    def digest(self) -> str:
        """The SHA-256 of the encoded bytes: the same picture encoded otherwise has another one."""
        return hashlib.sha256(self.read()).hexdigest()

    def read(self) -> bytes:
        """The encoded bytes. PosttrainError where the file cannot be read."""
        if self.data is not None:
            return self.data
        assert self.path is not None, "a picture has bytes or a path"
        try:
            return Path(self.path).read_bytes()
        except OSError as error:
            raise PosttrainError(f"{self.name}: {self._what} cannot be read: {error.strerror}") from None

    def check(self, most_pixels: int = MOST_PIXELS) -> tuple[int, int]:
        """(width, height) as they are stored, from the header alone, so a damaged body is not seen.

        Raises:
            PosttrainError: it is no image of a known format, is empty, or has more than `most_pixels`.
        """
        with self._header(most_pixels) as image:
            return image.size

    def open(self, most_pixels: int = MOST_PIXELS) -> Image.Image:
        """The image in RGB, turned as its EXIF orientation says.

        Grey, palette and CMYK become RGB; 16-bit grey is scaled to 8; what is transparent lies over white; of
        an animation the first frame is taken. Colour profiles are not applied.

        Raises:
            PosttrainError: as `check`, or its body is damaged or cut off, or its pixels are floating-point.
        """
        with self._header(most_pixels) as image:
            try:
                return _rgb(_upright(image))
            except Exception as error:  # any decoder's: many classes, one meaning
                raise PosttrainError(
                    f"{self.name}: {self._what} cannot be decoded: {_said(error)}; {_DO}"
                ) from None

    def _header(self, most_pixels: int) -> Image.Image:
        pil = _pil(self.name)
        data = self.read()
        if not data:
            raise PosttrainError(f"{self.name}: {self._what} is empty; {_DO}")
        try:
            image = pil.open(io.BytesIO(data), formats=FORMATS)
        except (pil.DecompressionBombError, pil.DecompressionBombWarning):
            raise PosttrainError(self._too_large("far too many", most_pixels)) from None
        except Exception as error:  # any format's reader: many classes, one meaning
            raise PosttrainError(f"{self.name}: {self._what} is no image: {_said(error)}; {_DO}") from None
        width, height = image.size
        if width < 1 or height < 1:
            raise PosttrainError(f"{self.name}: {self._what} is {width} x {height} pixels; {_DO}")
        if width * height > most_pixels:
            raise PosttrainError(self._too_large(f"{width} x {height}", most_pixels))
        return image

    def _too_large(self, pixels: str, most: int) -> str:
        return f"{self.name}: {self._what} has {pixels} pixels, more than {most:,}; make it smaller"

    @property
    def _what(self) -> str:
        return f"the image of {len(self.data):,} bytes" if self.data is not None else f"the image {self.path}"


def _pil(where: str) -> Any:
    try:
        from PIL import Image
    except ImportError:
        raise PosttrainError(f"{where}: images need Pillow: pip install 'posttrain[vision]'") from None
    return Image


def _found(path: str, where: str, folder: Path | None) -> str:
    if path[:8].lower().startswith(("http://", "https://")):
        raise PosttrainError(f"{where}: images are not fetched; download {path[:80]} and name the file")
    given = Path(path).expanduser()
    for start in (folder, Path.cwd()):
        try:
            if start is not None and (start / given).is_file():
                return str((start / given).resolve())
        except OSError:  # a name too long to be one
            pass
    there = f"{folder} or {Path.cwd()}" if folder is not None else f"{Path.cwd()}"
    raise PosttrainError(f"{where}: no image file {path[:200]!r} in {there}")


def _from_uri(uri: str, where: str) -> bytes:
    head, comma, body = uri.partition(",")
    try:
        if not comma or not head.lower().endswith(";base64"):
            raise ValueError("a data URI of an image is data:image/png;base64,…")
        data = base64.b64decode("".join(body.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise PosttrainError(f"{where}: the data URI {uri[:40]!r}… cannot be read: {error}") from None
    if not data:
        raise PosttrainError(f"{where}: the data URI has no bytes; {_DO}")
    return data


def _as_png(image: Any, where: str) -> bytes:
    file = io.BytesIO()
    try:
        _rgb(_upright(image)).save(file, "PNG", compress_level=1)
    except Exception as error:  # an image that is read only now may be damaged in many ways
        raise PosttrainError(f"{where}: the image cannot be kept as PNG: {_said(error)}; {_DO}") from None
    return file.getvalue()


def _upright(image: Image.Image) -> Image.Image:
    from PIL.Image import Transpose

    turns = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    image.load()  # TIFF is turned by this, and its note taken away
    try:
        turn = turns.get(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # a broken note beside the pixels says nothing about them
        turn = None
    return image if turn is None else image.transpose(turn)


def _rgb(image: Image.Image) -> Image.Image:
    from PIL import Image

    if image.mode == "F":
        raise PosttrainError("its pixels are floating-point numbers; save it in 8 or 16 bits")
    if image.mode.startswith("I"):
        return image.convert("I").point(lambda value: value * (1 / 257)).convert("L").convert("RGB")
    if image.has_transparency_data:
        over = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", over.size, "white"), over).convert("RGB")
    return image.convert("RGB")


def _said(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _short(value: Any) -> str:
    return f"{type(value).__name__} {repr(value)[:60]}"


class Scaled(NamedTuple):
    """An image brought to a size, and where its points went: x becomes x * scale[0] + shift[0].

    Boxes are [x1, y1, x2, y2] in pixels and are not cut off at the edge, so that one map undoes the other.
    """

    image: Image.Image
    scale: tuple[float, float]
    shift: tuple[float, float]

    def to(self, box: Box) -> Box:
        """A box of the given image in the one that came out."""
        (a, b), (s, t) = self.scale, self.shift
        return (box[0] * a + s, box[1] * b + t, box[2] * a + s, box[3] * b + t)

    def back(self, box: Box) -> Box:
        """A box of the image that came out in the given one."""
        (a, b), (s, t) = self.scale, self.shift
        return ((box[0] - s) / a, (box[1] - t) / b, (box[2] - s) / a, (box[3] - t) / b)


def square(image: Image.Image, side: int, filter: Filter = "bicubic") -> Scaled:
    """Stretched to side x side."""
    width, height = image.size
    return Scaled(_resized(image, (side, side), filter), (side / width, side / height), (0.0, 0.0))


def fit(image: Image.Image, side: int, filter: Filter = "bicubic") -> Scaled:
    """As large as fits into side x side with its aspect kept, in the middle of grey."""
    from PIL import Image

    width, height = image.size
    longer = max(width, height)
    w, h = (max(1, round(length * side / longer)) for length in image.size)
    left, top = (side - w) // 2, (side - h) // 2
    canvas = Image.new("RGB", (side, side), GREY)
    canvas.paste(_resized(image, (w, h), filter), (left, top))
    return Scaled(canvas, (w / width, h / height), (float(left), float(top)))


def crop(image: Image.Image, side: int, filter: Filter = "bicubic") -> Scaled:
    """The square in its middle, at side x side; what stands over is cut off."""
    width, height = image.size
    shorter = min(width, height)
    left, top = (width - shorter) / 2, (height - shorter) / 2
    scale = side / shorter
    made = _resized(image, (side, side), filter, (left, top, left + shorter, top + shorter))
    return Scaled(made, (scale, scale), (-left * scale, -top * scale))


def native(image: Image.Image, stride: int, most_pixels: int, filter: Filter = "bicubic") -> Scaled:
    """Near its own size and aspect: both sides multiples of `stride`, at most `most_pixels` in all."""
    width, height = image.size
    w, h = native_size(width, height, stride, most_pixels)
    return Scaled(_resized(image, (w, h), filter), (w / width, h / height), (0.0, 0.0))


def native_size(width: int, height: int, stride: int, most_pixels: int) -> tuple[int, int]:
    """(width, height) that `native` brings an image to. PosttrainError where one stride is over the bound."""
    most = most_pixels // stride**2
    if most < 1:
        raise PosttrainError(f"{most_pixels} pixels do not hold one patch of {stride} x {stride}; allow more")
    across, down = max(1, round(width / stride)), max(1, round(height / stride))
    if across * down > most:
        shrink = math.sqrt(most / (width * height)) * stride
        across = min(most, max(1, math.floor(width / stride * shrink)))
        down = min(most // across, max(1, math.floor(height / stride * shrink)))
    return across * stride, down * stride


def _resized(
    image: Image.Image, size: tuple[int, int], filter: Filter, box: Box | None = None
) -> Image.Image:
    from PIL.Image import Resampling

    return image.resize(size, Resampling.BICUBIC if filter == "bicubic" else Resampling.BILINEAR, box)

"""Images as rows hold them: opened by a policy, refused with the row's name, resized with a map for boxes."""

from __future__ import annotations

import base64
import hashlib
import io
import pickle
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from posttrain.picture import GREY, Picture, crop, fit, native, native_size, square
from posttrain.types import PosttrainError

WHERE = "data.train, row 7"


def encoded(image: Image.Image, format: str = "PNG", **how: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **how)
    return file.getvalue()


def noise(mode: str = "RGB", size: tuple[int, int] = (12, 8)) -> Image.Image:
    bands = len(Image.new(mode, (1, 1)).getbands())
    shape = (size[1], size[0], bands) if bands > 1 else (size[1], size[0])
    values = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    return Image.frombytes(mode, size, values.tobytes())


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Picture.of(data, WHERE).open())


def refusal(cell: Any, **how: Any) -> str:
    with pytest.raises(PosttrainError) as error:
        Picture.of(cell, WHERE).open(**how)
    assert str(error.value).startswith(WHERE)
    return str(error.value)


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_claiming(width: int, height: int) -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


# -- what rows hold


def test_every_way_of_holding_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = noise()
    data = encoded(image)
    (tmp_path / "é 画.png").write_bytes(data)
    uri = "data:image/png;base64," + base64.b64encode(data).decode()
    monkeypatch.chdir(tmp_path)
    cells = [
        data,
        bytearray(data),
        memoryview(data),
        {"bytes": data, "path": "elsewhere.png"},
        {"bytes": None, "path": "é 画.png"},
        str(tmp_path / "é 画.png"),
        tmp_path / "é 画.png",
        "é 画.png",
        uri,
        uri[:40] + "\n" + uri[40:],
        image,
        Picture(data),
    ]
    for cell in cells:
        picture = Picture.of(cell, WHERE)
        assert np.array_equal(np.asarray(picture.open()), np.asarray(image)), cell
        assert picture.check() == (12, 8)
        again = Picture.of(picture.cell, WHERE)
        assert again.digest == picture.digest == hashlib.sha256(picture.read()).hexdigest()
    same = [Picture.of(cell, WHERE).digest for cell in cells if cell is not image]
    assert set(same) == {hashlib.sha256(data).hexdigest()}


def test_a_relative_path_begins_at_the_data_files_folder_and_then_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "rows").mkdir()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.png").write_bytes(encoded(Image.new("RGB", (1, 1), "red")))
    assert Picture.of("a.png", WHERE, Path("rows")).path == str(tmp_path / "a.png")
    (tmp_path / "rows" / "a.png").write_bytes(encoded(Image.new("RGB", (1, 1), "blue")))
    picture = Picture.of("a.png", WHERE, Path("rows"))
    monkeypatch.chdir("/")
    assert picture.open().getpixel((0, 0)) == (0, 0, 255), "found for good, wherever the process goes"


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        ("nowhere.png", "no image file 'nowhere.png' in"),
        ("x" * 5000, "no image file"),
        ("a\0b", "no image file"),
        ({"bytes": None, "path": "no.png"}, "no image file 'no.png'"),
        ("https://example.org/a.png", "not fetched"),
        ("HTTP://example.org/a.png", "not fetched"),
        (b"", "no bytes"),
        ({"bytes": b"", "path": None}, "no bytes"),
        ("data:image/png;base64,", "no bytes"),
        ("data:image/png;base64,@@@", "cannot be read"),
        ("data:image/png,abc", "cannot be read"),
        ("data:image/png;base64", "cannot be read"),
        ("", "an image is a path"),
        (" ", "an image is a path"),
        ({"bytes": None, "path": None}, "an image is a path"),
        ({"url": "x"}, "not dict {'url': 'x'}"),
        (3, "not int 3"),
        (None, "not NoneType"),
        ([[0, 0]], "not list"),
    ],
)
def test_what_is_no_picture(cell: Any, words: str) -> None:
    assert words in refusal(cell)


def test_two_are_equal_whatever_they_are_called() -> None:
    data = encoded(noise())
    one, other = Picture.of(data, "row 1"), Picture.of(data, "row 2")
    assert one == other and hash(one) == hash(other)
    assert one != Picture.of(encoded(noise("L")), "row 1")
    assert len(repr(one)) < 100, "bytes stay out of messages"
    assert pickle.loads(pickle.dumps(one)).digest == one.digest


# -- opening


@pytest.mark.parametrize("mode", ["L", "RGB", "1"])
def test_plain_modes(mode: str) -> None:
    image = noise(mode)
    assert np.array_equal(pixels(encoded(image)), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_exif_orientation(orientation: int, format: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(noise(), format, exif=exif)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert np.array_equal(pixels(data), np.asarray(expected.convert("RGB")))
    if orientation >= 5:
        assert pixels(data).shape == (12, 8, 3)
    assert np.array_equal(np.asarray(Picture.of(Image.open(io.BytesIO(data)), WHERE).open()), pixels(data))


def test_a_broken_note_beside_the_pixels_is_passed_over() -> None:
    whole = encoded(noise(), "JPEG")
    junk = b"Exif\0\0" + b"II*\0\xff\xff\xff\x7f" * 3
    assert pixels(whole[:2] + b"\xff\xe1" + struct.pack(">H", len(junk) + 2) + junk + whole[2:]).shape == (
        8,
        12,
        3,
    )


def test_cmyk() -> None:
    data = encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=95)
    assert np.abs(pixels(data).astype(int) - [255, 0, 0]).max() < 8


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_sixteen_bit_grey_is_scaled(format: str) -> None:
    values = np.array([[0, 256, 257, 514, 32896, 65534, 65535]], dtype=np.uint16)
    found = pixels(encoded(Image.fromarray(values), format))
    assert np.abs(found[0, :, 0].astype(float) - values[0] / 257).max() < 1
    assert found[0, -1].tolist() == [255] * 3 and found[0, 4].tolist() == [128] * 3


def test_palette_and_transparency_lie_over_white() -> None:
    palette = noise().quantize(8)
    assert np.array_equal(pixels(encoded(palette)), np.asarray(palette.convert("RGB")))
    clear = Image.new("RGBA", (2, 1), (255, 0, 0, 255))
    clear.putpixel((1, 0), (0, 0, 0, 0))
    assert pixels(encoded(clear)).tolist() == [[[255, 0, 0], [255, 255, 255]]]
    half = Image.new("RGBA", (1, 1), (0, 0, 0, 128))
    assert abs(int(pixels(encoded(half))[0, 0, 0]) - 127) <= 1
    assert pixels(encoded(Image.new("LA", (1, 1), (0, 0)))).tolist() == [[[255] * 3]]
    marked = Image.new("P", (2, 1), 0)
    marked.putpalette([10, 20, 30, 40, 50, 60])
    marked.putpixel((1, 0), 1)
    assert pixels(encoded(marked, transparency=1)).tolist() == [[[10, 20, 30], [255, 255, 255]]]
    keyed = Image.new("RGB", (1, 1), (1, 2, 3))
    assert pixels(encoded(keyed, transparency=(1, 2, 3))).tolist() == [[[255] * 3]]


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_an_animation_the_first_frame(format: str) -> None:
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "blue", "green")]
    how = {"lossless": True} if format == "WEBP" else {}
    data = encoded(frames[0], format, save_all=True, append_images=frames[1:], **how)
    assert pixels(data)[0, 0].tolist() == [255, 0, 0]


def test_of_a_phones_photograph_with_a_second_image_the_first() -> None:
    frames = [Image.new("RGB", (16, 16), color) for color in ("red", "blue")]
    data = encoded(frames[0], "MPO", save_all=True, append_images=frames[1:])
    assert np.abs(pixels(data)[0, 0].astype(int) - [255, 0, 0]).max() < 8


@pytest.mark.parametrize("format", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM"])
def test_cut_off_files(format: str) -> None:
    data = encoded(noise(size=(64, 64)), format)
    assert pixels(data).shape == (64, 64, 3)
    for left in (len(data) // 2, len(data) - len(data) // 10, 20, 3, 1):
        assert "put it right or leave the row out" in refusal(data[:left]), left


def test_corrupt_bytes_never_end_otherwise_than_in_a_message() -> None:
    data = bytearray(encoded(noise(size=(32, 32))))
    rng = np.random.default_rng(1)
    opened = 0
    for _ in range(200):
        broken = bytearray(data)
        for at in rng.integers(8, len(data), 4):
            broken[at] = rng.integers(256)
        try:
            opened += Picture.of(bytes(broken), WHERE).open().mode == "RGB"
        except PosttrainError:
            continue
    assert opened < 200


@pytest.mark.parametrize(
    "data", [b"GIF89a", b"not an image", b"<svg/>", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"]
)
def test_what_is_no_image_of_a_known_format(data: bytes) -> None:
    assert "is no image" in refusal(data)
    with pytest.raises(PosttrainError, match="is no image"):
        Picture.of(data, WHERE).check()


def test_a_file_that_is_empty_or_has_gone(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"")
    assert "is empty" in refusal(str(path))
    picture = Picture.of(str(path), WHERE)
    path.unlink()
    with pytest.raises(PosttrainError, match="a.png cannot be read: No such file"):
        picture.digest  # noqa: B018


def test_a_bomb_is_refused_by_its_header() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for side in (8000, 12_000, 40_000, 2**31 - 1):
            assert "pixels, more than 50,000,000; make it smaller" in refusal(png_claiming(side, side))
    assert "0 x 4" in (said := refusal(png_claiming(0, 4))) or "is no image" in said
    assert "12 x 8 pixels, more than 95" in refusal(encoded(noise()), most_pixels=95)
    assert Picture.of(encoded(noise()), WHERE).open(most_pixels=96).size == (12, 8)


def test_floating_point_pixels_are_refused() -> None:
    assert "floating-point" in refusal(encoded(Image.new("F", (2, 2), 0.5), "TIFF"))


# -- sizes


def corner(image: Image.Image, color: tuple[int, ...]) -> tuple[int, int, int, int] | None:
    """The box of the pixels near a colour."""
    near = (np.abs(np.asarray(image).astype(int) - color).max(axis=2) < 100).astype(np.uint8)
    return Image.fromarray(near).getbbox()


@pytest.mark.parametrize("size", [(200, 100), (100, 200), (90, 90), (333, 47)])
@pytest.mark.parametrize("how", [square, fit, crop, native])
def test_boxes_go_where_the_pixels_go(how: Any, size: tuple[int, int]) -> None:
    box = (size[0] // 2 - 10, size[1] // 2 - 8, size[0] // 2 + 12, size[1] // 2 + 14)
    image = Image.new("RGB", size, "black")
    image.paste((255, 255, 255), box)
    scaled = how(image, 16, 100_000) if how is native else how(image, 96)
    if how is not native:
        assert scaled.image.size == (96, 96)
    found = corner(scaled.image, (255, 255, 255))
    assert found is not None
    assert np.abs(np.subtract(scaled.to(box), found)).max() <= 1.5
    assert np.allclose(scaled.back(scaled.to(box)), box)


def test_fit_pads_with_grey_and_crop_cuts() -> None:
    image = Image.new("RGB", (40, 20), "red")
    image.paste("blue", (0, 0, 5, 20))
    fitted = fit(image, 40)
    assert fitted.image.getpixel((20, 2)) == GREY and fitted.image.getpixel((20, 37)) == GREY
    assert fitted.to((0, 0, 40, 20)) == (0, 10, 40, 30)
    cropped = crop(image, 40)
    assert corner(cropped.image, (0, 0, 255)) is None, "what stands over is gone"
    assert cropped.to((10, 0, 30, 20)) == (0, 0, 40, 40)


@pytest.mark.parametrize("filter", ["bicubic", "bilinear"])
def test_filters_are_pillows(filter: Any) -> None:
    image = noise(size=(50, 30))
    kind = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}[filter]
    assert np.array_equal(
        np.asarray(square(image, 20, filter).image), np.asarray(image.resize((20, 20), kind))
    )


@pytest.mark.parametrize("how", [square, fit, crop])
def test_needles_stay_small_in_memory(how: Any) -> None:
    for size in ((1, 20_000), (20_000, 1), (1, 1)):
        assert how(Image.new("RGB", size), 8).image.size == (8, 8)


def test_native_sizes() -> None:
    assert native_size(224, 224, 14, 10**6) == (224, 224)
    assert native_size(230, 218, 14, 10**6) == (224, 224), "the nearest multiples"
    assert native_size(3, 3, 16, 10**6) == (16, 16)
    assert native_size(1, 100_000, 16, 256 * 100) == (16, 1600)
    for width, height in np.random.default_rng(0).integers(1, 5000, (300, 2)).tolist():
        w, h = native_size(width, height, 14, 100_000)
        assert w % 14 == h % 14 == 0 and 0 < w * h <= 100_000
        if min(w, h) > 14 * 8:
            assert abs(np.log(w / h) - np.log(width / height)) < 0.25, "the aspect stays"
        if w * h < 100_000 - 14 * (w + h + 14) and min(w, h) > 14:
            assert abs(w - width) <= 7 and abs(h - height) <= 7, "no smaller than it has to be"
    with pytest.raises(PosttrainError, match="do not hold one patch of 14 x 14"):
        native_size(10, 10, 14, 195)

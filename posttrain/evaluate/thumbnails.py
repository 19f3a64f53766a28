"""Small copies of the pictures that samples show, kept beside them: a report needs no source of rows."""

from __future__ import annotations

import base64
import hashlib
import io
import re
from pathlib import Path
from typing import Any

from posttrain.files import replace_bytes
from posttrain.picture import Picture

FOLDER = "pictures"  # in a run's folder
SIDE = 192  # pixels of the longer side at most
NAME = 16  # characters of a picture's digest that name its copy
LOOKED = re.compile(f"[0-9a-f]{{{NAME}}}-[0-9a-f]{{8}}-looked")  # as `looked` names a drawing
KINDS = {"png": "PNG", "jpg": "JPEG"}


def small(picture: Picture, side: int = SIDE) -> tuple[bytes, str, tuple[int, int]]:
    """-> a copy's bytes, "png" or "jpg", whichever is smaller, and the picture's own width and height.

    Raises:
        PosttrainError: the picture cannot be opened.
    """
    image = picture.open()
    size = image.size
    image.thumbnail((side, side))
    found: dict[str, bytes] = {}
    for kind, name in KINDS.items():
        file = io.BytesIO()
        image.save(file, name, optimize=True, **({"quality": 85} if kind == "jpg" else {}))
        found[kind] = file.getvalue()
    kind = min(found, key=lambda one: len(found[one]))
    return found[kind], kind, size


def keep(folder: Path, picture: Picture) -> dict[str, Any]:
    """Keep a copy in a run's folder; -> what a sample says of the picture: {"digest", "size": [w, h]}."""
    data, kind, size = small(picture)
    path = folder / FOLDER / f"{picture.digest[:NAME]}.{kind}"
    if not path.is_file():
        path.parent.mkdir(exist_ok=True)
        replace_bytes(path, data)
    return told(picture) | {"size": list(size)}


def looked(picture: Picture, prompt: str) -> str:
    """The name of the drawing of where a model looked in a prompt's picture; others may show the same one."""
    return f"{picture.digest[:NAME]}-{hashlib.sha256(prompt.encode()).hexdigest()[:8]}-looked"


def told(picture: Picture) -> dict[str, Any]:
    """What a sample says of a picture of which no copy is kept."""
    return {"digest": picture.digest[:NAME]}


def address(data: bytes, kind: str) -> str:
    """An encoded image as a data URI."""
    return f"data:image/{KINDS[kind].lower()};base64,{base64.b64encode(data).decode('ascii')}"


def kept(folder: Path, name: str) -> str | None:
    """The data URI of an image in a run's folder, named without its kind; None where there is none."""
    for kind in KINDS:
        try:
            return address((folder / FOLDER / f"{name}.{kind}").read_bytes(), kind)
        except OSError:
            continue
    return None

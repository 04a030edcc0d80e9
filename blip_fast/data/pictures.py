"""Reads pictures from files, and says which file is broken and why."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO

from PIL import Image

from blip_fast.data.roots import Root

# What PIL raises for missing, truncated, malformed and absurdly large pictures.
_PICTURE_ERRORS = (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError)


class BrokenSampleError(RuntimeError):
    """A picture or video cannot be read; the message names the file and the reason."""


Decode = Callable[[Image.Image], Image.Image]


def to_rgb(picture: Image.Image) -> Image.Image:
    """A picture as it was opened -> decoded, in RGB."""
    if picture.mode != "RGB":
        return picture.convert("RGB")
    picture.load()  # converting would copy it
    return picture


def read_picture(root: Root, path: str, decode: Decode = to_rgb) -> Image.Image:
    """The RGB picture in a file below ``root``. ``decode`` gets it as PIL opens it, with its size and not yet its pixels.

    Raises:
        BrokenSampleError: it cannot be read.
        ValueError: ``path`` is a link that leads out of the root.
    """
    return _decode(root.file(path), path, decode)


def decode_picture(data: bytes, name: str, decode: Decode = to_rgb) -> Image.Image:
    """The RGB picture encoded in ``data``; BrokenSampleError names it ``name``."""
    return _decode(BytesIO(data), name, decode)


def _decode(file: str | BytesIO, name: str, decode: Decode) -> Image.Image:
    try:
        with Image.open(file) as picture:
            return decode(picture)
    except _PICTURE_ERRORS as error:
        raise BrokenSampleError(f"{name}: {error}") from error

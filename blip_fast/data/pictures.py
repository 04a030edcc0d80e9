"""Reads pictures from files, and says which file is broken and why."""

from __future__ import annotations

from io import BytesIO

from PIL import Image

from blip_fast.data.roots import Root

# What PIL raises for missing, truncated, malformed and absurdly large pictures.
_PICTURE_ERRORS = (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError)


class BrokenSampleError(RuntimeError):
    """A picture or video cannot be read; the message names the file and the reason."""


def read_picture(root: Root, path: str) -> Image.Image:
    """The RGB picture in a file below ``root``.

    Raises:
        BrokenSampleError: it cannot be read.
        ValueError: ``path`` is a link that leads out of the root.
    """
    file = root.file(path)
    try:
        with Image.open(file) as picture:
            return picture.convert("RGB")
    except _PICTURE_ERRORS as error:
        raise BrokenSampleError(f"{path}: {error}") from error


def decode_picture(data: bytes, name: str) -> Image.Image:
    """The RGB picture encoded in ``data``; BrokenSampleError names it ``name``."""
    try:
        with Image.open(BytesIO(data)) as picture:
            return picture.convert("RGB")
    except _PICTURE_ERRORS as error:
        raise BrokenSampleError(f"{name}: {error}") from error

"""Reads pictures from files, and says which file is broken and why."""

from __future__ import annotations

from io import BytesIO

from PIL import Image

from blip_fast.data.roots import Root

# What PIL raises for missing, truncated, malformed and absurdly large pictures.
_PICTURE_ERRORS = (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError)


class BrokenSampleError(RuntimeError):
    """A picture or video cannot be read; the message names the file and the reason."""


def read_picture(root: Root, path: str, smallest_side: int | None = None) -> Image.Image:
    """The RGB picture in a file below ``root``, decoded at reduced size as :func:`decode_picture` does.

    Raises:
        BrokenSampleError: it cannot be read.
        ValueError: ``path`` is a link that leads out of the root.
    """
    return _decode(root.file(path), path, smallest_side)


def decode_picture(data: bytes, name: str, smallest_side: int | None = None) -> Image.Image:
    """The RGB picture encoded in ``data``; BrokenSampleError names it ``name``.

    With ``smallest_side`` the decoder may give a JPEG at a half, a quarter or an eighth of its size, in less time, while no
    side is shorter than that.
    """
    return _decode(BytesIO(data), name, smallest_side)


def _decode(file: str | BytesIO, name: str, smallest_side: int | None) -> Image.Image:
    try:
        with Image.open(file) as picture:
            if smallest_side is not None:
                picture.draft("RGB", (smallest_side, smallest_side))
            return picture.convert("RGB")
    except _PICTURE_ERRORS as error:
        raise BrokenSampleError(f"{name}: {error}") from error

"""Reads pictures from files, and says which file is broken and why."""

from __future__ import annotations

import contextlib
import functools
import os
import stat
from collections.abc import Callable, Iterator
from io import BytesIO
from typing import BinaryIO

from PIL import Image, UnidentifiedImageError

from blip_fast.data.roots import Root

MAX_PIXELS = 89_478_485  # PIL's own limit: larger pictures are mostly made to fill memory
MAX_BYTES = 256 * 2**20
# Not all that PIL knows: some of its readers start other programs.
_FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "MPO", "PNG", "PPM", "TIFF", "WEBP")


class BrokenSampleError(RuntimeError):
    """A picture or video cannot be read; the message names the file and the reason."""


Decode = Callable[[Image.Image], Image.Image]


def to_rgb(picture: Image.Image) -> Image.Image:
    """A picture as it was opened -> decoded, in RGB."""
    if picture.mode != "RGB":
        return picture.convert("RGB")
    picture.load()  # converting would copy it
    return picture


@functools.cache
def known_formats() -> tuple[str, ...]:
    """The formats that are read, as far as this PIL has them."""
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


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


def read_encoded(path: str) -> bytes:
    """A picture's file as it is. Raises OSError, BrokenSampleError where it is no regular file or too large."""
    check_file(path)
    with open(path, "rb") as file:
        return file.read()


def check_file(path: str, size: int | None = None) -> int:
    """How many bytes there are to read: ``size``, or those of the file.

    Raises BrokenSampleError where reading would never end or fill memory, OSError where there is no file.
    """
    found = os.stat(path)
    size = found.st_size if size is None else size
    if not stat.S_ISREG(found.st_mode):
        raise BrokenSampleError("is no regular file")
    if size > MAX_BYTES:
        raise BrokenSampleError(f"has {size} bytes; at most {MAX_BYTES} are read")
    return size


@contextlib.contextmanager
def opened(file: str | BinaryIO) -> Iterator[Image.Image]:
    """A picture as PIL opens it, of a known format and with at most `MAX_PIXELS`; BrokenSampleError for any other."""
    with Image.open(file, formats=known_formats()) as picture:
        width, height = picture.size
        if width * height > MAX_PIXELS:
            raise BrokenSampleError(f"has {width} x {height} pixels; at most {MAX_PIXELS} are decoded")
        yield picture


@contextlib.contextmanager
def failures_as_broken() -> Iterator[None]:
    """Whatever goes wrong with a picture is a BrokenSampleError with the reason in one line."""
    try:
        yield
    except BrokenSampleError:
        raise
    except UnidentifiedImageError as error:
        raise BrokenSampleError("is no picture in a known format") from error
    except Exception as error:  # decoders fail on hostile bytes in any way
        raise BrokenSampleError(" ".join(f"{type(error).__name__}: {error}".split())[:300]) from error


def _decode(file: str | BytesIO, name: str, decode: Decode) -> Image.Image:
    try:
        with failures_as_broken():
            if isinstance(file, str):
                check_file(file)
            with opened(file) as picture:
                return decode(picture)
    except BrokenSampleError as error:
        raise BrokenSampleError(f"{name}: {error}") from error

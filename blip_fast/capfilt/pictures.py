"""Pictures of web sets: from files below a folder, or from bytes; strangers made both."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import IO

from PIL import Image

from blip_fast.data.pairs import BrokenImageError

# What PIL raises for missing, truncated, malformed and absurdly large pictures.
_PICTURE_ERRORS = (OSError, ValueError, SyntaxError, EOFError, MemoryError, Image.DecompressionBombError)


def file_below(image_root: Path, image: str) -> str:
    """Absolute path of ``image`` below ``image_root``, links followed. Raises BrokenImageError where it leads out."""
    path = os.path.realpath(os.path.join(image_root, image))
    if not is_below(path, image_root):
        raise BrokenImageError(f"it leads out of image_root={image_root}")
    return path


def is_below(path: str, root: Path) -> bool:
    """Whether an absolute path lies below ``root``, judged by its text."""
    return os.path.commonpath([path, root]) == str(root)


def decode(file: str | IO[bytes]) -> Image.Image:
    """The RGB picture in a file. Raises BrokenImageError where it cannot be read."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # twice that size is an error
            with Image.open(file) as picture:
                return picture.convert("RGB")
    except _PICTURE_ERRORS as error:
        raise BrokenImageError(f"{type(error).__name__}: {error}") from error

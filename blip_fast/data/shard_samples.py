"""How files of a webdataset shard make up samples: which belong together, and which of them is the picture and the text."""

from __future__ import annotations

import json
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from typing import TypeVar

from webdataset.tariterators import base_plus_ext

PICTURE_SUFFIXES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff")
TEXT_SUFFIXES = ("txt", "text", "caption", "json")  # in the order in which they are preferred
File = TypeVar("File")


class DamagedShardError(Exception):
    """A shard that cannot be read on; ``key`` names the sample in which it broke off, None at the start."""

    def __init__(self, key: str | None, cause: Exception) -> None:
        super().__init__(str(cause))
        self.key = key


def group_files(files: Iterable[tuple[str, File]]) -> Iterator[tuple[str, dict[str, File]]]:
    """Key and files by suffix, in small letters, of each sample: consecutive files of one name up to the first dot.

    A sample also ends where a suffix comes up again. Raises DamagedShardError where reading ``files`` fails; the sample
    in which it does is lost.
    """
    current: str | None = None
    group: dict[str, File] = {}
    try:
        for name, file in files:
            key, suffix = base_plus_ext(name)
            if key is None:
                continue
            if key != current or suffix.lower() in group:
                if current is not None:
                    yield current, group
                current, group = key, {}
            group[suffix.lower()] = file
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise DamagedShardError(current, error) from error
    if current is not None:
        yield current, group


def caption_of(text: bytes, is_json: bool) -> str | None:
    """The caption in a sample's text: the text itself, or "caption" or "text" of a JSON object. None where there is none."""
    if not is_json:
        return text.decode("utf-8", errors="replace")
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):  # deep nesting
        return None
    captions = [values.get(name) for name in ("caption", "text")] if isinstance(values, dict) else []
    return next((caption for caption in captions if isinstance(caption, str)), None)

"""The samples of a unit: a picture and its web text each, with what is wrong with them."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from blip_fast.capfilt.json_list import read_entries
from blip_fast.capfilt.units import Unit
from blip_fast.data.pictures import MAX_BYTES, BrokenSampleError, decode_picture, read_encoded, read_picture
from blip_fast.data.roots import Root
from blip_fast.data.shard_samples import (
    PICTURE_SUFFIXES,
    TEXT_SUFFIXES,
    DamagedShardError,
    caption_of,
    group_files,
)
from blip_fast.data.tar_index import plain_members, tar_members

Parts = dict[str, bytes | None]  # None: too large to be read


@dataclasses.dataclass(frozen=True)
class WebSample:
    """One sample as it was found.

    Attributes:
        number: its place in the unit, from 0.
        key: what its random numbers derive from: its name in a shard; "key" of an entry, or else picture and text.
        image: the entry's path, or "shard::member".
        text: web text as written; "" where there is none.
        data: encoded picture of a shard.
        suffix: the file name extension of the picture, without dot.
        problem: reason for leaving it out, and details; None for a sound sample.
    """

    number: int
    key: str
    image: str
    text: str
    data: bytes | None = None
    suffix: str = ""
    problem: tuple[str, str] | None = None

    def picture(self, root: Root) -> Image.Image:
        """The decoded RGB picture. Raises BrokenSampleError where it cannot be read or lies outside of ``root``."""
        if self.data is not None:
            return decode_picture(self.data, self.image)
        if not root.covers(self.image):
            raise BrokenSampleError(f"{self.image} leads out of {root}")
        try:
            return read_picture(root, self.image)
        except ValueError as error:  # a link that leads out
            raise BrokenSampleError(str(error)) from error

    def encoded(self, root: Root) -> bytes:
        """The picture's file as it is."""
        return read_encoded(root.file(self.image)) if self.data is None else self.data


def read_samples(unit: Unit) -> Iterator[WebSample]:
    """All samples of a unit, the broken ones too; a key that occurred before in the unit makes a sample broken."""
    seen: set[bytes] = set()
    for sample in _read_shard(unit) if unit.is_shard else _read_list(unit):
        digest = hashlib.sha256(sample.key.encode(errors="surrogatepass")).digest()[:16]
        if sample.problem is None and digest in seen:
            sample = dataclasses.replace(sample, problem=("duplicate_key", ""))
        seen.add(digest)
        yield sample


def root_of(unit: Unit, image_root: Path | None) -> Root:
    """Where the pictures of a unit lie: the root that was given, or the folder of its list."""
    return Root(image_root or Path(unit.source).parent)


def _read_list(unit: Unit) -> Iterator[WebSample]:
    for number, (_, entry) in enumerate(itertools.islice(read_entries(unit.source, unit.start), unit.entries)):
        yield _from_entry(number, entry)


def _from_entry(number: int, entry: Any) -> WebSample:
    if not isinstance(entry, dict):
        return _bad(number, f"a {type(entry).__name__}; expected an object with 'image' and 'caption'")
    image, text, key = entry.get("image"), entry.get("caption"), entry.get("key")
    if not isinstance(image, str) or not image or "\0" in image:
        return _bad(number, f"'image' is {image!r:.80}; expected a path")
    if text is not None and not isinstance(text, str):
        return dataclasses.replace(_bad(number, f"'caption' is {text!r:.80}; expected a string"), image=image)
    text = text or ""
    # Without a key of its own a pair is known by both of its halves: a picture may come with several texts.
    own = f"{image}#{hashlib.sha256(text.encode(errors='surrogatepass')).hexdigest()[:12]}"
    suffix = os.path.splitext(image)[1].lstrip(".").lower()
    return WebSample(number, own if key is None else str(key), image, text, suffix=suffix)


def _bad(number: int, detail: str) -> WebSample:
    return WebSample(number, f"entry {number}", "", "", problem=("bad_entry", detail))


def _read_shard(unit: Unit) -> Iterator[WebSample]:
    numbers = itertools.count()
    try:
        for key, parts in group_files(_members(unit.source)):
            yield _from_parts(next(numbers), key, parts, unit)
    except DamagedShardError as error:
        detail = f"the shard is cut off or damaged: {error}"
        yield WebSample(next(numbers), error.key or "start of the shard", "", "", problem=("damaged_shard", detail))


def _members(source: str) -> Iterator[tuple[str, bytes | None]]:
    """Name and content of the files in a shard, None for too large a one. Raises what :func:`group_files` takes for damage."""
    try:
        yield from _plain_members(source) if source.endswith(".tar") else _compressed_members(source)
    except (ValueError, OverflowError, RecursionError, MemoryError) as error:  # so tarfile fails on hostile headers
        raise tarfile.ReadError(f"{type(error).__name__}: {error}") from error


def _plain_members(source: str) -> Iterator[tuple[str, bytes | None]]:
    with open(source, "rb") as file:
        for member in tar_members(Path(source)):
            file.seek(member.offset_data)
            yield member.name, file.read(member.size) if member.size <= MAX_BYTES else None


def _compressed_members(source: str) -> Iterator[tuple[str, bytes | None]]:
    """As `tar_members` finds them, and from start to end only."""
    with tarfile.open(source, "r:gz") as archive:
        for member in plain_members(archive):
            file = archive.extractfile(member)
            assert file is not None
            yield member.name, file.read() if member.size <= MAX_BYTES else None


def _from_parts(number: int, key: str, parts: Parts, unit: Unit) -> WebSample:
    suffix = next((suffix for suffix in PICTURE_SUFFIXES if suffix in parts), None)
    if suffix is None:
        detail = f"it has {', '.join(sorted(parts))}; expected one of {', '.join(PICTURE_SUFFIXES)}"
        return WebSample(number, key, f"{unit.source}::{key}", "", problem=("no_picture", detail))
    data, image = parts[suffix], f"{unit.source}::{key}.{suffix}"
    problem = ("broken_picture", f"{image}: has more than {MAX_BYTES} bytes") if data is None else None
    return WebSample(number, key, image, _text_of(parts), data, suffix, problem)


def _text_of(parts: Parts) -> str:
    """The web text: a text file's, or "caption" or "text" of the sample's JSON; "" where there is none."""
    for suffix in TEXT_SUFFIXES:
        data = parts.get(suffix)
        if data is not None:
            return caption_of(data, is_json=suffix == "json") or ""
    return ""

"""The bootstrapped set (paper section 3.3): kept web and synthetic pairs and the human ones, as a list or as shards."""

from __future__ import annotations

import itertools
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import webdataset

from blip_fast.capfilt.json_list import read_entries
from blip_fast.capfilt.samples import WebSample, read_samples, root_of
from blip_fast.capfilt.scoring import is_empty, unicode_text
from blip_fast.capfilt.tally import Record, texts_of
from blip_fast.capfilt.units import Unit
from blip_fast.checkpoints.files import write_atomically
from blip_fast.data.pictures import BrokenSampleError, read_encoded
from blip_fast.data.roots import Root
from blip_fast.data.shard_samples import PICTURE_SUFFIXES


def kept_pairs(records: Iterable[Record], root: Root) -> Iterator[dict[str, str]]:
    """{image: full path, caption} of every kept text of decided records, the web text first."""
    for record in records:
        for _, text in () if "rejected" in record else texts_of(record):
            if text["kept"]:
                yield {"image": os.path.join(root.path, record["image"]), "caption": unicode_text(text["text"])}


def human_pairs(
    files: Iterable[str], human_root: Path | None, rejected: Counter[str], follow_links: bool
) -> Iterator[dict[str, str]]:
    """{image: full path, caption} of the human pairs; a reason in ``rejected`` for each that is left out.

    An entry with several captions gives a pair for each. ``follow_links`` where the pictures will be read.
    """
    for file in files:
        root = Root(human_root or Path(file).parent, "human_root")
        for _, entry in read_entries(file):
            captions = entry.get("caption") if isinstance(entry, dict) else None
            for caption in captions if isinstance(captions, list) and captions else [captions]:
                pair = _human_pair(entry, caption, root, follow_links)
                if isinstance(pair, str):
                    rejected[pair] += 1
                else:
                    yield pair


def check_human(files: Iterable[str], human_root: Path | None) -> None:
    """Look at the beginning of each list, so that a wrong name is found before hours of scoring.

    Raises FileNotFoundError where a file or the root is missing, ValueError where a file is no list.
    """
    for file in files:
        if not os.path.isfile(file):
            raise FileNotFoundError(f"human={file!r} is no file; expected a JSON list")
        Root(human_root or Path(file).parent, "human_root")
        next(read_entries(file), None)


def _human_pair(entry: Any, caption: Any, root: Root, follow_links: bool) -> dict[str, str] | str:
    """The pair, or why there is none."""
    image = entry.get("image") if isinstance(entry, dict) else None
    if not isinstance(image, str) or not image or "\0" in image or not isinstance(caption, str):
        return "bad_entry"
    if is_empty(caption):
        return "empty"
    try:
        path = root.file(image) if follow_links else os.path.join(root.path, image)
    except ValueError:
        return "outside_of_root"
    return {"image": path, "caption": unicode_text(caption)} if root.covers(image) else "outside_of_root"


def write_shard(path: Path, unit: Unit, records: Iterable[Record], image_root: Path | None) -> int:
    """Write the kept pairs of a unit as a webdataset shard and return their number; equal records give equal bytes.

    A sample per pair: the picture's file as it is, ``txt`` the caption, ``json`` key, kind and scores. Their names are
    counted: keys of strangers may be anything.
    """
    sounds = (record for record in records if "rejected" not in record)
    root = root_of(unit, image_root)

    def samples() -> Iterator[dict[str, Any]]:
        for sample, record in _join(read_samples(unit), sounds):
            kinds = Counter[str]()
            for kind, text in texts_of(record):
                name = f"{unit.name}-{record['number']:06d}-{kind}-{kinds[kind]}"
                kinds[kind] += 1
                if text["kept"]:
                    values = {"key": record["key"], "kind": kind, "seed": record["seed"]} | text
                    yield tar_sample(name, sample.suffix, sample.encoded(root), text["text"], values)

    return write_tar(path, samples())


def write_human_shard(path: Path, pairs: Iterable[dict[str, str]], name: str, rejected: Counter[str]) -> int:
    """Write human pairs as a shard and return their number; pictures that cannot be read count in ``rejected``."""

    def samples() -> Iterator[dict[str, Any]]:
        for number, pair in enumerate(pairs):
            suffix = os.path.splitext(pair["image"])[1].lstrip(".").lower()
            try:
                data = read_encoded(pair["image"])
            except (OSError, BrokenSampleError):
                rejected["broken_picture"] += 1
                continue
            yield tar_sample(
                f"{name}-{number:06d}", suffix, data, pair["caption"], {"key": pair["image"], "kind": "human"}
            )

    return write_tar(path, samples())


def tar_sample(name: str, suffix: str, data: bytes, caption: str, values: dict[str, Any]) -> dict[str, Any]:
    """A sample as webdataset writes it."""
    text = unicode_text(caption).encode()
    suffix = suffix if suffix in PICTURE_SUFFIXES else "jpg"  # pictures are known by their content
    return {"__key__": name, suffix: data, "txt": text, "json": json.dumps(values).encode()}


def write_tar(path: Path, samples: Iterable[dict[str, Any]]) -> int:
    """Write samples as a shard that appears when it is complete; returns how many there are."""
    count = 0

    def write(beside: Path) -> None:
        nonlocal count
        with beside.open("wb") as file, webdataset.TarWriter(file, encoder=False, mtime=0) as writer:
            for sample in samples:
                writer.write(sample)
                count += 1

    write_atomically(path, write)
    return count


def _join(samples: Iterator[WebSample], records: Iterator[Record]) -> Iterator[tuple[WebSample, Record]]:
    """Each record with its sample; both are in order of their numbers."""
    for record in records:
        sample = next(itertools.dropwhile(lambda sample: sample.number != record["number"], samples))  # noqa: B023
        yield sample, record

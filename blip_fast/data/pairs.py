"""Image-caption pairs from JSON annotation files: lists of ``{"image": path, "caption": text[, "image_id": id]}``."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.utils.data import Dataset

from blip_fast.data.text import pre_caption

# What PIL raises for missing, truncated, malformed and absurdly large pictures.
_PICTURE_ERRORS = (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError)


class BrokenImageError(RuntimeError):
    """A picture cannot be read; the message names the file and the reason."""


@dataclasses.dataclass(frozen=True)
class PairRecord:
    """One entry of an annotation file: path below the image root, caption as written, id (or the path)."""

    image: str
    caption: str
    image_id: str


@dataclasses.dataclass(frozen=True)
class Pair:
    """One sample: image (3, S, S) float32, cleaned caption, index, and the pictures skipped on the way to it."""

    image: torch.Tensor
    caption: str
    index: int
    broken: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class PairBatch:
    """A batch: images (B, 3, S, S) float32, captions (B), indices (B) int64, broken pictures met while loading it."""

    images: torch.Tensor
    captions: list[str]
    indices: torch.Tensor
    broken: tuple[str, ...]


class PairDataset(Dataset[Pair]):
    """Pairs of the annotation files, pictures taken from below ``image_root`` and nowhere else.

    A path that leads out of ``image_root`` is an error, found when the annotations are read (symbolic links: when the
    picture is). A broken picture is replaced by the next readable one and named in ``Pair.broken``, so that the
    training loop can count it; with ``skip_broken=False`` it raises :class:`BrokenImageError`, for evaluation.
    ``keep_decoded`` holds the decoded pictures in memory: for small sets only.
    """

    def __init__(
        self,
        annotation_files: Sequence[str | os.PathLike[str]],
        image_root: str | os.PathLike[str],
        transform: Callable[[Image.Image], torch.Tensor],
        max_words: int = 30,
        skip_broken: bool = True,
        keep_decoded: bool = False,
    ) -> None:
        self.image_root = Path(image_root).resolve()
        self.records = [record for file in annotation_files for record in read_records(file, self.image_root)]
        if not self.records:
            raise ValueError(f"annotation_files={[str(file) for file in annotation_files]} hold no pairs")
        self.transform = transform
        self.max_words = max_words
        self.skip_broken = skip_broken
        self._decoded: dict[int, Image.Image] | None = {} if keep_decoded else None

    def __len__(self) -> int:
        return len(self.records)

    @property
    def captions(self) -> list[str]:
        """All captions, cleaned as for training."""
        return [pre_caption(record.caption, self.max_words) for record in self.records]

    def __getitem__(self, index: int) -> Pair:
        broken: list[str] = []
        for step in range(len(self)):
            number = (index + step) % len(self)
            record = self.records[number]
            try:
                picture = self.picture(number)
            except BrokenImageError as error:
                if not self.skip_broken:
                    raise
                broken.append(str(error))
                continue
            caption = pre_caption(record.caption, self.max_words)
            return Pair(self.transform(picture), caption, number, tuple(broken))
        raise BrokenImageError(f"none of the {len(self)} pictures can be read; the first: {broken[0]}")

    def picture(self, index: int) -> Image.Image:
        """The decoded RGB picture of one pair."""
        if self._decoded is not None and index in self._decoded:
            return self._decoded[index]
        picture = _read_picture(self.image_root, self.records[index].image)
        if self._decoded is not None:
            self._decoded[index] = picture
        return picture


def collate_pairs(pairs: Sequence[Pair]) -> PairBatch:
    """Stack pairs to a batch."""
    return PairBatch(
        images=torch.stack([pair.image for pair in pairs]),
        captions=[pair.caption for pair in pairs],
        indices=torch.tensor([pair.index for pair in pairs], dtype=torch.int64),
        broken=tuple(message for pair in pairs for message in pair.broken),
    )


def read_records(file: str | os.PathLike[str], image_root: Path) -> list[PairRecord]:
    """Read and check one annotation file; errors name the file and the entry."""
    try:
        entries = json.loads(Path(file).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"annotation file {file} is not JSON: {error}") from error
    if not isinstance(entries, list):
        raise ValueError(f"annotation file {file} holds a {type(entries).__name__}; expected a list of pairs")
    return [_to_record(entry, f"annotation file {file}, entry {n}", image_root) for n, entry in enumerate(entries)]


def _to_record(entry: Any, where: str, image_root: Path) -> PairRecord:
    if not isinstance(entry, dict):
        raise ValueError(f"{where}: is a {type(entry).__name__}; expected an object with 'image' and 'caption'")
    for name in ("image", "caption"):
        if not isinstance(entry.get(name), str) or not entry[name]:
            raise ValueError(f"{where}: '{name}' is {entry.get(name)!r}; expected a non-empty string")
    image = entry["image"]
    # A check of the text only: touching millions of files here would take minutes.
    if "\0" in image or not _is_below(os.path.normpath(os.path.join(image_root, image)), image_root):
        raise ValueError(f"{where}: image {image!r} leads out of image_root={image_root}")
    return PairRecord(image=image, caption=entry["caption"], image_id=str(entry.get("image_id", image)))


def _read_picture(image_root: Path, image: str) -> Image.Image:
    path = os.path.realpath(os.path.join(image_root, image))
    if not _is_below(path, image_root):
        raise ValueError(f"image {image!r} is a link that leads out of image_root={image_root}, to {path}")
    try:
        with Image.open(path) as picture:
            return picture.convert("RGB")
    except _PICTURE_ERRORS as error:
        raise BrokenImageError(f"{image}: {error}") from error


def _is_below(path: str, root: Path) -> bool:
    return os.path.commonpath([path, root]) == str(root)

"""Pre-training pairs: lists of ``{"image": path, "caption": text}``, and large lists taken in turns by epoch."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from PIL import Image

from blip_fast.data.annotations import Entry, Paths, read_records
from blip_fast.data.bad_samples import BadSamples
from blip_fast.data.batches import Batch, Sample, broken_in
from blip_fast.data.packing import PackedTexts, pack_lists
from blip_fast.data.records import PackedRecords
from blip_fast.data.roots import Root
from blip_fast.data.samples import OnBroken, PictureData, Transform
from blip_fast.data.text import pre_caption
from blip_fast.data.tokens import TextEncoder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclasses.dataclass(frozen=True)
class PairRecord:
    """One pair of an annotation file: path below the image root, caption as written, id (or the path)."""

    image: str
    caption: str
    image_id: str


@dataclasses.dataclass(frozen=True)
class PairSample(Sample):
    """A picture (3, S, S) float32, its cleaned caption, the caption's ids, and the pair's index."""

    image: torch.Tensor
    caption: str
    tokens: list[int]
    index: int


@dataclasses.dataclass(frozen=True)
class PretrainBatch(Batch):
    """B pairs: images (B, 3, S, S) float32, packed captions, the captions as strings, indices (B,) int64."""

    images: torch.Tensor
    texts: PackedTexts
    captions: tuple[str, ...]
    indices: torch.Tensor


def collate_pairs(samples: Sequence[PairSample]) -> PretrainBatch:
    """Stack pictures, pack captions."""
    return PretrainBatch(
        images=torch.stack([sample.image for sample in samples]),
        texts=pack_lists([sample.tokens for sample in samples]),
        captions=tuple(sample.caption for sample in samples),
        indices=torch.tensor([sample.index for sample in samples]),
        broken=broken_in(samples),
    )


class PretrainData(PictureData[PairSample, PairRecord]):
    """Pairs of the annotation files, followed by those of one file of ``rotating``.

    ``rotating`` are files of which only one is read at a time, another after each :meth:`set_epoch`: the published
    ``laion_path``, whose files are taken in the order of their names. Published lists hold full paths: they go with
    ``image_root="/"``.

    Args:
        annotation_files: JSON lists, or JSON lines; may be empty where ``rotating`` is not.
        image_root: pictures are read from below it and nowhere else.
        transform: PIL picture to tensor (3, S, S).
        max_words: captions are cut to so many words.
        tokenizer, max_tokens: of a model with another vocabulary or length than the published.
        bad: where malformed entries are counted; None: the first one raises.
        on_broken, keep_decoded: see `PictureData`.
    """

    def __init__(
        self,
        annotation_files: Paths,
        image_root: str | os.PathLike[str],
        transform: Transform,
        *,
        rotating: Paths = (),
        max_words: int = 30,
        tokenizer: PreTrainedTokenizerBase | None = None,
        max_tokens: int | None = None,
        bad: BadSamples | None = None,
        on_broken: OnBroken = "replace",
        keep_decoded: bool = False,
    ) -> None:
        super().__init__(transform, on_broken, keep_decoded)
        self.root = Root(image_root)
        self.max_words = max_words
        self.encoder = TextEncoder("pretrain", tokenizer, max_tokens)
        self.rotating = sorted(Path(file) for file in rotating)
        self._bad = bad
        self._rotated: Path | None = None  # the file of ``rotating`` that has been read
        self._fixed = self._read(annotation_files) if annotation_files or not self.rotating else ()
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Take file number ``epoch`` of ``rotating``, counted round; the length may change with it."""
        if not self.rotating:
            self.records: Sequence[PairRecord] = self._fixed
            return
        file = self.rotating[epoch % len(self.rotating)]
        if file != self._rotated:
            self.records, self._rotated = JoinedRecords(self._fixed, self._read([file])), file

    def make_sample(self, index: int, broken: list[str]) -> PairSample:
        record = self.records[index]
        caption = pre_caption(record.caption, self.max_words)
        return PairSample(self.image(self.root, record.image, broken), caption, self.encoder(caption), index)

    @property
    def captions(self) -> list[str]:
        """All captions, cleaned as for training."""
        return [pre_caption(record.caption, self.max_words) for record in self.records]

    def picture(self, index: int) -> Image.Image:
        """The decoded RGB picture of one pair."""
        return self.picture_file(self.root, self.records[index].image)

    collate = staticmethod(collate_pairs)

    def _read(self, files: Paths) -> PackedRecords[PairRecord]:
        return read_records(files, PairRecord, self._to_record, self._bad)

    def _to_record(self, entry: Entry) -> PairRecord:
        image = entry.path("image", self.root)
        image_id = str(entry.id("image_id")) if "image_id" in entry else image
        return PairRecord(image, entry.text("caption"), image_id)


class JoinedRecords(Sequence[PairRecord]):
    """Records of two sequences, one after the other."""

    def __init__(self, first: Sequence[PairRecord], second: Sequence[PairRecord]) -> None:
        self.first, self.second = first, second

    def __len__(self) -> int:
        return len(self.first) + len(self.second)

    def __getitem__(self, index: int) -> PairRecord:  # type: ignore[override]
        number = range(len(self))[index]
        return self.first[number] if number < len(self.first) else self.second[number - len(self.first)]

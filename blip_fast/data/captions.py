"""Captioning on COCO (Karpathy's split) and NoCaps."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

import torch

from blip_fast.data.annotations import Entry, Paths, read_records
from blip_fast.data.bad_samples import BadSamples
from blip_fast.data.batches import Batch, ImageSample, Sample, broken_in, collate_images
from blip_fast.data.packing import PackedTexts, pack_lists
from blip_fast.data.roots import Root
from blip_fast.data.samples import OnBroken, PictureData, Transform
from blip_fast.data.text import pre_caption
from blip_fast.data.tokens import PROMPT, TextEncoder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_LAST_DIGITS = re.compile(r"(?:.*_)?(\d+)")


@dataclasses.dataclass(frozen=True)
class CaptionRecord:
    """One entry of a training file: path below the image root, caption as written."""

    image: str
    caption: str


@dataclasses.dataclass(frozen=True)
class ImageRecord:
    """One entry of an evaluation file: path below the image root, id of the image, its true captions as written, if any."""

    image: str
    image_id: int | str
    captions: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class CaptionSample(Sample):
    """A picture (3, S, S) float32, its cleaned caption with the prompt before it, and their ids."""

    image: torch.Tensor
    caption: str
    tokens: list[int]


@dataclasses.dataclass(frozen=True)
class CaptionBatch(Batch):
    """B pairs: images (B, 3, S, S) float32; captions with the prompt before them, packed and as strings."""

    images: torch.Tensor
    texts: PackedTexts
    captions: tuple[str, ...]


class CaptionTrainData(PictureData[CaptionSample, CaptionRecord]):
    """Pairs of ``coco_karpathy_train.json``; every caption is trained with ``prompt`` in front.

    Arguments as for `PretrainData`. ``prompt_length`` is the number of tokens at the start of every text, [CLS] among
    them, that the model is not to learn (4 for "a picture of ").
    """

    def __init__(
        self,
        annotation_files: Paths,
        image_root: str | os.PathLike[str],
        transform: Transform,
        *,
        prompt: str = PROMPT,
        max_words: int = 30,
        tokenizer: PreTrainedTokenizerBase | None = None,
        max_tokens: int | None = None,
        bad: BadSamples | None = None,
        on_broken: OnBroken = "replace",
        keep_decoded: bool = False,
    ) -> None:
        super().__init__(transform, on_broken, keep_decoded)
        self.root = Root(image_root)
        self.prompt = prompt
        self.max_words = max_words
        self.encoder = TextEncoder("caption", tokenizer, max_tokens)
        self.prompt_length = len(self.encoder(prompt)) - 1
        self.records = read_records(annotation_files, CaptionRecord, self._to_record, bad)

    def make_sample(self, index: int, broken: list[str]) -> CaptionSample:
        record = self.records[index]
        caption = self.prompt + pre_caption(record.caption, self.max_words)
        return CaptionSample(self.image(self.root, record.image, broken), caption, self.encoder(caption))

    @staticmethod
    def collate(samples: Sequence[CaptionSample]) -> CaptionBatch:
        """Stack pictures, pack captions."""
        return CaptionBatch(
            images=torch.stack([sample.image for sample in samples]),
            texts=pack_lists([sample.tokens for sample in samples]),
            captions=tuple(sample.caption for sample in samples),
            broken=broken_in(samples),
        )

    def _to_record(self, entry: Entry) -> CaptionRecord:
        return CaptionRecord(entry.path("image", self.root), entry.text("caption"))


class CaptionEvalData(PictureData[ImageSample, ImageRecord]):
    """Pictures of ``coco_karpathy_{val,test}.json``: ``{"image": path, "caption": [text, ...]}``, where captions may lack.

    The id of an image is its entry's ``image_id``, or else the digits after the last ``_`` of the file's name, as published.
    """

    def __init__(
        self,
        annotation_file: str | os.PathLike[str],
        image_root: str | os.PathLike[str],
        transform: Transform,
        *,
        bad: BadSamples | None = None,
        on_broken: OnBroken = "raise",
        keep_decoded: bool = False,
    ) -> None:
        super().__init__(transform, on_broken, keep_decoded)
        self.root = Root(image_root)
        self.records = read_records([annotation_file], ImageRecord, self._to_record, bad)

    def make_sample(self, index: int, broken: list[str]) -> ImageSample:
        record = self.records[index]
        return ImageSample(self.image(self.root, record.image, broken), index, record.image_id)

    collate = staticmethod(collate_images)

    def _to_record(self, entry: Entry) -> ImageRecord:
        captions = entry.texts("caption") if entry.fields.get("caption") else ()
        return ImageRecord(entry.path("image", self.root), self._image_id(entry), captions)

    def _image_id(self, entry: Entry) -> int | str:
        if "image_id" in entry:
            return entry.id("image_id")
        digits = _LAST_DIGITS.fullmatch(PurePosixPath(entry.text("image")).stem)
        if digits is None:
            raise entry.error("image", "a file name that ends in the image's number, or an 'image_id'")
        return int(digits[1])


class NoCapsData(CaptionEvalData):
    """Pictures of ``nocaps_{val,test}.json``: ``{"image": path, "img_id": id}``; digits in quotes are a number."""

    def _image_id(self, entry: Entry) -> int | str:
        number = entry.id("img_id")
        return int(number) if isinstance(number, str) and number.isdecimal() else number

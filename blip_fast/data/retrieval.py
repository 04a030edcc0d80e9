"""Retrieval on COCO (Karpathy's split) and Flickr30k: pairs to train on, pictures with several captions to evaluate."""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from blip_fast.data.annotations import Entry, Paths, read_records
from blip_fast.data.bad_samples import BadSamples
from blip_fast.data.batches import Batch, ImageSample, Sample, broken_in, collate_images
from blip_fast.data.packing import PackedTexts, pack_lists, pad_lists
from blip_fast.data.roots import Root
from blip_fast.data.samples import OnBroken, PictureData, Transform
from blip_fast.data.text import pre_caption
from blip_fast.data.tokens import TextEncoder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclasses.dataclass(frozen=True)
class CaptionedRecord:
    """One entry of a training file: path below the image root, caption as written, id of the image."""

    image: str
    caption: str
    image_id: int | str


@dataclasses.dataclass(frozen=True)
class ImageTextsRecord:
    """One entry of an evaluation file: path below the image root, its captions as written."""

    image: str
    captions: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class RetrievalSample(Sample):
    """A picture (3, S, S) float32, its cleaned caption's ids, their width when padded, and the image's number."""

    image: torch.Tensor
    tokens: list[int]
    width: int
    image_number: int


@dataclasses.dataclass(frozen=True)
class RetrievalBatch(Batch):
    """B pairs: images (B, 3, S, S) float32, captions packed and padded, and the images' numbers.

    ``input_ids`` and ``attention_mask`` (B, N) int64 are of a fixed width, so that ranks can gather them.
    ``ids`` (B,) int64: texts of equal id are positives of each other.
    """

    images: torch.Tensor
    texts: PackedTexts
    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    ids: torch.Tensor


class RetrievalTrainData(PictureData[RetrievalSample, CaptionedRecord]):
    """Pairs of ``coco_karpathy_train.json`` or ``flickr30k_train.json``: ``{"image", "caption", "image_id"}``.

    Images are numbered in the order in which their ids come up in the files, as published. Arguments as for `PretrainData`.
    """

    def __init__(
        self,
        annotation_files: Paths,
        image_root: str | os.PathLike[str],
        transform: Transform,
        *,
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
        self.encoder = TextEncoder("retrieval", tokenizer, max_tokens)
        self.records = read_records(annotation_files, CaptionedRecord, self._to_record, bad)
        numbers: dict[int | str, int] = {}
        self.image_numbers = torch.tensor([numbers.setdefault(r.image_id, len(numbers)) for r in self.records])

    def make_sample(self, index: int, broken: list[str]) -> RetrievalSample:
        record = self.records[index]
        tokens = self.encoder(pre_caption(record.caption, self.max_words))
        image = self.image(self.root, record.image, broken)
        return RetrievalSample(image, tokens, self.encoder.width, int(self.image_numbers[index]))

    @staticmethod
    def collate(samples: Sequence[RetrievalSample]) -> RetrievalBatch:
        """Stack pictures, pack and pad captions."""
        tokens = [sample.tokens for sample in samples]
        input_ids, attention_mask = pad_lists(tokens, samples[0].width)
        return RetrievalBatch(
            images=torch.stack([sample.image for sample in samples]),
            texts=pack_lists(tokens),
            input_ids=input_ids,
            attention_mask=attention_mask,
            ids=torch.tensor([sample.image_number for sample in samples]),
            broken=broken_in(samples),
        )

    def _to_record(self, entry: Entry) -> CaptionedRecord:
        return CaptionedRecord(entry.path("image", self.root), entry.text("caption"), entry.id("image_id"))


class RetrievalEvalData(PictureData[ImageSample, ImageTextsRecord]):
    """Pictures of ``coco_karpathy_{val,test}.json`` or ``flickr30k_{val,test}.json``: ``{"image", "caption": [..]}``.

    Attributes:
        texts: all captions, cleaned, image after image.
        image_of_text: the image of each text (published: txt2img).
        texts_of_image: the texts of each image (published: img2txt).
    """

    def __init__(
        self,
        annotation_file: str | os.PathLike[str],
        image_root: str | os.PathLike[str],
        transform: Transform,
        *,
        max_words: int = 30,
        tokenizer: PreTrainedTokenizerBase | None = None,
        max_tokens: int | None = None,
        bad: BadSamples | None = None,
        on_broken: OnBroken = "raise",
        keep_decoded: bool = False,
    ) -> None:
        super().__init__(transform, on_broken, keep_decoded)
        self.root = Root(image_root)
        self.encoder = TextEncoder("retrieval", tokenizer, max_tokens)
        self.records = read_records([annotation_file], ImageTextsRecord, self._to_record, bad)
        captions = [record.captions for record in self.records]
        self.texts = [pre_caption(caption, max_words) for image in captions for caption in image]
        self.image_of_text = [number for number, image in enumerate(captions) for _ in image]
        ends = list(itertools.accumulate(len(image) for image in captions))
        self.texts_of_image = [list(range(end - len(image), end)) for image, end in zip(captions, ends, strict=True)]

    def make_sample(self, index: int, broken: list[str]) -> ImageSample:
        return ImageSample(self.image(self.root, self.records[index].image, broken), index, index)

    def padded_texts(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids and attention mask (S, N) int64 of all texts, of the published width."""
        return pad_lists(self.encoder.encode(self.texts), self.encoder.width)

    collate = staticmethod(collate_images)

    def _to_record(self, entry: Entry) -> ImageTextsRecord:
        return ImageTextsRecord(entry.path("image", self.root), entry.texts("caption"))

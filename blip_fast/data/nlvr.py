"""NLVR2: two pictures and a sentence that is true or false of them."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from blip_fast.data.annotations import Entry, Paths, read_records
from blip_fast.data.bad_samples import BadSamples
from blip_fast.data.batches import Batch, Sample, broken_in
from blip_fast.data.packing import PackedTexts, pack_lists
from blip_fast.data.roots import Root
from blip_fast.data.samples import OnBroken, PictureData, Transform
from blip_fast.data.text import pre_caption
from blip_fast.data.tokens import TextEncoder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_OTHER_SIDE = {"left": "right", "right": "left"}


@dataclasses.dataclass(frozen=True)
class PairOfImagesRecord:
    """One entry: paths of the left and the right picture below the image root, sentence as written, 1 for true."""

    left: str
    right: str
    sentence: str
    label: int


@dataclasses.dataclass(frozen=True)
class NLVRSample(Sample):
    """Two pictures (2, 3, S, S) float32, the ids of the cleaned sentence, 1 for true."""

    images: torch.Tensor
    tokens: list[int]
    label: int


@dataclasses.dataclass(frozen=True)
class NLVRBatch(Batch):
    """B sentences: image pairs (B, 2, 3, S, S) float32, left one first; packed sentences; labels (B,) int64, 1 for true."""

    image_pairs: torch.Tensor
    texts: PackedTexts
    labels: torch.Tensor


class NLVRData(PictureData[NLVRSample, PairOfImagesRecord]):
    """Entries of ``nlvr_{train,dev,test}.json``: ``{"images": [left, right], "sentence", "label": "True" or "False"}``.

    With ``swap`` half of the pairs trade sides, and with them the words "left" and "right" in the sentence. Published for
    validation and test as well, whose accuracy then varies from run to run; ``swap=False`` evaluates what is written.
    Other arguments as for `PretrainData`.
    """

    def __init__(
        self,
        annotation_files: Paths,
        image_root: str | os.PathLike[str],
        transform: Transform,
        *,
        swap: bool = True,
        max_words: int = 40,
        tokenizer: PreTrainedTokenizerBase | None = None,
        max_tokens: int | None = None,
        bad: BadSamples | None = None,
        on_broken: OnBroken = "replace",
        keep_decoded: bool = False,
    ) -> None:
        super().__init__(transform, on_broken, keep_decoded)
        self.root = Root(image_root)
        self.swap = swap
        self.max_words = max_words
        self.encoder = TextEncoder("nlvr", tokenizer, max_tokens)
        self.records = read_records(annotation_files, PairOfImagesRecord, self._to_record, bad)

    def make_sample(self, index: int, broken: list[str]) -> NLVRSample:
        record = self.records[index]
        pair = [self.image(self.root, path, broken) for path in (record.left, record.right)]
        sentence = pre_caption(record.sentence, self.max_words)
        if self.swap and torch.rand(()) >= 0.5:
            pair.reverse()
            sentence = swap_sides(sentence)
        return NLVRSample(torch.stack(pair), self.encoder(sentence), record.label)

    @staticmethod
    def collate(samples: Sequence[NLVRSample]) -> NLVRBatch:
        """Stack pairs of pictures, pack sentences."""
        return NLVRBatch(
            image_pairs=torch.stack([sample.images for sample in samples]),
            texts=pack_lists([sample.tokens for sample in samples]),
            labels=torch.tensor([sample.label for sample in samples]),
            broken=broken_in(samples),
        )

    def _to_record(self, entry: Entry) -> PairOfImagesRecord:
        paths = entry.texts("images")
        if len(paths) != 2:
            raise entry.error("images", "two paths")
        left, right = (entry.checked_path(path, self.root) for path in paths)
        label = entry.text("label")
        if label not in ("True", "False"):
            raise entry.error("label", "'True' or 'False'")
        return PairOfImagesRecord(left, right, entry.text("sentence"), int(label == "True"))


def swap_sides(sentence: str) -> str:
    """The sentence with the words "left" and "right" exchanged."""
    return " ".join(_OTHER_SIDE.get(word, word) for word in sentence.split(" "))

"""Retrieval on MSRVTT: videos with one caption each."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from blip_fast.data.annotations import Entry, read_records
from blip_fast.data.bad_samples import BadSamples
from blip_fast.data.batches import Batch, Sample, broken_in
from blip_fast.data.packing import pad_lists
from blip_fast.data.pictures import BrokenSampleError
from blip_fast.data.roots import Root
from blip_fast.data.samples import OnBroken, SampleData
from blip_fast.data.text import pre_caption
from blip_fast.data.tokens import TextEncoder
from blip_fast.data.transforms import normalise
from blip_fast.data.video import RETRIEVAL_FRAMES, read_frames

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SUFFIX = ".mp4"  # of a video's file


@dataclasses.dataclass(frozen=True)
class ClipRecord:
    """One line: name of the video without its suffix, caption as written."""

    clip_name: str
    caption: str


@dataclasses.dataclass(frozen=True)
class VideoSample(Sample):
    """Frames (F, 3, S, S) float32 of one video, its index, and its name."""

    frames: torch.Tensor
    index: int
    clip_name: str


@dataclasses.dataclass(frozen=True)
class VideoBatch(Batch):
    """B videos: frames (B, F, 3, S, S) float32, indices (B,) int64 in the data set, names."""

    videos: torch.Tensor
    indices: torch.Tensor
    clip_names: tuple[str, ...]


class VideoRetrievalData(SampleData[VideoSample, ClipRecord]):
    """Videos of ``msrvtt_test.jsonl``: lines of ``{"clip_name", "caption"}``; text n belongs to video n.

    Args:
        annotation_file: JSON lines, or a JSON list.
        video_root: folder of the videos; a video's file is its name plus ``.mp4``.
        image_size: frames are squashed to (image_size, image_size).
        frames: of each video.
        published: the published choice of frames, see `uniform_frames`.
        on_broken: "raise", or "blank" for black frames in place of a video that cannot be read.
        max_words, tokenizer, max_tokens, bad: as for `PretrainData`.

    Attributes:
        texts: all captions, cleaned.
    """

    def __init__(
        self,
        annotation_file: str | os.PathLike[str],
        video_root: str | os.PathLike[str],
        image_size: int,
        *,
        frames: int = RETRIEVAL_FRAMES,
        published: bool = True,
        max_words: int = 40,
        tokenizer: PreTrainedTokenizerBase | None = None,
        max_tokens: int | None = None,
        bad: BadSamples | None = None,
        on_broken: OnBroken = "raise",
    ) -> None:
        super().__init__(on_broken)
        if on_broken == "replace":
            raise ValueError("on_broken='replace' would give a video another one's place; expected 'raise' or 'blank'")
        self.root = Root(video_root, "video_root")
        self.image_size, self.frames, self.published = image_size, frames, published
        self.encoder = TextEncoder("retrieval", tokenizer, max_tokens)
        self.records = read_records([annotation_file], ClipRecord, self._to_record, bad)
        self.texts = [pre_caption(record.caption, max_words) for record in self.records]

    def make_sample(self, index: int, broken: list[str]) -> VideoSample:
        name = self.records[index].clip_name
        try:
            frames = read_frames(self.root, name + SUFFIX, self.frames, self.image_size, self.published)
        except BrokenSampleError as error:
            if self.on_broken == "raise":
                raise
            broken.append(str(error))
            frames = torch.zeros(self.frames, 3, self.image_size, self.image_size, dtype=torch.uint8)
        return VideoSample(normalise(frames), index, name)

    def padded_texts(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids and attention mask (S, N) int64 of all texts, of the published width."""
        return pad_lists(self.encoder.encode(self.texts), self.encoder.width)

    @staticmethod
    def collate(samples: Sequence[VideoSample]) -> VideoBatch:
        """Stack videos to a batch."""
        return VideoBatch(
            videos=torch.stack([sample.frames for sample in samples]),
            indices=torch.tensor([sample.index for sample in samples]),
            clip_names=tuple(sample.clip_name for sample in samples),
            broken=broken_in(samples),
        )

    def _to_record(self, entry: Entry) -> ClipRecord:
        name = entry.text("clip_name")
        entry.checked_path(name + SUFFIX, self.root)
        return ClipRecord(name, entry.text("caption"))

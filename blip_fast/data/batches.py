"""What all batches have in common."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, TypeVar

import torch

from blip_fast.data.packing import PackedTexts

AnyBatch = TypeVar("AnyBatch", bound="Batch")


@dataclasses.dataclass(frozen=True)
class Batch:
    """Base of all batches. ``broken`` names the samples that could not be read while this one was made, and why."""

    broken: tuple[str, ...] = dataclasses.field(kw_only=True)

    def pin_memory(self: AnyBatch) -> AnyBatch:
        """The same batch in page-locked memory; data loaders ask for it."""
        pinned: dict[str, Any] = {
            field.name: value.pin_memory()
            for field in dataclasses.fields(self)
            if isinstance(value := getattr(self, field.name), (torch.Tensor, PackedTexts))
        }
        return dataclasses.replace(self, **pinned)


@dataclasses.dataclass(frozen=True)
class Sample:
    """Base of all samples. ``broken`` names those that could not be read on the way to this one."""

    broken: tuple[str, ...] = dataclasses.field(default=(), kw_only=True)


def broken_in(samples: Sequence[Sample]) -> tuple[str, ...]:
    """All messages of the samples."""
    return tuple(message for sample in samples for message in sample.broken)


@dataclasses.dataclass(frozen=True)
class ImageSample(Sample):
    """One picture to evaluate on: image (3, S, S) float32, index in the data set, id (the index where it has none)."""

    image: torch.Tensor
    index: int
    image_id: int | str


@dataclasses.dataclass(frozen=True)
class ImageBatch(Batch):
    """Pictures to evaluate on: images (B, 3, S, S) float32, indices (B,) int64 in the data set, ids."""

    images: torch.Tensor
    indices: torch.Tensor
    image_ids: tuple[int | str, ...]


def collate_images(samples: Sequence[ImageSample]) -> ImageBatch:
    """Stack pictures to a batch."""
    return ImageBatch(
        images=torch.stack([sample.image for sample in samples]),
        indices=torch.tensor([sample.index for sample in samples]),
        image_ids=tuple(sample.image_id for sample in samples),
        broken=broken_in(samples),
    )

"""Map-style data sets: what all programs' data have in common."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Generic, Literal, TypeVar

import torch
from PIL import Image
from torch.utils.data import Dataset

from blip_fast.data.batches import Batch, Sample
from blip_fast.data.pictures import BrokenSampleError, read_picture
from blip_fast.data.roots import Root
from blip_fast.data.sampling import SampleKey, seeded
from blip_fast.data.transforms import PictureTransform

Transform = Callable[[Image.Image], torch.Tensor]
OnBroken = Literal["raise", "replace", "blank"]
AnySample = TypeVar("AnySample", bound=Sample)
Record = TypeVar("Record")


class SampleData(Dataset[AnySample], Generic[AnySample, Record]):
    """One sample per record; subclasses say how a sample is made from a record in ``make_sample``.

    An index gives the sample with random transforms drawn from torch's generator; a `SampleKey`, as `EpochSampler` gives
    them, the sample with transforms that follow from the key. Files are read from below their roots and nowhere else.

    What becomes of a sample whose picture or video is broken follows from ``on_broken``. "raise":
    :class:`BrokenSampleError`. "replace": the next readable sample takes its place (training). "blank": black pictures take
    the place of the broken ones, so that every sample keeps its number (evaluation). The latter two name the file in
    ``broken`` of sample and batch, which is to be added to a `BadSamples`.
    """

    records: Sequence[Record]

    def __init__(self, on_broken: OnBroken) -> None:
        if on_broken not in ("raise", "replace", "blank"):
            raise ValueError(f"on_broken={on_broken!r} is none of 'raise', 'replace', 'blank'")
        self.on_broken = on_broken

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: int | SampleKey) -> AnySample:
        number, seed = key if isinstance(key, SampleKey) else (key, None)
        index = range(len(self))[number]  # an IndexError ends loops over the samples
        broken: list[str] = []
        for step in range(len(self)):
            try:
                with seeded(seed):
                    sample = self.make_sample((index + step) % len(self), broken)
            except BrokenSampleError as error:
                if self.on_broken != "replace":
                    raise
                broken.append(str(error))
                continue
            return dataclasses.replace(sample, broken=tuple(broken))
        raise BrokenSampleError(f"none of the {len(self)} samples can be read; the first: {broken[0]}")

    def make_sample(self, index: int, broken: list[str]) -> AnySample:
        """The sample of ``records[index]``; under "blank" the files that are broken are added to ``broken``."""
        raise NotImplementedError

    @staticmethod
    def collate(samples: Sequence[Any]) -> Batch:
        """The batch of some samples."""
        raise NotImplementedError


class PictureData(SampleData[AnySample, Record]):
    """Samples with pictures.

    ``transform`` takes RGB pictures; a `PictureTransform` decodes them itself. ``keep_decoded`` holds decoded pictures in
    memory, for small sets.
    """

    def __init__(self, transform: Transform, on_broken: OnBroken, keep_decoded: bool = False) -> None:
        super().__init__(on_broken)
        self.transform = transform
        self._decoded: dict[str, Image.Image] | None = {} if keep_decoded else None

    def image(self, root: Root, path: str, broken: list[str]) -> torch.Tensor:
        """A transformed picture; under "blank" a black one for a broken file, which is then added to ``broken``."""
        try:
            if self._decoded is not None or not isinstance(self.transform, PictureTransform):
                return self.transform(self.picture_file(root, path))
            return self.transform.finish(read_picture(root, path, self.transform.decode))
        except BrokenSampleError as error:
            if self.on_broken != "blank":
                raise
            broken.append(str(error))
            return self.transform(Image.new("RGB", (1, 1)))

    def picture_file(self, root: Root, path: str) -> Image.Image:
        """The whole decoded RGB picture."""
        if self._decoded is not None and path in self._decoded:
            return self._decoded[path]
        picture = read_picture(root, path)
        if self._decoded is not None:
            self._decoded[path] = picture
        return picture

"""Several data sets as one."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from torch.utils.data import Dataset

from blip_fast.data.samples import AnySample, SampleData
from blip_fast.data.sampling import SampleKey


class JoinedData(Dataset[AnySample]):
    """The samples of ``parts``, one data set after the other: annotation lists and shards of one program, for instance.

    All parts make the same kind of samples. ``set_epoch`` reaches the parts that have it.
    """

    def __init__(self, parts: Sequence[SampleData[AnySample, Any]]) -> None:
        if not parts:
            raise ValueError("parts is empty; expected at least one data set")
        self.parts = list(parts)
        self.collate = self.parts[0].collate

    def __len__(self) -> int:
        return sum(len(part) for part in self.parts)

    def __getitem__(self, key: int | SampleKey) -> AnySample:
        index = key.number if isinstance(key, SampleKey) else key
        number = range(len(self))[index]
        for part, end in zip(self.parts, itertools.accumulate(len(part) for part in self.parts), strict=True):
            if number < end:
                place = number - end + len(part)
                return part[key._replace(number=place) if isinstance(key, SampleKey) else place]
        raise AssertionError("unreachable: the number is in range")

    def set_epoch(self, epoch: int) -> None:
        """Tell the parts that an epoch begins; see `PretrainData.set_epoch`."""
        for part in self.parts:
            if hasattr(part, "set_epoch"):
                part.set_epoch(epoch)

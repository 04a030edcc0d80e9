"""Which samples make up each batch of an epoch, and which random numbers each sample sees: functions of the seed alone."""

from __future__ import annotations

import contextlib
import hashlib
import math
import struct
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch.utils.data import Sampler


class SampleKey(NamedTuple):
    """What a sampler asks a data set for: the sample's number, and the seed of its random transforms."""

    number: int
    seed: int


class EpochSampler(Sampler[list[SampleKey]]):
    """Batches of one rank, in an order that follows from seed and epoch: for ``DataLoader(batch_sampler=...)``.

    Samples go to ranks exactly as ``torch.utils.data.DistributedSampler`` deals them: shuffled by ``seed + epoch``,
    repeated from the start until they divide evenly, rank ``r`` taking every ``world_size``-th. ``set_epoch`` before
    each epoch; ``start_batch`` skips batches of that epoch only, so that a run goes on where it stopped, with the same
    samples and the same augmentations whatever the number of workers.

    Args:
        length: samples there are.
        batch_size: samples per batch of this rank.
        passes: passes over the samples in one epoch, each in its own order; for small sets.

    A last batch that is not full is left out. Raises ValueError for sizes below 1, a rank outside of the world, or an epoch
    without a batch.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        passes: int = 1,
    ) -> None:
        for name, value in (("batch_size", batch_size), ("world_size", world_size), ("passes", passes)):
            if value < 1:
                raise ValueError(f"{name}={value} must be at least 1")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank={rank} is not below world_size={world_size}")
        self.length, self.batch_size, self.passes = length, batch_size, passes
        self.seed, self.rank, self.world_size = seed, rank, world_size
        self.epoch = self.start_batch = 0
        if length < 1 or not len(self):
            raise ValueError(
                f"batch_size={batch_size} on each of {world_size} ranks is more than the {length} samples there are"
            )

    def set_epoch(self, epoch: int, start_batch: int = 0) -> None:
        """The next iteration is epoch ``epoch`` from batch ``start_batch`` on."""
        if not 0 <= start_batch <= len(self):
            raise ValueError(f"start_batch={start_batch} is not among the {len(self)} batches of an epoch")
        self.epoch, self.start_batch = epoch, start_batch

    def __len__(self) -> int:
        """Batches in a whole epoch, wherever the next one starts."""
        return math.ceil(self.length / self.world_size) * self.passes // self.batch_size

    def __iter__(self) -> Iterator[list[SampleKey]]:
        indices = self.indices()
        per_pass = len(indices) // self.passes
        for batch in range(self.start_batch, len(self)):
            first = batch * self.batch_size
            chosen = enumerate(indices[first : first + self.batch_size], first)
            yield [SampleKey(index, self._sample_seed(place // per_pass, index)) for place, index in chosen]

    def indices(self) -> list[int]:
        """All indices of this rank in this epoch, in order."""
        return [index for number in range(self.passes) for index in self._one_pass(number)]

    def _sample_seed(self, number: int, index: int) -> int:
        """A sample looks another way in every pass of an epoch."""
        return sample_seed(self.seed, self.epoch * self.passes + number, index)

    def _one_pass(self, number: int) -> list[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch * self.passes + number)
        order = torch.randperm(self.length, generator=generator)
        total = math.ceil(self.length / self.world_size) * self.world_size
        dealt = torch.arange(self.rank, total, self.world_size) % self.length
        return order[dealt].tolist()


def sample_seed(seed: int, number: int, index: int) -> int:
    """Seed of a sample's random transforms, 63 bits mixed from the run's seed, the number of the pass and the index."""
    digest = hashlib.blake2b(struct.pack("<qqq", seed, number, index), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


@contextlib.contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """Within the block torch's CPU generator, which all random transforms draw from, starts at ``seed``.

    Afterwards it is as it was before: the model's own draws do not depend on where samples are made. None: nothing
    is seeded.
    """
    if seed is None:
        yield
        return
    generator = torch.default_generator
    before = generator.get_state()
    generator.manual_seed(seed)
    try:
        yield
    finally:
        generator.set_state(before)

"""The batches of a data set on which one rank evaluates."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch.utils.data import Dataset, Sampler

from blip_fast.data.bad_samples import BadSamples
from blip_fast.data.loader import make_loader
from blip_fast.data.sampling import SampleKey, sample_seed
from blip_fast.tasks.base import RunContext
from blip_fast.training.devices import to_device


class FixedSampler(Sampler[list[SampleKey]]):
    """Batches of the samples ``indices``, in that order; random transforms follow from ``seed``."""

    def __init__(self, indices: Sequence[int], batch_size: int, seed: int) -> None:
        self.indices, self.batch_size, self.seed = indices, batch_size, seed

    def __len__(self) -> int:
        return -(-len(self.indices) // self.batch_size)

    def __iter__(self) -> Iterator[list[SampleKey]]:
        for start in range(0, len(self.indices), self.batch_size):
            chosen = self.indices[start : start + self.batch_size]
            yield [SampleKey(index, sample_seed(self.seed, 0, index)) for index in chosen]


def own_batches(
    data: Dataset[Any], indices: Sequence[int], batch_size: int, workers: int, bad: BadSamples, context: RunContext
) -> Iterator[Any]:
    """Batches of the samples ``indices`` on the run's device; what is broken in them is counted in ``bad``."""
    sampler = FixedSampler(indices, batch_size, context.seed)
    for batch in make_loader(data, sampler, min(workers, len(sampler)), context.device):
        bad.add(batch.broken)
        yield to_device(batch, context.device)

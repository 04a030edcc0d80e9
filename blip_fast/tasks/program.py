"""What the published programs after pre-training share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from torch.utils.data import Dataset

from blip_fast.tasks.base import RunContext, Task
from blip_fast.tasks.evaluation.batches import own_batches
from blip_fast.tasks.evaluation.shards import shard
from blip_fast.training.schedules import cosine_decay
from blip_fast.training.settings import Decay, RunSettings

AnySettings = TypeVar("AnySettings", bound=RunSettings)
DecaySettings = TypeVar("DecaySettings", bound=Decay)
Batch = TypeVar("Batch")


class Program(Task[AnySettings, Batch]):
    """A program that evaluates."""

    def __init__(self, settings: AnySettings, context: RunContext) -> None:
        super().__init__(settings, context)
        self._said: set[str] = set()

    def say_once(self, notes: Sequence[str]) -> None:
        """Print what has not been printed yet."""
        for note in notes:
            if note not in self._said:
                self._said.add(note)
                self.context.console.print(note, markup=False, highlight=False)

    def annotation(self, name: str) -> Path:
        """An annotation file of this program."""
        return Path(self.settings.ann_root) / name  # type: ignore[attr-defined]

    def own_shard(self, data: Dataset[Any]) -> Sequence[int]:
        """The samples that this rank evaluates; each sample is on one rank only."""
        return shard(len(data), self.context.rank, self.context.world_size)

    def batches(self, data: Dataset[Any], batch_size: int, indices: Sequence[int] | None = None) -> Iterator[Any]:
        """Batches, on the device, of the samples ``indices``, by default those of this rank's share."""
        chosen = self.own_shard(data) if indices is None else indices
        return own_batches(data, chosen, batch_size, self.settings.workers, self.bad, self.context)


class FineTuning(Program[DecaySettings, Batch]):
    """A program that trains with the published cosine decay, constant within an epoch."""

    def learning_rate(self, epoch: int, step: int, steps_per_epoch: int) -> float:
        settings = self.settings
        return cosine_decay(epoch, settings.max_epoch, settings.init_lr, settings.min_lr)

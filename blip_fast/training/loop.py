"""The training loop's inside: batches of an epoch, and one optimizer step after another."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from torch.utils.data import Dataset

from blip_fast.data.loader import make_loader
from blip_fast.data.sampling import EpochSampler
from blip_fast.training.seeding import unchanged_random_state
from blip_fast.training.trainer import StepReport, Trainer, grouped

if TYPE_CHECKING:
    from blip_fast.tasks.base import Task


def epoch_batches(
    task: Task[Any, Any], data: Dataset[Any], epoch: int, first_step: int = 0
) -> tuple[Iterator[Any], int]:
    """This rank's batches of an epoch from optimizer step ``first_step`` on, and how many steps the whole epoch has.

    Raises ValueError where the data is too small for a step, or the epoch shorter than ``first_step``.
    """
    settings, context = task.settings, task.context
    if hasattr(data, "set_epoch"):
        data.set_epoch(epoch)
    length = len(data)
    seed, rank, ranks = context.seed, context.rank, context.world_size
    sampler = EpochSampler(length, task.batch_size, seed, rank, ranks, passes=settings.passes_per_epoch)
    steps = len(sampler) // settings.accumulate
    if not steps:
        raise ValueError(f"accumulate={settings.accumulate} is more than the {len(sampler)} batches of an epoch")
    if first_step > steps:
        raise ValueError(f"the state is at step {first_step} of an epoch that has {steps} steps with this data")
    sampler.set_epoch(epoch, start_batch=first_step * settings.accumulate)
    loader = make_loader(data, sampler, settings.workers, context.device)
    with unchanged_random_state():  # a loader's iterator draws a seed that nothing here uses
        return iter(loader), steps


def train_steps(
    task: Task[Any, Any],
    trainer: Trainer[Any],
    batches: Iterable[Any],
    epoch: int,
    steps: int,
    first_step: int = 0,
    around: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> Iterator[StepReport]:
    """Take the optimizer steps of an epoch, of which there are ``steps``, one at each iteration, within ``around()``."""
    trainer.model.train()
    started = time.perf_counter()
    for step, group in enumerate(grouped(batches, trainer.settings.accumulate), first_step):
        waited = time.perf_counter() - started
        lr, alpha = task.learning_rate(epoch, step, steps), task.alpha(epoch, step, steps)
        with around():
            losses = trainer.step(group, lr, alpha)
        yield StepReport(epoch, step, lr, alpha, losses, group, waited)
        started = time.perf_counter()

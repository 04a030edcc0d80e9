"""Everything that looks at a run while it goes on: console, history, TensorBoard, profiler."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch

from blip_fast.training.costs import flop_counter, gemm_rate
from blip_fast.training.logs import HISTORY, append_line
from blip_fast.training.meters import MetricLog
from blip_fast.training.progress import Speed, TrainingProgress, peak_memory
from blip_fast.training.trainer import StepReport, Trainer

if TYPE_CHECKING:
    from blip_fast.tasks.base import Task
    from blip_fast.training.resume import Place

# Steps that a trace leaves out while caches and allocators settle, and those that it records.
_TRACE_WARM_UP, _TRACE_STEPS = 3, 3


class Watch:
    """A context manager around training; on ranks other than 0 it does nothing but profile.

    Args:
        task, trainer: of the run.
        samples: that one optimizer step takes, on all ranks.
        first_step: of the run, where it goes on.
        profile: whether to write a trace of three steps to ``profile/`` in the output folder.
    """

    def __init__(
        self, task: Task[Any, Any], trainer: Trainer[Any], samples: int, first_step: int = 0, profile: bool = False
    ) -> None:
        self.settings, self.context = task.settings, task.context
        self.trainer, self.samples = trainer, samples
        self._stack = contextlib.ExitStack()
        self._progress: TrainingProgress | None = None
        self._board = self._open_board(first_step) if self.context.is_main and self.settings.tensorboard else None
        self._profiler = self._make_profiler() if profile else None
        # Under a dispatch mode torch takes other kernels for linear layers, which differ in the last bit: the step that is
        # counted must be the same one whether or not the run has been resumed.
        self._counts = self.context.is_main and not self.settings.compile and first_step == 0

    def __enter__(self) -> Watch:
        if self._profiler is not None:
            self._stack.enter_context(self._profiler)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()
        if self._board is not None:
            self._board.close()

    def start_epoch(self, place: Place, steps: int) -> None:
        """An epoch of ``steps`` steps begins, or goes on at ``place``."""
        if not self.context.is_main:
            return
        if self._progress is None:
            left = (self.settings.max_epoch - place.epoch) * steps - place.step
            total = self.settings.max_steps or place.steps + left
            console, log_every = self.context.console, self.settings.log_every
            self._progress = self._stack.enter_context(TrainingProgress(console, total, self.samples, log_every))
        self._progress.start_epoch(place.epoch, steps, place.steps)
        self._steps_before = place.steps - place.step
        self._waiting = 0

    def step(self, report: StepReport, log: MetricLog) -> None:
        """One more step is finished; ``log`` has "lr" and the losses of the epoch up to it."""
        if self._profiler is not None:
            self._profiler.step()
        if self._progress is None:
            return
        self._progress.step(report, log)
        self._waiting += 1
        if report.step % self.settings.log_every == 0:
            self._write(report, log, self._progress.rates())
            self._waiting = 0

    @contextlib.contextmanager
    def counting(self) -> Iterator[None]:
        """Around every step. FLOPs of the run's very first one are counted, unless it is compiled."""
        if not self._counts or self._progress is None:
            yield
            return
        self._counts = False
        with flop_counter() as counter:
            yield
        rate = gemm_rate(self.context.device, self.trainer.precision.dtype)
        self._progress.speed = Speed(counter.get_total_flops(), rate)

    def end_epoch(self, averages: Mapping[str, float]) -> None:
        """The steps of an epoch are over; averages of all ranks."""
        if self._progress is not None:
            self._progress.end_epoch(averages)

    def metrics(self, epoch: int, metrics: Mapping[Any, Mapping[str, float]]) -> None:
        """What evaluation after an epoch gave, by split."""
        if self._board is None:
            return
        for split, values in metrics.items():
            for name, value in values.items():
                self._board.add_scalar(f"{split}/{name}", float(value), epoch)

    def _write(self, report: StepReport, log: MetricLog, rates: Mapping[str, float]) -> None:
        """A line of history, and TensorBoard's values: losses averaged over the steps since the line before."""
        losses = {name: log.average(name, self._waiting) for name in report.losses}
        values = {"lr": report.lr, "alpha": report.alpha, **losses, **rates, "memory_bytes": peak_memory()}
        append_line(self.context.output_dir / HISTORY, {"epoch": report.epoch, "step": report.step, **values})
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(f"train/{name}", value, self._steps_before + report.step)

    def _open_board(self, first_step: int) -> Any:
        from torch.utils.tensorboard import SummaryWriter

        # what an interrupted run wrote of the steps that are taken again is hidden
        return SummaryWriter(str(self.context.output_dir / "tensorboard"), purge_step=first_step or None)

    def _make_profiler(self) -> torch.profiler.profile:
        folder = self.context.output_dir / "profile"
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"trace_rank{self.context.rank}.json"
        return torch.profiler.profile(
            schedule=torch.profiler.schedule(wait=1, warmup=_TRACE_WARM_UP - 1, active=_TRACE_STEPS, repeat=1),
            on_trace_ready=lambda profiler: profiler.export_chrome_trace(str(file)),
        )

"""What the console shows of a run: a bar with losses and rates, or the published lines where it is no terminal."""

from __future__ import annotations

import dataclasses
import datetime
import resource
import time
from collections.abc import Mapping
from types import TracebackType

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from blip_fast.training.meters import MetricLog, Times
from blip_fast.training.trainer import StepReport

_BAR_EVERY_S = 0.2


@dataclasses.dataclass(frozen=True)
class Speed:
    """What a step costs and what the machine can do: FLOPs of one rank's step and FLOP/s of a large matrix product."""

    step_flops: float
    gemm_rate: float


class TrainingProgress:
    """Shows how far a run is; a context manager.

    Args:
        console: where to; prints nothing where ``console.quiet``.
        total_steps: optimizer steps of the whole run.
        samples: that one step takes, on all ranks.
        log_every: steps between two lines where the console is no terminal.
        speed: for the share of the machine's arithmetic that is used (MFU); None leaves it out.
    """

    def __init__(
        self, console: Console, total_steps: int, samples: int, log_every: int = 50, speed: Speed | None = None
    ) -> None:
        self.console, self.samples, self.log_every, self.speed = console, samples, log_every, speed
        self._bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[state]}"),
            TimeElapsedColumn(),
            TextColumn("<"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("training", total=total_steps, state="")
        self._steps = self._epoch = 0
        self._drawn = self._last = 0.0
        self._times, self._data_times = Times(), Times()

    def __enter__(self) -> TrainingProgress:
        self._last = time.perf_counter()
        if self.console.is_terminal:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.console.is_terminal:  # elsewhere older versions of rich print an empty line here
            self._bar.stop()

    def start_epoch(self, epoch: int, steps: int, finished_steps: int) -> None:
        """An epoch of ``steps`` steps begins, or goes on; ``finished_steps`` of the run lie behind."""
        self._epoch, self._steps = epoch, steps
        self._times, self._data_times = Times(), Times()
        self._last = time.perf_counter()
        self._bar.update(self._task, description=f"epoch {epoch}", completed=finished_steps)

    def step(self, report: StepReport, log: MetricLog) -> None:
        """One more step is finished. ``log`` has the losses of the steps up to it."""
        now = time.perf_counter()
        self._times.add(now - self._last)
        self._last = now
        self._data_times.add(report.data_seconds)
        if self.console.is_terminal:
            self._bar.advance(self._task)
            if now - self._drawn >= _BAR_EVERY_S:
                self._drawn = now
                self._bar.update(self._task, state=self._state(report, log))
        elif report.step % self.log_every == 0 or report.step == self._steps - 1:
            self._print(self._line(report, log))

    def show(self, report: StepReport, steps: int, log: MetricLog) -> None:
        """For runs without an engine: `step`, in an epoch of ``steps`` steps that may just have begun."""
        if report.epoch != self._epoch or not self._steps:
            last = self._last
            self.start_epoch(report.epoch, steps, report.epoch * steps)
            self._last = last  # the step began before its epoch was known
        self.step(report, log)

    def end_epoch(self, averages: Mapping[str, float]) -> None:
        """The epoch is over; ``averages`` are those of its steps on all ranks."""
        total, mean = datetime.timedelta(seconds=int(self._times.total)), self._times.mean
        self._print(f"Train Epoch: [{self._epoch}] Total time: {total} ({mean:.4f} s / it)")
        self._print("Averaged stats: " + "  ".join(f"{name}: {value:.4f}" for name, value in averages.items()))

    def rates(self) -> dict[str, float]:
        """Samples per second of all ranks over the last steps, and where it is known the share of the arithmetic used."""
        seconds = max(self._times.recent, 1e-9)
        rates = {"images_per_s": self.samples / seconds}
        if self.speed is not None:
            rates["mfu"] = self.speed.step_flops / seconds / self.speed.gemm_rate
        return rates

    def _print(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def _line(self, report: StepReport, log: MetricLog) -> str:
        """The published line."""
        width, eta = len(str(self._steps)), int(self._times.mean * (self._steps - report.step))
        parts = [
            f"Train Epoch: [{report.epoch}]",
            f"[{report.step:{width}d}/{self._steps}]",
            f"eta: {datetime.timedelta(seconds=eta)}",
            f"lr: {report.lr:.6f}",
            *(f"{name}: {log.series(name)[-1]:.4f}" for name in report.losses),
            f"time: {self._times.recent:.4f}",
            f"data: {self._data_times.recent:.4f}",
        ]
        if torch.cuda.is_available():
            parts.append(f"max mem: {torch.cuda.max_memory_allocated() / 2**20:.0f}")
        return "  ".join(parts)

    def _state(self, report: StepReport, log: MetricLog) -> str:
        """What stands beside the bar: losses averaged over 20 steps, rates, peak memory."""
        losses = [f"{name.removeprefix('loss_')} {log.average(name, window=20):.3f}" for name in report.losses]
        rates = self.rates()
        state = [*losses, f"lr {report.lr:.1e}", f"{rates['images_per_s']:.0f} images/s"]
        if "mfu" in rates:
            state.append(f"MFU {rates['mfu']:.0%}")
        return "  ".join([*state, f"{peak_memory() / 2**30:.1f} GiB"])


def peak_memory() -> int:
    """Most bytes that this process has held so far: on the GPU where it has used one, else in all."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

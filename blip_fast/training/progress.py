"""A progress bar with losses and rates; plain lines where the output is not a terminal."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from blip_fast.training.loop import StepReport
from blip_fast.training.meters import MetricLog

_PLAIN_LINES = 10


class TrainingProgress:
    """Shows how far a run is; a context manager whose :meth:`step` is called after every optimizer step.

    Losses are averages over the last 20 steps and read from the device every 10 steps, to not hold up training.
    """

    def __init__(self, total_steps: int, batch_size: int, console: Console) -> None:
        self.total_steps = total_steps
        self.batch_size = batch_size
        self.console = console
        self._started = time.perf_counter()
        self._bar = Progress(
            TextColumn("[bold]pre-training"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[losses]}"),
            TimeElapsedColumn(),
            TextColumn("<"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self._task = self._bar.add_task("train", total=total_steps, losses="")

    def __enter__(self) -> TrainingProgress:
        self._started = time.perf_counter()
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def step(self, report: StepReport, log: MetricLog) -> None:
        """Show one more finished step."""
        done = report.step + 1
        if done % 10 == 0 or done == self.total_steps:
            self._bar.update(self._task, losses=self._line(report, log, done))
        self._bar.update(self._task, completed=done)
        plain_every = max(self.total_steps // _PLAIN_LINES, 1)
        if not self.console.is_terminal and (done % plain_every == 0 or done == self.total_steps):
            self.console.print(f"step {done}/{self.total_steps}  {self._line(report, log, done)}", highlight=False)

    def _line(self, report: StepReport, log: MetricLog, done: int) -> str:
        losses = "  ".join(f"{name} {log.average(name, window=20):.3f}" for name in report.losses)
        rate = done * self.batch_size / max(time.perf_counter() - self._started, 1e-9)
        return f"{losses}  lr {report.lr:.1e}  {rate:.0f} pairs/s"

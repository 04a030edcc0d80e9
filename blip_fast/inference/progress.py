"""How far a run over pictures is: a bar with images/s and the time left, or plain lines where there is no terminal."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

_SECONDS_BETWEEN_LINES = 10.0


class PictureProgress:
    """A context manager; :meth:`advance` after every batch, :meth:`expect` as soon as the number of pictures is known."""

    def __init__(self, console: Console, quiet: bool = False) -> None:
        self.console, self.quiet = console, quiet
        self.done = self.broken = 0
        self.total: int | None = None
        self.started = self.last_line = time.perf_counter()
        self._bar = Progress(
            TextColumn("{task.fields[rate]}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("<"),
            TimeRemainingColumn(),
            console=console,
            disable=quiet or not console.is_terminal,
            transient=True,
        )
        self._task = self._bar.add_task("pictures", total=None, rate="")

    def __enter__(self) -> PictureProgress:
        self.started = self.last_line = time.perf_counter()
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
        if not self.quiet:
            self.console.print(self.line(), highlight=False, markup=False, soft_wrap=True)

    def expect(self, total: int) -> None:
        """Set the number of pictures of the whole run."""
        self.total = total
        self._bar.update(self._task, total=total)

    def advance(self, done: int, broken: int) -> None:
        """Count pictures that are done, and others that could not be read."""
        self.done, self.broken = self.done + done, self.broken + broken
        self._bar.update(self._task, completed=self.done + self.broken, rate=f"{self.rate():.1f} images/s")
        now = time.perf_counter()
        if not self.quiet and not self.console.is_terminal and now - self.last_line > _SECONDS_BETWEEN_LINES:
            self.last_line = now
            self.console.print(self.line(), highlight=False, markup=False, soft_wrap=True)

    def rate(self) -> float:
        """Pictures a second since the start."""
        return (self.done + self.broken) / max(time.perf_counter() - self.started, 1e-9)

    def line(self) -> str:
        """The state in words."""
        of_total = "" if self.total is None else f" of {self.total}"
        left = "" if self.total is None else f", {self._left():.0f} s left"
        broken = f", {self.broken} could not be read" if self.broken else ""
        elapsed = time.perf_counter() - self.started
        is_over = self.total is not None and self.done + self.broken >= self.total
        return f"{self.done}{of_total} images in {elapsed:.1f} s ({self.rate():.1f}/s){'' if is_over else left}{broken}"

    def _left(self) -> float:
        assert self.total is not None
        return max(self.total - self.done - self.broken, 0) / max(self.rate(), 1e-9)

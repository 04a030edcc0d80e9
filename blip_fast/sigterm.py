"""SIGTERM, which may come twice at once: clusters send it to every process, and launchers pass it on to their children."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from types import FrameType

TOGETHER = 2.0  # seconds in which further signals are copies of the first


def after_the_first(act: Callable[[], object]) -> Callable[[int, FrameType | None], None]:
    """A handler that acts at the first signal, ignores its copies, and ends the process at a later one, as usual."""
    came: list[float] = []

    def handle(number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not came:
            came.append(now)
            act()
        elif now - came[0] > TOGETHER:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    return handle

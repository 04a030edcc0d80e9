"""SIGTERM, by which clusters announce that they will take the machine back: the run saves its state and ends well."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from blip_fast.training.distributed import SharedFlag


@contextlib.contextmanager
def raise_on_sigterm(flag: SharedFlag) -> Iterator[None]:
    """Within the block the first SIGTERM raises ``flag``; a second one ends the process as usual."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, frame: FrameType | None) -> None:
        flag.raised = True
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    before = signal.signal(signal.SIGTERM, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)

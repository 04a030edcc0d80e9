"""SIGTERM, by which clusters announce that they will take the machine back: the run saves its state and ends well."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator

from blip_fast.sigterm import after_the_first
from blip_fast.training.distributed import SharedFlag


@contextlib.contextmanager
def raise_on_sigterm(flag: SharedFlag) -> Iterator[None]:
    """Within the block the first SIGTERM raises ``flag``; one that comes seconds later ends the process as usual."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    before = signal.signal(signal.SIGTERM, after_the_first(lambda: setattr(flag, "raised", True)))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)

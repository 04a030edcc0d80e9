"""A SIGTERM and its copies are one; a later one ends the process."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from blip_fast import sigterm


def test_copies_of_the_first_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    acted: list[str] = []
    handle = sigterm.after_the_first(lambda: acted.append("acted"))
    times = iter([100.0, 100.0 + sigterm.TOGETHER / 2])
    monkeypatch.setattr(sigterm.time, "monotonic", lambda: next(times))
    for _ in range(2):
        handle(signal.SIGTERM, None)
    assert acted == ["acted"]


def test_a_later_one_ends_the_process() -> None:
    code = "import signal; from blip_fast import sigterm; sigterm.TOGETHER = -1.0; "
    code += "signal.signal(signal.SIGTERM, sigterm.after_the_first(lambda: print('acted', flush=True))); "
    code += "signal.raise_signal(signal.SIGTERM); print('alive', flush=True); signal.raise_signal(signal.SIGTERM)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.stdout.split() == ["acted", "alive"]
    assert run.returncode == -signal.SIGTERM

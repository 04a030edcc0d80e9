from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from blip_fast.checkpoints.files import write_atomically


def test_writers_with_the_same_process_number_do_not_meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in two containers with one disk."""
    hosts = iter(["one", "two"])
    monkeypatch.setattr(os, "getpid", lambda: 7)
    monkeypatch.setattr(socket, "gethostname", lambda: next(hosts))
    target = tmp_path / "file"

    def write(beside: Path) -> None:
        beside.write_text("outer")
        write_atomically(target, lambda other: other.write_text("inner"))
        assert target.read_text() == "inner"

    write_atomically(target, write)
    assert target.read_text() == "outer"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]

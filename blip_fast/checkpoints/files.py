"""Files and folders that are complete or absent at any moment."""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

CONFIG_FILE = "config.json"


def write_atomically(path: str | os.PathLike[str], write: Callable[[Path], object]) -> None:
    """Let ``write`` make a file beside ``path``, then rename it: ``path`` is complete or unchanged, at any moment."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = _beside(target)
    try:
        write(beside)
        _sync(beside)
        beside.replace(target)
    finally:
        beside.unlink(missing_ok=True)


def write_text(path: str | os.PathLike[str], text: str, errors: str = "strict") -> None:
    """Write a text file so that it is the old or the new one at any moment."""
    write_atomically(path, lambda beside: beside.write_text(text, encoding="utf-8", errors=errors))


def write_json(path: str | os.PathLike[str], values: Any) -> None:
    """Write plain values as a JSON file, in the same way."""
    write_text(path, json.dumps(values, indent=1) + "\n")


def write_folder(folder: str | os.PathLike[str], write: Callable[[Path], object]) -> None:
    """Let ``write`` fill an empty folder beside ``folder``, then move its files in; others in ``folder`` stay.

    The configuration goes first and comes last: a folder without it is not taken for a model, so that one of which
    only some files have been replaced is never loaded. Raises NotADirectoryError where ``folder`` is a file.
    """
    target = Path(os.path.abspath(folder))
    if target.exists() and not target.is_dir():
        raise NotADirectoryError(f"folder={str(folder)!r} is a file; expected a folder to write to")
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = _beside(target)
    try:
        beside.mkdir()
        write(beside)
        target.mkdir(exist_ok=True)
        (target / CONFIG_FILE).unlink(missing_ok=True)
        for file in sorted(beside.iterdir(), key=lambda file: file.name == CONFIG_FILE):
            shutil.copymode(beside / CONFIG_FILE, file)  # safetensors lets nobody but the owner read its files
            _sync(file)
            file.replace(target / file.name)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _beside(target: Path) -> Path:
    """A name that no other process uses, and that the same one uses again: what a killed one left does not pile up.

    Containers with one disk may give their processes the same number, but not the same host name.
    """
    return target.with_name(f".{target.name}.{socket.gethostname()}.{os.getpid()}")


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())

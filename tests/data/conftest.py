from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

Annotate = Callable[..., Path]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with the pictures a.png, b.png and c.png, each of one shade of red; secret.png lies beside it."""
    folder = tmp_path / "images"
    folder.mkdir()
    for number, name in enumerate(("a.png", "b.png", "c.png")):
        Image.new("RGB", (20, 10), (80 * number, 0, 0)).save(folder / name)
    Image.new("RGB", (20, 10)).save(tmp_path / "secret.png")
    return folder


@pytest.fixture
def broken_root(root: Path) -> Path:
    """The same, with b.png cut off and c.png no picture at all."""
    (root / "b.png").write_bytes((root / "b.png").read_bytes()[:50])
    (root / "c.png").write_text("no picture")
    return root


@pytest.fixture
def annotate(tmp_path: Path) -> Annotate:
    """Writes entries (or a text) to an annotation file."""

    def write(entries: Any, name: str = "annotations.json") -> Path:
        file = tmp_path / name
        file.write_text(entries if isinstance(entries, str) else json.dumps(entries), encoding="utf-8")
        return file

    return write

"""Pictures from strangers: whatever is in the file, the answer is a picture or a sentence."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image

from blip_fast.data.pictures import MAX_BYTES, BrokenSampleError, decode_picture, read_encoded, read_picture
from blip_fast.data.roots import Root
from tests.inference.common import bomb, picture


def test_a_decoder_may_fail_in_any_way(tmp_path: Path) -> None:
    def failing(opened: Image.Image) -> Image.Image:
        raise IndexError("index out of range")  # as PIL's own decoders do on damaged AVIF and QOI files

    data = picture(tmp_path / "a.png").read_bytes()
    with pytest.raises(BrokenSampleError, match=r"^shard 3, x: IndexError: index out of range$"):
        decode_picture(data, "shard 3, x", failing)


def test_other_programs_are_not_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ghostscript = tmp_path / "gs"
    ghostscript.write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    ghostscript.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    script = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
    with pytest.raises(BrokenSampleError, match=r"^a\.jpg: is no picture in a known format$"):
        decode_picture(script, "a.jpg")
    assert not (tmp_path / "started").exists()


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_files_that_would_fill_memory_or_never_end_are_not_read(tmp_path: Path) -> None:
    bomb(tmp_path / "bomb.png")
    os.mkfifo(tmp_path / "pipe.png")
    with (tmp_path / "large.png").open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    for name, message in (
        ("bomb.png", "has 10000 x 10000 pixels; at most 89478485 are decoded"),
        ("pipe.png", "is no regular file"),
        ("large.png", "has 268435457 bytes; at most 268435456 are read"),
    ):
        with pytest.raises(BrokenSampleError, match=f"^{name}: {message}$"):
            read_picture(Root(tmp_path), name)
    for name in ("pipe.png", "large.png"):
        with pytest.raises(BrokenSampleError, match=r"is no regular file|at most 268435456 are read"):
            read_encoded(str(tmp_path / name))

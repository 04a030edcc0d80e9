"""Decoding in workers: the pixels that evaluation sees, and a sentence for everything that is no picture."""

from __future__ import annotations

import functools
import os
import struct
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from PIL import ExifTags, Image, ImageOps
from torch.utils.data._utils.pin_memory import pin_memory

from blip_fast.data.pictures import BrokenSampleError
from blip_fast.data.transforms import eval_transform
from blip_fast.inference.inputs import Input, Inputs
from blip_fast.inference.pictures import PictureBatch, normalised, one_picture, picture_batches, read_picture
from tests.inference.common import bomb, picture, pictures, shard

CPU = torch.device("cpu")


def batches(*arguments: object, batch_size: int = 2, workers: int = 0) -> list[PictureBatch]:
    return list(picture_batches(Inputs([str(argument) for argument in arguments]), 32, batch_size, workers))


def problem(path: Path) -> str:
    ((_, found),) = batches(path)[0].problems
    return found


@pytest.mark.parametrize("workers", [0, 2])
def test_pixels_are_those_of_evaluation(tmp_path: Path, workers: int) -> None:
    paths = pictures(tmp_path, 5)
    found = batches(tmp_path, workers=workers)
    assert [name for batch in found for name in batch.names] == [str(path) for path in paths]
    expected = torch.stack([eval_transform(32)(Image.open(path).convert("RGB")) for path in paths])
    assert torch.equal(normalised(torch.cat([batch.pixels for batch in found]), torch.empty(0)), expected)
    assert normalised(found[0].pixels, torch.empty(0, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_the_pixels_of_a_batch_are_pinned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By what the data loader calls; without a GPU it leaves memory as it is."""
    pictures(tmp_path, 1)
    (batch,) = batches(tmp_path)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor + 1)
    pinned = pin_memory(batch)
    assert torch.equal(pinned.pixels, batch.pixels + 1)
    assert (pinned.names, pinned.problems) == (batch.names, batch.problems)


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """Of a server of the files in tmp_path, on this machine."""
    handler = functools.partial(QuietHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        pass


def test_pictures_are_fetched(tmp_path: Path, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (path,) = pictures(tmp_path, 1)
    item = f"{address}/{path.name}"
    assert torch.equal(one_picture(Inputs([item], allow_remote=True), 32), one_picture(Inputs([str(path)]), 32))
    with pytest.raises(BrokenSampleError, match=rf"^{address}/none.png: HTTPError: HTTP Error 404: File not found"):
        one_picture(Inputs([f"{address}/none.png"], allow_remote=True), 32)
    monkeypatch.setattr("blip_fast.inference.pictures.MAX_BYTES", path.stat().st_size)
    one_picture(Inputs([item], allow_remote=True), 32)
    monkeypatch.setattr("blip_fast.inference.pictures.MAX_BYTES", path.stat().st_size - 1)
    with pytest.raises(BrokenSampleError, match=rf"has more than {path.stat().st_size - 1} bytes"):
        one_picture(Inputs([item], allow_remote=True), 32)


def test_pixels_out_of_a_shard(tmp_path: Path) -> None:
    paths = pictures(tmp_path / "files", 3)
    path = shard(tmp_path / "0.tar", {file.name: file.read_bytes() for file in paths})
    assert torch.equal(batches(path, batch_size=3)[0].pixels, batches(tmp_path / "files", batch_size=3)[0].pixels)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_pictures_are_turned_as_the_camera_says(tmp_path: Path, kind: str) -> None:
    for orientation in range(10):
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = orientation
        path = picture(tmp_path / f"{orientation}.png")
        Image.open(path).save(path, kind, exif=exif)
        expected = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
        found = read_picture(Input("a", str(path)))
        assert (found.mode, found.size, found.tobytes()) == ("RGB", expected.size, expected.tobytes())


def test_a_picture_of_an_untidy_camera_is_turned(tmp_path: Path) -> None:
    make = struct.pack("<HHII", ExifTags.Base.Make, 5, 1, 38)  # a fraction, where a text is expected
    orientation = struct.pack("<HHIHH", ExifTags.Base.Orientation, 3, 1, 6, 0)
    exif = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", 2) + make + orientation + bytes(12)
    Image.new("RGB", (40, 20), "red").save(tmp_path / "a.jpg", exif=exif)
    assert read_picture(Input("a", str(tmp_path / "a.jpg"))).size == (20, 40)


def test_broken_pictures_are_sentences(tmp_path: Path) -> None:
    good = picture(tmp_path / "good.png")
    content = good.read_bytes()
    for name, bad, expected in (
        ("empty.jpg", b"", "is empty"),
        ("text.jpg", b"no picture", "is no picture in a known format"),
        ("cut.png", content[: len(content) // 2], "Truncated|truncated"),
        # PostScript would be handed to another program
        ("script.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is no picture in a known format"),
    ):
        (tmp_path / name).write_bytes(bad)
        assert any(part in problem(tmp_path / name) for part in expected.split("|")), name
    os.mkfifo(tmp_path / "pipe.png")
    assert problem(tmp_path / "pipe.png") == "is no regular file"
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    assert "\n" not in problem(tmp_path / "loop.png")
    (batch,) = batches(good, tmp_path / "empty.jpg")
    assert (batch.names, [name for name, _ in batch.problems]) == ([str(good)], [str(tmp_path / "empty.jpg")])
    assert batch.pixels.shape == (1, 3, 32, 32)


def test_bombs_are_not_decoded(tmp_path: Path) -> None:
    assert problem(bomb(tmp_path / "a.png")) == "has 10000 x 10000 pixels; at most 89478485 are decoded"
    assert "DecompressionBomb" in problem(bomb(tmp_path / "b.png", 20_000))


def test_a_member_that_the_shard_cuts_off(tmp_path: Path) -> None:
    path = shard(tmp_path / "0.tar", {"a.png": picture(tmp_path / "a.png").read_bytes()})
    with pytest.raises(BrokenSampleError, match=r"ends after \d+ of 9999999 bytes"):
        read_picture(Input("a", str(path), 512, 9_999_999))
    with pytest.raises(BrokenSampleError, match="at most 268435456 are read"):
        read_picture(Input("a", str(path), 512, 2**40))

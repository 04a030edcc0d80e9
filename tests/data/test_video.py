"""Sampling of frames."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
import torch

from blip_fast.data.pictures import BrokenSampleError
from blip_fast.data.roots import Root
from blip_fast.data.video import read_frames, uniform_frames
from tests.data.videos import write_video


@pytest.mark.parametrize("count", [8, 16])
def test_published(count):
    for total in (*range(1, 300), 4001):
        assert uniform_frames(total, count) == np.arange(0, total, total / count, dtype=int).tolist()
    assert uniform_frames(100, 8) == [0, 12, 24, 36, 48, 60, 72, 84]
    assert uniform_frames(7, 8) == [0] * 8


def test_in_equal_steps():
    assert uniform_frames(100, 8, published=False) == [0, 14, 28, 42, 57, 71, 85, 99]
    assert uniform_frames(3, 8, published=False) == [0, 0, 1, 1, 1, 1, 2, 2]
    assert uniform_frames(9, 1, published=False) == [0]
    for total in range(1, 300):
        steps = np.linspace(0, total - 1, 8)
        frames = uniform_frames(total, 8, published=False)
        assert np.abs(frames - steps).max() <= 0.5
        assert (frames[0], frames[-1]) == (0, total - 1)


def test_refused():
    with pytest.raises(ValueError, match="total=0; expected at least one frame"):
        uniform_frames(0, 8)
    with pytest.raises(ValueError, match="count=0; expected at least one frame"):
        uniform_frames(5, 0, published=False)


def brightness(frames: torch.Tensor) -> list[float]:
    return frames.double().mean((1, 2, 3)).tolist()


def test_frames_are_read_in_order_of_presentation(tmp_path: Path) -> None:
    write_video(tmp_path / "v.mp4", 23)
    frames = read_frames(Root(tmp_path), "v.mp4", 8, 16)
    assert (frames.shape, frames.dtype) == ((8, 3, 16, 16), torch.uint8)
    assert brightness(frames) == pytest.approx([10 * n for n in range(0, 16, 2)], abs=4)
    spread = read_frames(Root(tmp_path), "v.mp4", 3, 16, published=False)
    assert brightness(spread) == pytest.approx([0, 110, 220], abs=4)


def test_short_videos_repeat_frames(tmp_path: Path) -> None:
    write_video(tmp_path / "v.mp4", 3)
    assert brightness(read_frames(Root(tmp_path), "v.mp4", 4, 8)) == pytest.approx([0] * 4, abs=4)
    spread = read_frames(Root(tmp_path), "v.mp4", 4, 8, published=False)
    assert brightness(spread) == pytest.approx([0, 10, 10, 20], abs=4)


def test_broken_videos_are_named(tmp_path: Path) -> None:
    write_video(tmp_path / "v.mp4", 30)
    data = (tmp_path / "v.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(data[: len(data) // 2])
    (tmp_path / "text.mp4").write_text("no video")
    for name in ("cut.mp4", "text.mp4", "gone.mp4"):
        with pytest.raises(BrokenSampleError, match=name):
            read_frames(Root(tmp_path), name, 8, 16)


def test_a_sound_file_is_no_video(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate = 8000
        container.mux([*stream.encode(frame), *stream.encode()])
    with pytest.raises(BrokenSampleError, match=r"sound\.mp4: there is no video in it"):
        read_frames(Root(tmp_path), "sound.mp4", 8, 16)

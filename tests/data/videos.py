"""Small videos for tests."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np


def write_video(file: Path, frames: int, size: tuple[int, int] = (32, 48)) -> None:
    """A video in which frame n is as bright as 10 * n % 250, encoded with frames that refer to later ones."""
    with av.open(str(file), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.height, stream.width = size
        stream.pix_fmt = "yuv420p"
        stream.codec_context.max_b_frames = 2
        stream.codec_context.gop_size = 12
        stream.bit_rate = 2_000_000
        for number in range(frames):
            pixels = np.full((*size, 3), 10 * number % 250, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
        container.mux(stream.encode())

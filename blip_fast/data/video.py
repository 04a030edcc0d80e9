"""Which frames of a video a model sees, and how they are read from its file."""

from __future__ import annotations

import av
import numpy as np
import torch
from av.container import InputContainer
from av.error import FFmpegError
from av.stream import Stream
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation
from numpy.typing import NDArray

from blip_fast.data.pictures import BrokenSampleError
from blip_fast.data.roots import Root

RETRIEVAL_FRAMES = 8  # per video, paper section 5.6


def uniform_frames(total: int, count: int, published: bool = True) -> list[int]:
    """Indices of ``count`` frames, spread over a video of ``total`` frames.

    Args:
        total: frames of the video, at least 1.
        count: frames wanted, at least 1; a shorter video repeats some.
        published: as the published evaluation samples, which truncates the step to an integer: of 100 frames 8 are
            0, 12, ..., 84, and fewer than ``count`` frames give the first one only. False: from the first to the last
            frame in equal steps, rounded to the nearest.

    Raises ValueError where either number is below 1.
    """
    for name, value in (("total", total), ("count", count)):
        if value < 1:
            raise ValueError(f"{name}={value}; expected at least one frame")
    if published:
        return [index * (total // count) for index in range(count)]
    steps = max(count - 1, 1)
    return [(2 * index * (total - 1) + steps) // (2 * steps) for index in range(count)]


def read_frames(root: Root, path: str, count: int, image_size: int, published: bool = True) -> torch.Tensor:
    """``count`` frames of a video below ``root``, squashed to (image_size, image_size): (count, 3, S, S) uint8.

    Frames are those of :func:`uniform_frames`, of the best video stream, scaled by bicubic interpolation and turned as the
    file asks for: what the published program's reader (decord) does.

    Raises:
        BrokenSampleError: the video is missing, cannot be decoded, or ends before the frames wanted.
        ValueError: ``path`` is a link that leads out of the root.
    """
    file = root.file(path)
    try:
        total = _count_frames(file)
        wanted = uniform_frames(total, count, published)
        frames = _decode_frames(file, set(wanted), image_size)
    except (FFmpegError, OSError, ValueError) as error:
        raise BrokenSampleError(f"{path}: {error}") from error
    missing = [index for index in wanted if index not in frames]
    if missing:
        raise BrokenSampleError(f"{path}: frame {missing[0]} of {total} is missing")
    return torch.from_numpy(np.stack([frames[index] for index in wanted])).permute(0, 3, 1, 2)


def _count_frames(file: str) -> int:
    # Packets are counted, since headers are often wrong about the number of frames; nothing is decoded for it.
    with av.open(file) as container:
        return sum(1 for packet in container.demux(_best_stream(container)) if packet.size)


def _decode_frames(file: str, wanted: set[int], image_size: int) -> dict[int, NDArray[np.uint8]]:
    """Pixels (S, S, 3) of the frames with the numbers ``wanted``, in order of presentation."""
    frames: dict[int, NDArray[np.uint8]] = {}
    with av.open(file) as container:
        for number, frame in enumerate(container.decode(_best_stream(container))):
            if number in wanted and isinstance(frame, VideoFrame):
                frames[number] = _pixels(frame, image_size)
            if number >= max(wanted):
                break
    return frames


def _best_stream(container: InputContainer) -> Stream:
    stream = container.streams.best("video")
    if stream is None:
        raise ValueError("there is no video in it")
    return stream


def _pixels(frame: VideoFrame, image_size: int) -> NDArray[np.uint8]:
    scaled = frame.reformat(image_size, image_size, "rgb24", interpolation=Interpolation.BICUBIC)
    return np.ascontiguousarray(np.rot90(scaled.to_ndarray(), frame.rotation // 90))

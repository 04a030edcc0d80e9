"""Which frames of a video a model sees."""

from __future__ import annotations

RETRIEVAL_FRAMES = 8  # per video, paper section 5.6
QUESTION_FRAMES = 16


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

"""Sampling of frames."""

from __future__ import annotations

import numpy as np
import pytest

from blip_fast.data.video import uniform_frames


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

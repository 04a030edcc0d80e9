"""Resizing of position embeddings against the original implementation."""

from __future__ import annotations

import pytest
import torch

from blip_fast.checkpoints.pos_embed import interpolate_pos_embed
from tests import golden


@pytest.mark.parametrize("sizes", ["4_to_6", "6_to_3", "14_to_24", "24_to_30"])
def test_interpolation(sizes: str) -> None:
    tensors, _ = golden.load("pos_embed_and_schedules")
    expected = tensors[f"pos_{sizes}.out"]
    actual = interpolate_pos_embed(tensors[f"pos_{sizes}.in"], patches=expected.shape[1] - 1)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)


def test_same_size_is_left_alone_and_odd_sizes_are_refused() -> None:
    embedding = torch.randn(1, 17, 8)
    assert interpolate_pos_embed(embedding, patches=16) is embedding
    with pytest.raises(ValueError, match="square"):
        interpolate_pos_embed(embedding, patches=15)

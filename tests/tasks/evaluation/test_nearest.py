"""The baseline of copied captions."""

from __future__ import annotations

import pytest
import torch

from blip_fast.tasks.evaluation.nearest import copied_captions


def test_captions_of_the_nearest_pictures() -> None:
    candidates = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    pictures = candidates[[2, 0]] + 0.01
    assert copied_captions(pictures, candidates, ["a", "b", "c", "d"]) == ["c", "a"]
    with pytest.raises(ValueError, match="captions has 1 texts for 4 candidates"):
        copied_captions(pictures, candidates, ["a"])

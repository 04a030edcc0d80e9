"""The benchmark of the launcher in small."""

from __future__ import annotations

from pathlib import Path

import torch

from blip_fast.benchmarks.models.launcher_overhead import measure
from tests.models.common import SIZES


def test_both_kinds_of_step_are_timed(tmp_path: Path) -> None:
    fields = {name: value for name, value in SIZES.items() if name not in ("image_size", "queue_size", "vocab_size")}
    found = measure(torch.device("cpu"), 5, tmp_path, batch_size=4, image_size=16, queue_size=16, model=fields)
    assert found["launcher"]["runs"] == found["bare"]["runs"] == 5
    assert found["launcher"]["median_s"] > 0
    assert found["ratio"]["low"] <= found["ratio"]["value"] <= found["ratio"]["high"]
    assert not list(tmp_path.glob("*.pth"))  # stopped before a checkpoint

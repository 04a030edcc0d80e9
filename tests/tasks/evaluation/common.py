"""Batches and models for the tests of evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace

from blip_fast.config import BlipConfig
from blip_fast.data.packing import pack
from tests import golden

NLVR_TARGETS = 4
NLVR_RIGHT = (0, 2, 3)  # samples of the golden case that its model judges rightly


def nlvr_batches(indices: Sequence[int], batch_size: int = 2) -> list[SimpleNamespace]:
    """The chosen samples of the golden case."""
    tensors, _ = golden.load("nlvr")
    pairs = tensors["image"].unflatten(0, (2, -1)).transpose(0, 1)
    parts = [list(indices[start : start + batch_size]) for start in range(0, len(indices), batch_size)]
    return [
        SimpleNamespace(
            image_pairs=pairs[part],
            texts=pack(tensors["ids"][part], tensors["mask"][part]),
            labels=tensors["targets"][part],
        )
        for part in parts
    ]


def smallest_config() -> BlipConfig:
    """The published vocabulary and hardly anything else."""
    text = dict(text_layers=1, text_width=16, text_heads=2, text_intermediate=16)
    return BlipConfig.tiny(image_size=16, vit_width=16, vit_depth=1, vit_heads=2, **text)

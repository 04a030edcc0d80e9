"""Batches from golden cases."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace

from tests import golden


def nlvr_batches(indices: Sequence[int], batch_size: int = 2) -> list[SimpleNamespace]:
    """The chosen samples of the golden case, of which some are judged wrongly."""
    tensors, _ = golden.load("nlvr")
    pairs = tensors["image"].unflatten(0, (2, -1)).transpose(0, 1)
    parts = [list(indices[start : start + batch_size]) for start in range(0, len(indices), batch_size)]
    return [
        SimpleNamespace(
            image_pairs=pairs[part],
            input_ids=tensors["ids"][part],
            attention_mask=tensors["mask"][part],
            labels=tensors["targets"][part],
        )
        for part in parts
    ]

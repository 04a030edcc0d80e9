"""Accuracy on NLVR2."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import torch
from torch import Tensor

from blip_fast.models.nlvr import BlipNLVR
from blip_fast.models.strings import Texts
from blip_fast.training.distributed import sum_over_ranks


class PairBatch(Protocol):
    """Image pairs (B, 2, 3, S, S) with a sentence each, and whether it is true (B,)."""

    @property
    def image_pairs(self) -> Tensor: ...

    @property
    def texts(self) -> Texts: ...

    @property
    def labels(self) -> Tensor: ...


@torch.no_grad()
def accuracy(model: BlipNLVR, own_batches: Iterable[PairBatch]) -> float:
    """Share of the sentences of all ranks that are judged rightly; all ranks call it together."""
    right = torch.zeros(2, dtype=torch.int64, device=next(model.parameters()).device)
    for batch in own_batches:
        logits = model(batch.image_pairs, batch.texts).logits
        right[0] += (logits.argmax(1) == batch.labels).sum()
        right[1] += len(batch.labels)
    hits, seen = sum_over_ranks(right).tolist()
    if not seen:
        raise ValueError("own_batches holds no sample on any rank; expected at least one")
    return hits / seen

"""Enqueue of momentum features, as published but for queues of any size: a ring buffer with wrap-around."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def enqueue_(queue: Tensor, features: Tensor, pointer: Tensor) -> None:
    """Write ``features`` (N, E) into the columns of ``queue`` (E, Q) from ``pointer`` on and advance it, in place."""
    size, count = queue.shape[1], features.shape[0]
    kept = min(count, size)  # of more rows than columns only the last ones survive
    columns = (pointer + torch.arange(count - kept, count, device=queue.device)) % size
    queue[:, columns] = features[count - kept :].T.to(queue.dtype)
    pointer.copy_((pointer + count) % size)

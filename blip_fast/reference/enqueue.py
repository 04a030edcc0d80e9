"""Ring buffer of momentum features."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def enqueue_(queue: Tensor, features: Tensor, pointer: Tensor) -> None:
    """Write features (N, E) into the columns of queue (E, Q) from ``pointer`` on, wrapping around.

    ``pointer`` (one int64 element, on the queue's device) is advanced in place by N modulo Q. With N > Q the last Q
    features remain, as if written one after the other. Any dtype; features are converted to the queue's. Nothing is
    read back to the host. Queues that share a pointer get a copy of it for all but the last call.
    """
    size, count = queue.shape[1], features.shape[0]
    if features.shape[1] != queue.shape[0]:
        raise ValueError(f"features have width {features.shape[1]}; the queue (E, Q) expects E={queue.shape[0]}")
    kept = features[-size:]  # of two writes to a column, only the last one counts
    columns = (pointer + torch.arange(count - kept.shape[0], count, device=queue.device)) % size
    queue.index_copy_(1, columns, kept.t().to(queue.dtype))
    pointer.add_(count).remainder_(size)

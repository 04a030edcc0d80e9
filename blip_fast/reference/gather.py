"""Collecting a batch from all ranks. Without a process group every function returns what it was given."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """Number of ranks, 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Rank of this process, 0 without a process group."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


@torch.no_grad()
def gather_rows(rows: Tensor) -> Tensor:
    """Rows (B, ...) of every rank, in rank order: (W * B, ...). No gradient; all ranks need the same B."""
    if world_size() == 1:
        return rows
    parts = [torch.empty_like(rows) for _ in range(world_size())]
    dist.all_gather(parts, rows.contiguous())
    return torch.cat(parts)


class GatherWithGradient(torch.autograd.Function):
    """Gathers rows; the gradient of a row is the sum of its gradients on all ranks."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        ctx.batch = rows.shape[0]
        return gather_rows(rows)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        total = grad.contiguous()
        dist.all_reduce(total)
        return total.narrow(0, rank() * ctx.batch, ctx.batch)


def gather_rows_with_gradient(rows: Tensor) -> Tensor:
    """As :func:`gather_rows`, with a gradient for this rank's rows."""
    return rows if world_size() == 1 else GatherWithGradient.apply(rows)

"""How ranks divide a data set for evaluation, and put the parts together again."""

from __future__ import annotations

import torch
from torch import Tensor

from blip_fast.reference.gather import gather_rows


def shard(count: int, rank: int, ranks: int) -> range:
    """The samples of one rank: contiguous, each sample on one rank only, sizes differ by at most one."""
    if not 0 <= rank < ranks:
        raise ValueError(f"rank={rank}; expected 0 to {ranks - 1}")
    return range(count * rank // ranks, count * (rank + 1) // ranks)


def join_shards(rows: Tensor, count: int, ranks: int) -> Tensor:
    """Rows (own, ...) of :func:`shard` on every rank -> (count, ...) on every rank, in the order of the data set.

    ``ranks`` is the number of processes, or 1 where this one works alone.
    """
    if ranks == 1:
        return rows
    sizes = [len(shard(count, rank, ranks)) for rank in range(ranks)]
    padded = rows.new_zeros((max(sizes), *rows.shape[1:]))
    padded[: len(rows)] = rows
    parts = gather_rows(padded).split(max(sizes))
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

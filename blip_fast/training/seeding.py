"""One seed for every source of randomness, so that a run on the same machine repeats to the bit."""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Iterator

import numpy as np
import torch

# cuBLAS repeats its sums in the same order only with this workspace setting, read when CUDA starts.
_CUBLAS_VARIABLE, _CUBLAS_VALUE = "CUBLAS_WORKSPACE_CONFIG", ":4096:8"


def seed_everything(seed: int, rank: int = 0) -> torch.Generator:
    """Seed torch, numpy and random with ``seed + rank`` (as published) and return a generator for data loaders."""
    if seed < 0:
        raise ValueError(f"seed={seed} must not be negative")
    torch.manual_seed(seed + rank)
    np.random.seed((seed + rank) % 2**32)  # noqa: NPY002  (published augmentations draw from it)
    random.seed(seed + rank)
    return torch.Generator().manual_seed(seed + rank)


@contextlib.contextmanager
def deterministic_algorithms() -> Iterator[None]:
    """Within the block torch picks algorithms that repeat to the bit, and warns where it has none."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory
    os.environ.setdefault(_CUBLAS_VARIABLE, _CUBLAS_VALUE)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # it writes every new tensor twice
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.utils.deterministic.fill_uninitialized_memory = fill


def seed_worker(worker_id: int) -> None:
    """``worker_init_fn`` of a data loader: numpy and random follow the seed that torch gave this worker."""
    seed = torch.initial_seed() % 2**32
    np.random.seed(seed)  # noqa: NPY002
    random.seed(seed)

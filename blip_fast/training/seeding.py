"""One seed for every source of randomness, so that a run on the same machine repeats to the bit."""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Iterator, Mapping
from typing import Any, cast

import numpy as np
import torch

# cuBLAS repeats its sums in the same order only with this workspace setting, read when CUDA starts.
_CUBLAS_VARIABLE, _CUBLAS_VALUE = "CUBLAS_WORKSPACE_CONFIG", ":4096:8"


def seed_everything(seed: int, rank: int = 0) -> None:
    """Seed torch, numpy and random with ``seed + rank`` as published."""
    if seed < 0:
        raise ValueError(f"seed={seed} must not be negative")
    torch.manual_seed(seed + rank)
    np.random.seed((seed + rank) % 2**32)  # noqa: NPY002  (published augmentations draw from it)
    random.seed(seed + rank)


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


def random_state() -> dict[str, Any]:
    """States of all generators of this process, as tensors and plain values."""
    name, keys, position, has_gauss, gauss = cast(tuple[Any, ...], np.random.get_state())  # noqa: NPY002
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "numpy": [str(name), torch.from_numpy(keys.astype(np.int64)), int(position), int(has_gauss), float(gauss)],
        "python": list(random.getstate()[1]),
        "gauss": random.getstate()[2],
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def restore_random_state(state: Mapping[str, Any]) -> None:
    """Put back what `random_state` gave."""
    torch.set_rng_state(state["torch"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    random.setstate((3, tuple(state["python"]), state["gauss"]))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


@contextlib.contextmanager
def unchanged_random_state() -> Iterator[None]:
    """Put all generators back at the end of the block."""
    state = random_state()
    try:
        yield
    finally:
        restore_random_state(state)

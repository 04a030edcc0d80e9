"""What the tests of all operations share: the backends that can run here, and devices to run them on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from blip_fast.ops import registry


def backends_of(operation: str) -> list[object]:
    """Parameters ``backend`` for pytest: every backend of the operation that runs on this machine."""
    usable = [b for b in registry.BACKENDS if registry.OPERATIONS[operation].unavailable(b) is None]
    return [pytest.param(b, marks=pytest.mark.triton if b == "triton" else ()) for b in usable]


def device_of(backend: str) -> str:
    """Where a backend's inputs live: the GPU for cuda and (outside the interpreter) triton, else the CPU."""
    on_gpu = backend == "cuda" or (backend == "triton" and os.environ.get("TRITON_INTERPRET") != "1")
    return "cuda" if on_gpu else "cpu"


def dtypes_of(backend: str) -> list[torch.dtype]:
    """Dtypes a backend is tested with: the interpreter knows no bfloat16, only the reference takes float64."""
    dtypes = [torch.float32, torch.float16, torch.bfloat16]
    if backend == "triton" and registry.interpreting():
        dtypes.remove(torch.bfloat16)
    return [torch.float64, *dtypes] if backend == "reference" else dtypes


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """Fill fresh `torch.empty` memory with NaN, in Python and in C++, so that an element which is never written shows."""
    empty, empty_like = torch.empty, torch.empty_like

    def poison(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

    with (
        mock.patch.object(torch, "empty", lambda *a, **k: poison(empty(*a, **k))),
        mock.patch.object(torch, "empty_like", lambda *a, **k: poison(empty_like(*a, **k))),
        deterministic_algorithms(),
    ):
        yield


@contextmanager
def deterministic_algorithms() -> Iterator[None]:
    """Torch then fills what its `empty` functions give, from C++ too (`torch.utils.deterministic`)."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


class NoSynchronisation(TorchDispatchMode):
    """Fails where a device would be waited for, or a shape would depend on data."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = str(function)
        assert not any(n in name for n in ("_local_scalar_dense", "nonzero", "masked_select", "bincount", "unique")), (
            name
        )
        if "aten.index" in name:
            assert not any(getattr(index, "dtype", None) == torch.bool for index in args[1]), name
        return function(*args, **kwargs or {})

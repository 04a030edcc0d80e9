"""blip_fast: BLIP (arXiv 2201.12086) and its training loop on fused Triton, CUDA and C++ kernels."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from blip_fast.version import __version__

if TYPE_CHECKING:
    from blip_fast import models, ops, reference
    from blip_fast.ops.registry import backend, backends

__all__ = ["__version__", "backend", "backends", "models", "ops", "reference"]


def __getattr__(name: str) -> object:
    """The names that bring torch, imported when they are used: the command line's help must not wait for it."""
    if name in ("models", "ops", "reference"):
        return importlib.import_module(f"{__name__}.{name}")
    if name in ("backend", "backends"):
        return getattr(importlib.import_module(f"{__name__}.ops.registry"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

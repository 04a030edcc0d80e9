"""blip_fast: BLIP (arXiv 2201.12086) and its training loop on fused Triton, CUDA and C++ kernels."""

from __future__ import annotations

from blip_fast.ops.registry import backend, backends
from blip_fast.version import __version__

__all__ = ["__version__", "backend", "backends"]

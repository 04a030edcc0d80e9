"""What launches ask of the GPU and of torch's settings."""

from __future__ import annotations

import functools

import torch


@functools.cache
def multiprocessors(device: torch.device) -> int:
    """Of the GPU; in the interpreter 16, so that work is split and its parts are merged, but not into very many."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 16


@functools.cache
def shared_memory(device: torch.device) -> int:
    """Bytes that a block may use: 227 KB on an H100, as here in the interpreter, and 99 KB on sm_86, sm_89 and sm_120."""
    if device.type != "cuda":
        return 232448
    return int(torch.cuda.get_device_properties(device).shared_memory_per_block_optin)  # type: ignore[attr-defined]


def precision(dtype: torch.dtype) -> str:
    """Of products of tiles of ``dtype``: TF32 for float32 where torch may use it, by its old or its new switch."""
    allowed = torch.backends.cuda.matmul.fp32_precision == "tf32"
    return "tf32" if dtype == torch.float32 and allowed else "ieee"

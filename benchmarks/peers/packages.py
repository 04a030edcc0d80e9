"""Peers that are packages of their own, and run on a GPU only."""

from __future__ import annotations

import importlib.util

import torch
from torch import Tensor

from blip_fast.cli.doctor import why_no_apex


def why_absent(package: str, device: torch.device) -> str | None:
    """Why a package cannot be measured on ``device``; None where it can."""
    if importlib.util.find_spec(package) is None:
        return f"{package} is not installed"
    return None if device.type == "cuda" else "it needs a CUDA device"


def why_no_flash_attn(dtype: torch.dtype, device: torch.device) -> str | None:
    """Why flash-attn cannot be measured in ``dtype``; None where it can."""
    return "it takes no float32" if dtype == torch.float32 else why_absent("flash_attn", device)


def flash_attention(
    query: Tensor, key: Tensor, value: Tensor, cu_seqlens: tuple[Tensor, Tensor], longest: tuple[int, int], causal: bool
) -> Tensor:
    """flash-attn on packed rows (T, H, D); ``cu_seqlens`` (int32) and ``longest`` are those of queries and of keys."""
    from flash_attn import flash_attn_varlen_func

    return flash_attn_varlen_func(query, key, value, *cu_seqlens, *longest, causal=causal)


def why_apex_is_absent(extension: str, device: torch.device) -> str | None:
    """Why NVIDIA's apex, compiled with its module ``extension``, cannot be measured; None where it can."""
    reason = why_no_apex()
    return f"NVIDIA apex is {reason}" if reason else why_absent(extension, device)

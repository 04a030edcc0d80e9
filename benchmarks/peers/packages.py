"""Peers that are packages of their own, and run on a GPU only."""

from __future__ import annotations

import importlib.util

import torch


def why_absent(package: str, device: torch.device) -> str | None:
    """Why a package cannot be measured on ``device``; None where it can."""
    if importlib.util.find_spec(package) is None:
        return f"{package} is not installed"
    return None if device.type == "cuda" else "it needs a CUDA device"

"""Arithmetic of a step: fp32 as published, or autocast to bf16 or fp16 over fp32 weights."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch

PrecisionName = Literal["fp32", "bf16", "fp16"]
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Precision:
    """Autocast of forward passes, and for fp16 the scale of the loss."""

    def __init__(self, name: PrecisionName, device: torch.device) -> None:
        self.name = name
        self.device = device
        self.scaler = torch.amp.GradScaler("cuda" if device.type == "cuda" else "cpu", enabled=name == "fp16")

    @property
    def dtype(self) -> torch.dtype:
        """Of matrix products."""
        return _DTYPES.get(self.name, torch.float32)

    def autocast(self) -> AbstractContextManager[None]:
        """Context of a forward pass."""
        if self.name == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, self.dtype)

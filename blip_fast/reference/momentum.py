"""Momentum update, as published: a Python loop over the tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


@torch.no_grad()
def momentum_update_(params_m: Sequence[Tensor], params: Sequence[Tensor], momentum: float) -> None:
    """``params_m[i] = params_m[i] * momentum + params[i] * (1 - momentum)``, in place, pairwise."""
    for param_m, param in zip(params_m, params, strict=True):
        dtype = torch.promote_types(param_m.dtype, torch.float32)
        param_m.copy_(param_m.to(dtype) * momentum + param.to(dtype) * (1.0 - momentum))

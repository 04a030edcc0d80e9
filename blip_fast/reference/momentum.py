"""Exponential moving average of parameters, as published: a Python loop over the tensors."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


@torch.no_grad()
def momentum_update_(params_m: Iterable[Tensor], params: Iterable[Tensor], momentum: float) -> None:
    """In place ``p_m = p_m * momentum + p * (1 - momentum)``, tensor by tensor (0.995 in BLIP), in fp32 at least.

    ``params_m`` and ``params`` pair up; a different number of tensors is a ValueError.
    """
    for param_m, param in zip(params_m, params, strict=True):
        wide = param_m.to(torch.promote_types(param_m.dtype, torch.float32))  # param_m itself unless it is narrow
        wide.mul_(momentum).add_(param, alpha=1.0 - momentum)
        if wide is not param_m:
            param_m.copy_(wide)

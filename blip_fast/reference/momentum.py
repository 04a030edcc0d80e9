"""Exponential moving average of parameters: the momentum encoders."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


@torch.no_grad()
def momentum_update_(params_m: Iterable[Tensor], params: Iterable[Tensor], momentum: float) -> None:
    """In place ``p_m = p_m * momentum + p * (1 - momentum)``, tensor by tensor (0.995 in BLIP).

    ``params_m`` and ``params`` pair up; a different number of tensors is a ValueError.
    """
    for param_m, param in zip(params_m, params, strict=True):
        param_m.mul_(momentum).add_(param, alpha=1.0 - momentum)

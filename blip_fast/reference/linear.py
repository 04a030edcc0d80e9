"""A linear layer and the exact GELU behind it, in plain torch."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def linear(input: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool) -> Tensor:
    """``input @ weight.T + bias``, (R, K) -> (R, N), then GELU (arXiv 1606.08415) if asked for."""
    product = F.linear(input, weight, bias)
    return F.gelu(product) if gelu else product

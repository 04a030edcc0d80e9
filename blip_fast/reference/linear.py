"""A linear layer and the exact GELU behind it, in plain torch."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None, gelu: bool = False) -> Tensor:
    """``input @ weight.T + bias``, (..., K) -> (..., N), then GELU (arXiv 1606.08415) if asked for."""
    product = F.linear(input, weight, bias)
    return F.gelu(product) if gelu else product


def backward(
    grad_output: Tensor, input: Tensor, weight: Tensor, need_input: bool, need_weight: bool, need_bias: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of ``input @ weight.T + bias`` for input (R, K), weight (N, K) and bias (N,), those not needed empty."""
    grad_input = grad_output @ weight if need_input else input.new_empty(0)
    grad_weight = grad_output.t() @ input if need_weight else weight.new_empty(0)
    return grad_input, grad_weight, grad_output.sum(0) if need_bias else weight.new_empty(0)


def is_plain(module: nn.Module) -> bool:
    """Whether calling this layer is what its class does: no quantised or other subclass, no hooks, no method of its own."""
    hooks = (module._forward_pre_hooks, module._forward_hooks, module._backward_pre_hooks, module._backward_hooks)
    return type(module) in (nn.Linear, nn.LayerNorm) and not any(hooks) and "forward" not in vars(module)

"""A linear layer with the exact GELU behind it, for inference: few rows at the rate of memory, many at that of arithmetic.

Decoding multiplies a dozen rows with every weight of the model, which on a CPU takes torch's product much longer than reading
the weights (benchmarks/ops/linear.py). No Triton and no CUDA room: on a GPU the product is cuBLAS's, which the reference calls.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blip_fast.ops.registry import Operation
from blip_fast.reference import linear as reference


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None, gelu: bool = False) -> Tensor:
    """``input @ weight.T + bias``, and GELU (arXiv 1606.08415, with the error function) of it if ``gelu``.

    A row of the result depends on that row of the input alone, bit by bit: not on how many rows there are. For inference:
    no gradient is recorded.

    Args:
        input: (..., K) floating point, contiguous or not.
        weight: (N, K), bias: (N,), of the same dtype.
        gelu: apply GELU.

    Returns:
        (..., N), dtype of the input.

    Raises:
        ValueError: shapes or dtypes do not fit.
    """
    if weight.dim() != 2 or input.dim() < 1 or input.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"input has shape {tuple(input.shape)} and weight {tuple(weight.shape)}; expected (..., K), (N, K)"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias has shape {tuple(bias.shape)}; expected ({weight.shape[0]},)")
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None and tensor.dtype != input.dtype:
            raise ValueError(f"{name} is {tensor.dtype}; expected {input.dtype} as input")
    with torch.no_grad():
        rows = _operation.call(input.reshape(-1, input.shape[-1]).contiguous(), weight.contiguous(), bias, gelu)
    return rows.view(*input.shape[:-1], weight.shape[0])


def autocast_enabled(device: torch.device) -> bool:
    """Whether autocast is on for this device; "meta" has none, and torch refuses to say so."""
    return torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)


def linear_layer(module: nn.Module, input: Tensor, gelu: bool = False) -> Tensor:
    """``module(input)``, then GELU if asked for: by :func:`linear` where no gradient is wanted.

    Modules other than torch's own ``nn.Linear`` (a quantised one) compute as they do, and so does autocast.
    """
    plain = type(module) is nn.Linear and not torch.is_grad_enabled()
    if not plain or autocast_enabled(input.device) or input.dtype != module.weight.dtype:
        product = module(input)
        return F.gelu(product) if gelu else product
    return linear(input, module.weight, module.bias, gelu)


def linear_layers(like: Tensor) -> Callable[[nn.Module, Tensor, bool], Tensor]:
    """:func:`linear_layer` for a loop over many layers: the backend is chosen once, for inputs like this one (no gradient)."""
    if autocast_enabled(like.device):
        return linear_layer
    kernel = _operation.resolve(like)

    def apply(module: nn.Module, input: Tensor, gelu: bool = False) -> Tensor:
        if type(module) is nn.Linear:
            return kernel(input.contiguous(), module.weight.contiguous(), module.bias, gelu)
        return linear_layer(module, input, gelu)

    return apply


def _fake(input: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool) -> Tensor:
    return input.new_empty(input.shape[0], weight.shape[0])


def _flops(input: Any, weight: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    return 2 * input[0] * weight[0] * weight[1]


_operation = Operation("linear(Tensor input, Tensor weight, Tensor? bias, bool gelu) -> Tensor", _fake)
_operation.add_reference(reference.linear)
_operation.add_native("cpu", (torch.float32,))
_operation.add_flops(_flops)

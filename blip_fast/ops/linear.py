"""A linear layer with the exact GELU behind it, on a CPU: few rows at the rate of memory, many at that of arithmetic.

Decoding multiplies a dozen rows with every weight of the model, which on a CPU takes torch's product much longer than reading
the weights; in training torch's product leaves half of a Zen 5's arithmetic idle (benchmarks/ops/linear.py). No Triton and no
CUDA room: on a GPU the product is cuBLAS's, which the reference calls.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blip_fast import native
from blip_fast.ops.registry import Operation, autocast_enabled
from blip_fast.reference.linear import backward as reference_backward
from blip_fast.reference.linear import is_plain
from blip_fast.reference.linear import linear as eager

MANY_ROWS = 64  # from there on MKL at its full rate is faster, with AVX-512 twice as fast at 500 ...
MANY_PRODUCTS = 150e6  # ... but from there on (rows x K x N) ours by thirds is, where the CPU has AMX


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None, gelu: bool = False) -> Tensor:
    """``input @ weight.T + bias``, and GELU (arXiv 1606.08415, with the error function) of it if ``gelu``.

    Without gradient, a row of the result depends on that row of the input alone, bit by bit: not on how many rows there are,
    unless there are 64 or more on a CPU other than AMD's with AVX-512, where other products are faster. With gradient it is
    torch's product, but for fp32 on CPUs where ours is faster, and where a backend is forced. Under autocast it is torch's,
    in autocast's dtype.

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
    if not input.is_floating_point():
        raise ValueError(f"input is {input.dtype}; expected floating point")
    if autocast_enabled(input.device):
        return eager(input, weight, bias, gelu)
    parts = [part for part in (input, weight, bias) if part is not None]
    for name, tensor in zip(("weight", "bias"), parts[1:], strict=False):
        if tensor.dtype != input.dtype:
            raise ValueError(f"{name} is {tensor.dtype}; expected {input.dtype} as input")
    recorded = torch.is_grad_enabled() and any(part.requires_grad for part in parts)
    if _torch_is_faster(input, weight, recorded):
        return eager(input, weight, bias, gelu)
    flat = input.reshape(math.prod(input.shape[:-1]), input.shape[-1]).contiguous()
    fused, bias = gelu and not recorded, None if bias is None else bias.contiguous()
    rows = _operation.call(flat, weight.contiguous(), bias, fused).view(*input.shape[:-1], weight.shape[0])
    return F.gelu(rows) if gelu and not fused else rows


def _torch_is_faster(input: Tensor, weight: Tensor, recorded: bool) -> bool:
    forced = _operation.forced()
    if forced is not None:
        return recorded and forced not in _operation.backends  # "triton" for all operations leaves training to torch
    if input.device.type != "cpu" or input.dtype != torch.float32:
        return recorded
    rows = math.prod(input.shape[:-1])
    if isinstance(rows, torch.SymInt):  # an exported program serves every number of rows
        return recorded and not native.outruns_mkl()
    if native.multiplies_by_thirds() and rows * weight.numel() >= MANY_PRODUCTS:
        return False
    return not native.outruns_mkl() if recorded else rows >= MANY_ROWS and native.mkl_at_full_rate()


def linear_layer(module: nn.Module, input: Tensor, gelu: bool = False) -> Tensor:
    """``module(input)``, then GELU if asked, by :func:`linear`; a layer that is not plain computes as it does."""
    if isinstance(module, nn.Linear) and is_plain(module):
        return linear(input, module.weight, module.bias, gelu)
    product = module(input)
    return F.gelu(product) if gelu else product


def linear_layers(like: Tensor) -> Callable[[nn.Module, Tensor, bool], Tensor]:
    """:func:`linear_layer` for a loop over many layers: the backend is chosen once, for inputs like this one (no gradient)."""
    if autocast_enabled(like.device):
        return linear_layer
    kernel = _operation.resolve(like)

    def apply(module: nn.Module, input: Tensor, gelu: bool = False) -> Tensor:
        if (
            not (isinstance(module, nn.Linear) and is_plain(module))
            or not module.weight.dtype == input.dtype == like.dtype
        ):
            return linear_layer(module, input, gelu)
        chosen = eager if _torch_is_faster(input, module.weight, recorded=False) else kernel
        bias = None if module.bias is None else module.bias.contiguous()
        return chosen(input.contiguous(), module.weight.contiguous(), bias, gelu)

    return apply


def _fake(input: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool) -> Tensor:
    return input.new_empty(input.shape[0], weight.shape[0])


def _flops(input: Any, weight: Any, *args: Any, **kwargs: Any) -> int:
    return 2 * input[0] * weight[0] * weight[1]


def _backward_fake(
    grad_output: Tensor, input: Tensor, weight: Tensor, need_input: bool, need_weight: bool, need_bias: bool
) -> tuple[Tensor, Tensor, Tensor]:
    grad_input = torch.empty_like(input) if need_input else input.new_empty(0)
    grad_weight = torch.empty_like(weight) if need_weight else weight.new_empty(0)
    return grad_input, grad_weight, weight.new_empty(weight.shape[0] if need_bias else 0)


def _backward_flops(
    grad_output: Any, input: Any, weight: Any, need_input: bool, need_weight: bool, *args: Any, **kwargs: Any
) -> int:
    return 2 * input[0] * weight[0] * weight[1] * (need_input + need_weight)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    input, weight, _, gelu = inputs
    if gelu:
        raise RuntimeError(
            "gelu=True has no gradient inside the operation; expected blip_fast.ops.linear, which splits it"
        )
    ctx.save_for_backward(input, weight)


def _gradient(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
    input, weight = ctx.saved_tensors
    wanted = ctx.needs_input_grad[:3]
    run = reference_backward if torch.is_grad_enabled() else _backward.call  # the former can be differentiated
    gradients = run(grad_output.contiguous(), input, weight, *wanted)
    return (*(grad if needed else None for grad, needed in zip(gradients, wanted, strict=True)), None)


_operation = Operation("linear(Tensor input, Tensor weight, Tensor? bias, bool gelu) -> Tensor", _fake)
_operation.add_reference(eager)
_operation.add_native("cpu", (torch.float32,))
_operation.add_flops(_flops)
_operation.add_autograd(_gradient, _setup_context, differentiable=True)

_backward = Operation(
    "linear_backward(Tensor grad_output, Tensor input, Tensor weight, bool need_input, bool need_weight, bool need_bias) "
    "-> (Tensor, Tensor, Tensor)",
    _backward_fake,
)
_backward.add_reference(reference_backward)
_backward.add_native("cpu", (torch.float32,))
_backward.add_flops(_backward_flops)

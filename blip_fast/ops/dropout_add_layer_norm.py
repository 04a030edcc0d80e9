"""LayerNorm of a residual sum with dropout: the end of every transformer sub-layer of BLIP, in one pass over memory.

There is no CUDA C++ for it: the kernel is bound by memory bandwidth, which Triton's reaches. Where there is nothing to win,
in float32 on a CPU without dropout, the call is torch's sum and LayerNorm.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from blip_fast.ops.registry import Operation
from blip_fast.reference.dropout_add_layer_norm import backward as reference_backward
from blip_fast.reference.dropout_add_layer_norm import dropout_add_layer_norm as eager
from blip_fast.reference.dropout_add_layer_norm import forward as reference_forward
from blip_fast.reference.philox import dropout_state


def dropout_add_layer_norm(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    dropout_p: float = 0.0,
    seed: Tensor | int | None = None,
    offset: Tensor | int = 0,
    prenorm: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """``layer_norm(residual + dropout(x))``, over the last dimension ("Layer Normalization", Ba et al. 2016, section 3).

    Post-norm (BERT, BLIP's texts) returns the normed sum, which is the next residual. Pre-norm (ViT) returns the normed sum,
    which the next layer reads, and the sum itself, the next residual. The residual stream keeps the dtype of ``residual``; what
    a pre-norm layer reads has the dtype of ``x``. So in mixed precision the stream can be float32 beside bfloat16 layers.
    Arithmetic and statistics are float32. Autocast changes nothing. Second derivatives are not defined.

    Args:
        x: (..., C), the sub-layer's output; float32, bfloat16 or float16 (float64: reference backend).
        residual: of the shape of x; its dtype may differ.
        weight, bias: (C,), of one dtype.
        eps: added to the variance; 1e-12 in BLIP's texts, 1e-6 in its ViT.
        dropout_p: probability of dropping an element of x, in [0, 1); survivors are scaled by 1 / (1 - dropout_p).
        seed: 64-bit key of dropout, an int or an int64 tensor with one element; None: drawn from the device's generator.
        offset: an int or an int64 tensor with one element, of which the low 32 bits count: tells layers and steps apart. The
            mask depends on seed, offset, row and column alone; see `blip_fast.reference.dropout_add_layer_norm.keep_mask`.
        prenorm: return the sum, too.

    Returns:
        (..., C) normed sum; with ``prenorm`` a pair of it and the sum.

    Raises:
        ValueError: shapes, dtypes or devices do not fit, or dropout_p is outside [0, 1).
    """
    _check(x, residual, weight, bias)
    if dropout_p == 0 and _eager_is_faster(x, residual, weight):
        return eager(x, residual, weight, bias, eps, prenorm=prenorm)
    rng = dropout_state(dropout_p, seed, offset, x.device)
    tensors = (x, residual, weight, bias)
    keep_sum = prenorm or (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors))
    contiguous = (tensor.contiguous() for tensor in tensors)
    out, total, _, _ = _forward.call(*contiguous, float(eps), float(dropout_p), *rng, prenorm, keep_sum)
    return (out, total) if prenorm else out


def _eager_is_faster(x: Tensor, residual: Tensor, weight: Tensor) -> bool:
    """Without dropout, in float32 on a CPU: torch's sum and LayerNorm move 8 arrays where the fused form moves 7, for less
    work per call. A backend that is forced runs all the same.
    """
    plain = x.device.type == "cpu" and all(t.dtype == torch.float32 for t in (x, residual, weight))
    return plain and _forward.forced() is None


def _check(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor) -> None:
    if x.dim() == 0 or x.shape[-1] == 0 or not x.is_floating_point():
        raise ValueError(f"x is {x.dtype} of shape {tuple(x.shape)}; expected floating point (..., C), C > 0")
    if residual.shape != x.shape or not residual.is_floating_point():
        raise ValueError(
            f"residual is {residual.dtype} of shape {tuple(residual.shape)}; expected {tuple(x.shape)} as x"
        )
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor.shape != x.shape[-1:] or tensor.dtype != weight.dtype or not tensor.is_floating_point():
            raise ValueError(
                f"{name} is {tensor.dtype} of shape {tuple(tensor.shape)}; expected ({x.shape[-1]},), of one dtype with weight"
            )
    for name, tensor in (("residual", residual), ("weight", weight), ("bias", bias)):
        if tensor.device != x.device:
            raise ValueError(f"{name} is on {tensor.device}; expected {x.device} as x")


def _forward_fake(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    dropout_p: float,
    seed: Tensor | None,
    offset: Tensor | None,
    prenorm: bool,
    keep_sum: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    out = torch.empty_like(x if prenorm else residual)
    total = torch.empty_like(residual) if keep_sum else residual.new_empty(0)
    rows = x.new_empty(x.numel() // weight.shape[0], dtype=torch.promote_types(residual.dtype, torch.float32))
    return out, total, rows, torch.empty_like(rows)


def _backward_fake(
    grad_out: Tensor,
    grad_sum: Tensor | None,
    total: Tensor,
    mean: Tensor,
    inverse: Tensor,
    weight: Tensor,
    x_dtype: torch.dtype,
    dropout_p: float,
    seed: Tensor | None,
    offset: Tensor | None,
    prenorm: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    separate = seed is not None or x_dtype != total.dtype
    grad_x = total.new_empty(total.shape if separate else 0, dtype=x_dtype)
    return grad_x, torch.empty_like(total), torch.empty_like(weight), torch.empty_like(weight)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, _, weight, _, _, ctx.dropout_p, seed, offset, ctx.prenorm, _ = inputs
    out, total, mean, inverse = output
    ctx.out_dtype, ctx.x_dtype = out.dtype, x.dtype
    ctx.mark_non_differentiable(mean, inverse, *(() if ctx.prenorm else (total,)))
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(total, mean, inverse, weight, seed, offset)


def _gradient(
    ctx: Any, grad_out: Tensor | None, grad_sum: Tensor | None, *_: Tensor | None
) -> tuple[Tensor | None, ...]:
    total, mean, inverse, weight, seed, offset = ctx.saved_tensors
    if grad_out is None:
        grad_out = torch.zeros_like(total, dtype=ctx.out_dtype)
    grad_sum = None if grad_sum is None else grad_sum.contiguous()
    grad_x, grad_residual, grad_weight, grad_bias = _backward.call(
        grad_out.contiguous(),
        grad_sum,
        total,
        mean,
        inverse,
        weight,
        ctx.x_dtype,
        ctx.dropout_p,
        seed,
        offset,
        ctx.prenorm,
    )
    shared = seed is None and ctx.x_dtype == total.dtype
    gradients = (grad_residual if shared else grad_x, grad_residual, grad_weight, grad_bias)
    wanted = ctx.needs_input_grad[:4]
    return (*(grad if needed else None for grad, needed in zip(gradients, wanted, strict=True)), *(None,) * 6)


_forward = Operation(
    "dropout_add_layer_norm(Tensor x, Tensor residual, Tensor weight, Tensor bias, float eps, float dropout_p, "
    "Tensor? seed, Tensor? offset, bool prenorm, bool keep_sum) -> (Tensor, Tensor, Tensor, Tensor)",
    _forward_fake,
)
_forward.add_reference(reference_forward)
_forward.add_native("cpu")
_forward.add_triton("dropout_add_layer_norm:forward")
_forward.add_autograd(_gradient, _setup_context)

_backward = Operation(
    "dropout_add_layer_norm_backward(Tensor grad_out, Tensor? grad_sum, Tensor sum, Tensor mean, Tensor inverse, "
    "Tensor weight, ScalarType x_dtype, float dropout_p, Tensor? seed, Tensor? offset, bool prenorm) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    _backward_fake,
)
_backward.add_reference(reference_backward)
_backward.add_native("cpu")
_backward.add_triton("dropout_add_layer_norm:backward")

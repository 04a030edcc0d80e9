"""Cross-entropy of a linear layer without its logits: the language-modelling head of BLIP (section 3.1, LM loss).

A forward and a backward operation. Between them lies a tensor of the shape of weight: it holds the transposed logits of the
first C counted rows, and backward turns it into the gradient of weight, so three matrix products suffice instead of four
and nothing of size T x V is needed. There is no CUDA C++ for it: its products are those of Triton's tensor cores.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from blip_fast.ops.registry import Operation, autocast_enabled
from blip_fast.reference.linear_cross_entropy import backward as reference_backward
from blip_fast.reference.linear_cross_entropy import forward as reference_forward

REDUCTIONS = ("mean", "sum", "none")


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """``cross_entropy(linear(hidden, weight, bias), labels)`` without the T x V logits, forward or backward.

    With z = hidden @ weight.T + bias and y the label, a row's loss is ``logsumexp(z) - (1 - s) * z[y] - s * mean(z)``, s being
    the label smoothing (uniform over the vocabulary, the true word included: Szegedy et al. 2016, section 7). Rows with
    ``ignore_index`` are left out before the products: they cost nothing, and have loss and gradient 0.

    Sums are float32. Half-precision logits that are kept for backward are rounded as those of `linear`; the loss is not.
    Under autocast, hidden, weight and bias are cast as for `linear`. Second derivatives are not defined.

    Args:
        hidden: (T, C) float32, bfloat16 or float16 (float64: reference backend).
        weight: (V, C), of the dtype of hidden.
        bias: (V,), of the dtype of hidden, or None.
        labels: (T,) int64 in [0, V), or ``ignore_index``. Others: an error on the CPU, loss and gradient NaN on a GPU.
        label_smoothing: in [0, 1].
        ignore_index: label of rows that do not count.
        reduction: ``"mean"`` over the rows that count (NaN if there is none, as in torch), ``"sum"``, or ``"none"``.

    Returns:
        float32 (float64 for float64) scalar, or (T,) losses for reduction ``"none"``.

    Raises:
        ValueError: a shape, dtype or device does not fit, or label_smoothing or reduction is none of the above.
    """
    _check(hidden, weight, bias, labels, label_smoothing, reduction)
    # Not recorded as saved when only hidden learns, or nothing does.
    keep_logits = torch.is_grad_enabled() and weight.requires_grad
    bias = None if bias is None else bias.contiguous()
    losses = _forward.call(
        hidden.contiguous(), weight.contiguous(), bias, labels.contiguous(), label_smoothing, ignore_index, keep_logits
    )[0]
    if reduction == "none":
        return losses
    total = losses.sum()
    return total if reduction == "sum" else total / (labels != ignore_index).sum()


def _check(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, label_smoothing: float, reduction: str
) -> None:
    if hidden.dim() != 2:
        raise ValueError(f"hidden has shape {tuple(hidden.shape)}; expected (T, C)")
    if weight.dim() != 2 or weight.shape[1] != hidden.shape[1] or 0 in weight.shape:
        raise ValueError(f"weight has shape {tuple(weight.shape)}; expected (V, {hidden.shape[1]}), neither of them 0")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(
            f"bias has shape {tuple(bias.shape)}; expected ({weight.shape[0]},), a number per row of weight"
        )
    if labels.shape != hidden.shape[:1] or labels.dtype != torch.int64:
        raise ValueError(
            f"labels has shape {tuple(labels.shape)} and dtype {labels.dtype}; expected ({hidden.shape[0]},) and int64"
        )
    if not 0.0 <= label_smoothing <= 1.0:
        raise ValueError(f"label_smoothing is {label_smoothing}; expected a number in [0, 1]")
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction is '{reduction}'; expected one of {', '.join(REDUCTIONS)}")
    others = {"weight": weight, "bias": bias, "labels": labels}
    for name, tensor in others.items():
        if tensor is not None and tensor.device != hidden.device:
            raise ValueError(f"{name} is on {tensor.device}; expected {hidden.device} as hidden")
        if tensor is not None and tensor is not labels and _dtype_inside(tensor) != _dtype_inside(hidden):
            raise ValueError(f"{name} is {tensor.dtype}; expected {hidden.dtype} as hidden")


def _dtype_inside(tensor: Tensor) -> torch.dtype:
    """The dtype of a tensor once autocast has had its say."""
    if autocast_enabled(tensor.device) and tensor.is_floating_point() and tensor.dtype != torch.float64:
        return torch.get_autocast_dtype(tensor.device.type)
    return tensor.dtype


def _forward_fake(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    label_smoothing: float,
    ignore_index: int,
    keep_logits: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    rows = hidden.new_empty(hidden.shape[0], dtype=torch.promote_types(hidden.dtype, torch.float32))
    return rows, torch.empty_like(rows), torch.empty_like(weight) if keep_logits else weight.new_empty(0)


def _backward_fake(
    grad_losses: Tensor,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    lse: Tensor,
    logits: Tensor,
    label_smoothing: float,
    ignore_index: int,
    need_hidden: bool,
    need_weight: bool,
    need_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    grad_hidden = torch.empty_like(hidden) if need_hidden else hidden.new_empty(0)
    grad_weight = torch.empty_like(weight) if need_weight and not logits.numel() else weight.new_empty(0)
    return grad_hidden, grad_weight, weight.new_empty(weight.shape[0] if need_bias else 0)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    hidden, weight, bias, labels, ctx.label_smoothing, ctx.ignore_index, _ = inputs
    _, lse, logits = output
    ctx.spent = False
    ctx.mark_non_differentiable(lse, logits)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(hidden, weight, bias, labels, lse, logits)


def _gradient(ctx: Any, grad_losses: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad_losses is None:
        return (None,) * 7
    hidden, weight, bias, labels, lse, logits = ctx.saved_tensors
    # After a first backward through a retained graph the kept logits are a gradient.
    kept = logits.numel() > 0 and not ctx.spent
    ctx.spent |= kept
    if not kept:
        logits = weight.new_empty(0)
    need = ctx.needs_input_grad[:3]
    smoothing, ignore_index = ctx.label_smoothing, ctx.ignore_index
    with torch.autograd._unsafe_preserve_version_counter(logits):
        grad_hidden, grad_weight, grad_bias = _backward.call(
            grad_losses.contiguous(), hidden, weight, bias, labels, lse, logits, smoothing, ignore_index, *need
        )
    gradients = (grad_hidden, logits if kept else grad_weight, grad_bias)
    return (*(g if wanted else None for g, wanted in zip(gradients, need, strict=True)), None, None, None, None)


def _forward_flops(hidden: Any, weight: Any, *_: Any, **__: Any) -> int:
    return 2 * hidden[0] * weight[0] * weight[1]


def _backward_flops(grad_losses: Any, hidden: Any, weight: Any, *rest: Any, **__: Any) -> int:
    logits, need_hidden, need_weight = rest[3], rest[6], rest[7]
    recomputed = max(0, hidden[0] - hidden[1]) if 0 not in logits else hidden[0]
    rows = recomputed + hidden[0] * (bool(need_hidden) + bool(need_weight))
    return 2 * rows * weight[0] * weight[1]


_forward = Operation(
    "linear_cross_entropy(Tensor hidden, Tensor weight, Tensor? bias, Tensor labels, float label_smoothing, "
    "int ignore_index, bool keep_logits) -> (Tensor, Tensor, Tensor)",
    _forward_fake,
)
_forward.add_reference(reference_forward)
_forward.add_native("cpu")
_forward.add_triton("linear_cross_entropy:forward")
_forward.add_autograd(_gradient, _setup_context)
_forward.add_autocast()
_forward.add_flops(_forward_flops)

_backward = Operation(
    "linear_cross_entropy_backward(Tensor grad_losses, Tensor hidden, Tensor weight, Tensor? bias, Tensor labels, "
    "Tensor lse, Tensor(a!) logits, float label_smoothing, int ignore_index, bool need_hidden, bool need_weight, "
    "bool need_bias) -> (Tensor, Tensor, Tensor)",
    _backward_fake,
)
_backward.add_reference(reference_backward)
_backward.add_native("cpu")
_backward.add_triton("linear_cross_entropy:backward")
_backward.add_flops(_backward_flops)

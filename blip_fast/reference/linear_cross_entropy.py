"""Cross-entropy of a linear layer, as published: all T x V logits, then `torch.nn.functional.cross_entropy`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """``cross_entropy(linear(hidden, weight, bias), labels)``; see `blip_fast.ops.linear_cross_entropy`."""
    logits = F.linear(hidden, weight, bias)
    return F.cross_entropy(
        logits, labels, label_smoothing=label_smoothing, ignore_index=ignore_index, reduction=reduction
    )


def forward(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    label_smoothing: float,
    ignore_index: int,
    keep_logits: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Losses (T,), log-sum-exp (T,), and the kept logits: column r of (V, C) belongs to the r-th row that counts."""
    logits = _logits(hidden, weight, bias)
    losses = F.cross_entropy(
        logits, labels, label_smoothing=label_smoothing, ignore_index=ignore_index, reduction="none"
    )
    kept = weight.new_zeros(weight.shape if keep_logits else 0)
    if keep_logits:
        rows = (labels == ignore_index).to(torch.uint8).argsort(stable=True)[: weight.shape[1]]
        kept[:, : len(rows)] = logits[rows].T
    return losses, _log_sum_exp(logits), kept


def backward(
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
    """Gradients of hidden, weight and bias; that of weight goes into ``logits`` where forward kept some there."""
    grad = (_logits(hidden, weight, bias) - lse[:, None]).exp() - label_smoothing / weight.shape[0]
    counted = labels != ignore_index
    column = labels.where(counted, 0)[:, None]
    grad.scatter_add_(1, column, torch.full_like(column, label_smoothing - 1.0, dtype=grad.dtype))
    grad = (grad * grad_losses[:, None]).where(counted[:, None], 0.0).to(weight.dtype)
    grad_hidden = grad @ weight if need_hidden else hidden.new_empty(0)
    grad_weight = grad.T @ hidden if need_weight else weight.new_empty(0)
    if logits.numel() and need_weight:
        logits.copy_(grad_weight)
        grad_weight = weight.new_empty(0)
    return grad_hidden, grad_weight, grad.sum(dim=0) if need_bias else weight.new_empty(0)


def _log_sum_exp(logits: Tensor) -> Tensor:
    """As inside `log_softmax`: NaN where a logit is infinite, unlike `torch.logsumexp`."""
    top = logits.amax(dim=1, keepdim=True)
    return top[:, 0] + (logits - top).exp().sum(dim=1).log()


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.linear(hidden, weight, bias).to(torch.promote_types(hidden.dtype, torch.float32))

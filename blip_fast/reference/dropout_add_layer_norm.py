"""LayerNorm of a residual sum with dropout, in plain torch: the end of every transformer sub-layer."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from blip_fast.reference.philox import philox, word_on

TAG = 0xFFFFFFFF  # third word of the counter: dropout of attention never has it


def keep_mask(seed: Tensor, offset: Tensor, dropout_p: float, rows: int, width: int) -> Tensor:
    """Which elements survive dropout, (rows, width) bool.

    Elements 4 c to 4 c + 3 of a row take the four words of the counter ``(c, row, TAG, offset)``; their high 24 bits are
    compared with ``dropout_p``.
    """
    column = torch.arange(-(-width // 4), device=seed.device)
    row = torch.arange(rows, device=seed.device)
    words = philox(seed, column, row[:, None], TAG, offset)
    drawn = torch.stack([torch.as_tensor(word) for word in words], dim=-1).flatten(1)[:, :width]
    return (drawn >> 8) >= int(dropout_p * 2**24 + 0.5)


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
    """``layer_norm(residual + dropout(x))``; see `blip_fast.ops.dropout_add_layer_norm`. No seed: torch's own dropout."""
    if seed is None:
        branch = F.dropout(x, dropout_p) if dropout_p else x
    else:
        words = word_on("seed", seed, x.device), word_on("offset", offset, x.device)
        branch = x * _factors(x, dropout_p, *words, x.dtype)
    total = (residual + branch).to(residual.dtype)
    out = F.layer_norm(total, weight.shape, weight.to(total.dtype), bias.to(total.dtype), eps)
    return (out.to(x.dtype), total) if prenorm else out


def forward(
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
    """Normed sum, the sum (or an empty tensor), and the mean and inverse deviation of each row."""
    dtype = torch.promote_types(residual.dtype, torch.float32)
    branch = x.to(dtype) if seed is None else x.to(dtype) * _factors(x, dropout_p, seed, offset, dtype)
    stored = (residual.to(dtype) + branch).to(residual.dtype)
    total = stored.to(dtype)
    out = F.layer_norm(total, weight.shape, weight.to(dtype), bias.to(dtype), eps)
    rows = total.reshape(-1, weight.shape[0])
    mean = rows.mean(dim=1)
    inverse = ((rows - mean[:, None]).square().mean(dim=1) + eps).rsqrt()
    kept = stored if keep_sum else residual.new_empty(0)
    return out.to(x.dtype if prenorm else residual.dtype), kept, mean, inverse


def backward(
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
    """Gradients of x (an empty tensor where it is that of residual), residual, weight and bias."""
    dtype, shape = mean.dtype, (-1, weight.shape[0])
    normed = (total.to(dtype).reshape(shape) - mean[:, None]) * inverse[:, None]
    grad_rows = grad_out.to(dtype).reshape(shape)
    scaled = grad_rows * weight.to(dtype)
    slope = (scaled * normed).mean(dim=1, keepdim=True)
    grad = ((scaled - scaled.mean(dim=1, keepdim=True) - normed * slope) * inverse[:, None]).reshape(total.shape)
    grad = grad if grad_sum is None else grad + grad_sum.to(dtype)
    grad_x = total.new_empty(0, dtype=x_dtype)
    if seed is not None or x_dtype != total.dtype:
        grad_x = (grad if seed is None else grad * _factors(grad, dropout_p, seed, offset, dtype)).to(x_dtype)
    grad_weight, grad_bias = (grad_rows * normed).sum(dim=0), grad_rows.sum(dim=0)
    return grad_x, grad.to(total.dtype), grad_weight.to(weight.dtype), grad_bias.to(weight.dtype)


def _factors(x: Tensor, dropout_p: float, seed: Tensor, offset: Tensor | None, dtype: torch.dtype) -> Tensor:
    width = x.shape[-1]
    offset = torch.zeros_like(seed) if offset is None else offset
    keep = keep_mask(seed, offset, dropout_p, x.numel() // width, width)
    return keep.view(x.shape).to(dtype) * (1.0 / (1.0 - dropout_p))

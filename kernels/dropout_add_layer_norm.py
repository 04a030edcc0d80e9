"""LayerNorm of a residual sum with dropout: sum = residual + dropout(x), out = norm(sum) * weight + bias.

A program holds a few whole rows in registers, so memory is read and written once: 16 bytes an element forward in fp32 (12
in bf16 with an fp32 stream), 16 to 20 backward; bound by memory bandwidth. Dropout's mask is drawn again in backward.
Gradients of weight and bias: a program walks over many blocks of rows and sums them in registers; the programs' sums, a
number that depends on the device alone, are added at the end in a fixed order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from blip_fast.kernels.aot import Specimen
from blip_fast.kernels.launch import multiprocessors
from blip_fast.kernels.philox import philox

ELEMENTS = 4096  # of a program: rows * columns
TAG = tl.constexpr(0xFFFFFFFF)  # third word of the counter


@triton.jit
def _factors(p_seed, p_offset, o_r, threshold, scale, BC: tl.constexpr):
    """(rows, BC): 0 for an element that is dropped, else scale."""
    o_four = tl.arange(0, BC // 4)
    x, y, z, w = philox(tl.load(p_seed), o_four[None, :], o_r[:, None], TAG, tl.load(p_offset))
    word = tl.interleave(tl.interleave(x, z), tl.interleave(y, w))
    return tl.where((word >> 8).to(tl.int32) >= threshold, scale, 0.0)


@triton.jit
def dropout_add_layer_norm_fwd_kernel(
    p_x,  # (rows, C)
    p_residual,
    p_weight,  # (C,)
    p_bias,
    p_seed,  # (1,)
    p_offset,  # (1,)
    p_out,
    p_sum,
    p_mean,  # (rows,)
    p_inverse,
    rows,
    C,
    eps,
    threshold,
    scale,
    DROPOUT: tl.constexpr,
    KEEP_SUM: tl.constexpr,
    BR: tl.constexpr,
    BC: tl.constexpr,
):
    o_r = tl.program_id(0) * BR + tl.arange(0, BR)
    o_c = tl.arange(0, BC)
    mask = (o_r < rows)[:, None] & (o_c < C)[None, :]
    at = o_r.to(tl.int64)[:, None] * C + o_c[None, :]
    b_x = tl.load(p_x + at, mask=mask, other=0.0).to(tl.float32)
    if DROPOUT:
        b_x *= _factors(p_seed, p_offset, o_r, threshold, scale, BC)
    b_sum = tl.load(p_residual + at, mask=mask, other=0.0).to(tl.float32) + b_x
    b_sum = b_sum.to(p_sum.dtype.element_ty).to(tl.float32)  # the statistics are of what is stored
    if KEEP_SUM:
        tl.store(p_sum + at, b_sum.to(p_sum.dtype.element_ty), mask=mask)
    b_mean = tl.sum(b_sum, 1) / C
    b_distance = tl.where(mask, b_sum - b_mean[:, None], 0.0)
    # Rounded to nearest: on a GPU `/` and `sqrt` may be off by 2 ulp, for a whole row more than all its other roundings.
    b_variance = tl.div_rn(tl.sum(b_distance * b_distance, 1), tl.full((BR,), C, tl.float32))
    b_inverse = tl.div_rn(tl.full((BR,), 1.0, tl.float32), tl.sqrt_rn(b_variance + eps))
    b_weight = tl.load(p_weight + o_c, mask=o_c < C, other=0.0).to(tl.float32)
    b_bias = tl.load(p_bias + o_c, mask=o_c < C, other=0.0).to(tl.float32)
    b_out = b_distance * b_inverse[:, None] * b_weight[None, :] + b_bias[None, :]
    tl.store(p_out + at, b_out.to(p_out.dtype.element_ty), mask=mask)
    tl.store(p_mean + o_r, b_mean, mask=o_r < rows)
    tl.store(p_inverse + o_r, b_inverse, mask=o_r < rows)


@triton.jit
def dropout_add_layer_norm_bwd_kernel(
    p_grad_out,  # (rows, C)
    p_grad_sum,
    p_sum,
    p_mean,  # (rows,)
    p_inverse,
    p_weight,  # (C,)
    p_seed,  # (1,)
    p_offset,  # (1,)
    p_grad_x,
    p_grad_residual,
    p_parts,  # (2, programs, C): gradients of weight and bias
    rows,
    C,
    threshold,
    scale,
    DROPOUT: tl.constexpr,
    HAS_GRAD_SUM: tl.constexpr,
    HAS_GRAD_X: tl.constexpr,
    BR: tl.constexpr,
    BC: tl.constexpr,
):
    o_c = tl.arange(0, BC)
    b_weight = tl.load(p_weight + o_c, mask=o_c < C, other=0.0).to(tl.float32)
    b_grad_weight = tl.zeros((BC,), tl.float32)
    b_grad_bias = tl.zeros((BC,), tl.float32)
    for block in range(tl.program_id(0), tl.cdiv(rows, BR), tl.num_programs(0)):
        o_r = block * BR + tl.arange(0, BR)
        mask = (o_r < rows)[:, None] & (o_c < C)[None, :]
        at = o_r.to(tl.int64)[:, None] * C + o_c[None, :]
        b_mean = tl.load(p_mean + o_r, mask=o_r < rows, other=0.0)
        b_inverse = tl.load(p_inverse + o_r, mask=o_r < rows, other=0.0)
        b_grad = tl.load(p_grad_out + at, mask=mask, other=0.0).to(tl.float32)
        b_sum = tl.load(p_sum + at, mask=mask, other=0.0).to(tl.float32)
        b_normed = tl.where(mask, (b_sum - b_mean[:, None]) * b_inverse[:, None], 0.0)
        b_grad_weight += tl.sum(b_grad * b_normed, 0)
        b_grad_bias += tl.sum(b_grad, 0)
        b_grad *= b_weight[None, :]
        b_shift = tl.sum(b_grad, 1) / C
        b_slope = tl.sum(b_grad * b_normed, 1) / C
        b_grad = (b_grad - b_shift[:, None] - b_normed * b_slope[:, None]) * b_inverse[:, None]
        if HAS_GRAD_SUM:
            b_grad += tl.load(p_grad_sum + at, mask=mask, other=0.0).to(tl.float32)
        tl.store(p_grad_residual + at, b_grad.to(p_grad_residual.dtype.element_ty), mask=mask)
        if DROPOUT:
            b_grad *= _factors(p_seed, p_offset, o_r, threshold, scale, BC)
        if HAS_GRAD_X:
            tl.store(p_grad_x + at, b_grad.to(p_grad_x.dtype.element_ty), mask=mask)
    p_part = p_parts + tl.program_id(0).to(tl.int64) * C + o_c
    tl.store(p_part, b_grad_weight, mask=o_c < C)
    tl.store(p_part + tl.num_programs(0).to(tl.int64) * C, b_grad_bias, mask=o_c < C)


def configuration(width: int) -> tuple[int, int, int]:
    """Rows and columns of a program and its warps: 4,096 elements in 8 warps, 16 a thread; long rows alone."""
    columns = max(4, triton.next_power_of_2(width))
    rows = max(1, ELEMENTS // columns)
    return min(rows, 16), columns, min(16, max(4, columns // 512)) if rows == 1 else 8


def _dropout(dropout_p: float) -> tuple[int, float]:
    return int(dropout_p * 2**24 + 0.5), 1.0 / (1.0 - dropout_p)


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
    """Normed sum, the sum, mean and inverse deviation of each row; see `blip_fast.ops.dropout_add_layer_norm`."""
    width = weight.shape[0]
    rows = x.numel() // width
    out = torch.empty_like(x if prenorm else residual)
    total = torch.empty_like(residual) if keep_sum else residual.new_empty(0)
    mean, inverse = (torch.empty(rows, dtype=torch.float32, device=x.device) for _ in range(2))
    if rows:
        block_rows, columns, warps = configuration(width)
        dropout_add_layer_norm_fwd_kernel[(triton.cdiv(rows, block_rows),)](
            x, residual, weight, bias, x if seed is None else seed, x if offset is None else offset,
            out, total, mean, inverse, rows, width, eps, *_dropout(dropout_p),
            DROPOUT=seed is not None, KEEP_SUM=keep_sum, BR=block_rows, BC=columns, num_warps=warps,
        )  # fmt: skip
    return out, total, mean, inverse


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
    width, rows = weight.shape[0], mean.shape[0]
    separate = seed is not None or x_dtype != total.dtype
    grad_x = total.new_empty(total.shape if separate else 0, dtype=x_dtype)
    grad_residual = torch.empty_like(total)
    if rows == 0:
        return grad_x, grad_residual, torch.zeros_like(weight), torch.zeros_like(weight)
    block_rows, columns, warps = configuration(width)
    programs = min(triton.cdiv(rows, block_rows), 2 * multiprocessors(total.device))
    parts = torch.empty(2, programs, width, dtype=torch.float32, device=total.device)
    dropout_add_layer_norm_bwd_kernel[(programs,)](
        grad_out, total if grad_sum is None else grad_sum, total, mean, inverse, weight,
        total if seed is None else seed, total if offset is None else offset, grad_x, grad_residual, parts,
        rows, width, *_dropout(dropout_p), DROPOUT=seed is not None, HAS_GRAD_SUM=grad_sum is not None,
        HAS_GRAD_X=separate, BR=block_rows, BC=columns, num_warps=warps,
    )  # fmt: skip
    grad_weight, grad_bias = parts.sum(dim=1).to(weight.dtype)
    return grad_x, grad_residual, grad_weight, grad_bias.clone()


def _specimens() -> list[Specimen]:
    found = []
    scalars = dict.fromkeys(("eps", "scale"), "fp32") | dict.fromkeys(("rows", "C", "threshold"), "i32")
    scalars |= dict.fromkeys(("p_seed", "p_offset"), "*i64")
    statistics = dict.fromkeys(("p_mean", "p_inverse", "p_parts", "p_weight", "p_bias"), "*fp32")
    stream = dict.fromkeys(("p_residual", "p_sum", "p_grad_sum", "p_grad_residual"), "*fp32")
    for layer in ("*bf16", "*fp32"):
        for width in (768, 1024):
            block_rows, columns, warps = configuration(width)
            for kernel in (dropout_add_layer_norm_fwd_kernel, dropout_add_layer_norm_bwd_kernel):
                flags = dict.fromkeys(("DROPOUT", "KEEP_SUM", "HAS_GRAD_SUM", "HAS_GRAD_X"), True)
                flags |= {"BR": block_rows, "BC": columns}
                constants = {name: value for name, value in flags.items() if name in kernel.arg_names}
                types = scalars | statistics | stream
                signature = {name: types.get(name, layer) for name in kernel.arg_names if name not in constants}
                label = f"{layer[1:]} layers, fp32 stream, width {width}"
                found.append(Specimen(kernel, signature, constants, warps, label=label, divisible_by_16=("C",)))
    return found


SPECIMENS = _specimens()

"""Rows that count to the front, and back: no tile of a product is spent on ignored rows; their number stays on the device."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from blip_fast.kernels.aot import Specimen

BLOCK = 1024


@triton.jit
def compact_kernel(p_labels, p_rows, T, ignore_index, BLOCK: tl.constexpr):
    """p_rows (T + 1): indices of the counted rows in order, and their number in the last place. One program."""
    count = 0
    for start in range(0, T, BLOCK):
        o_t = start + tl.arange(0, BLOCK)
        counted = (tl.load(p_labels + o_t, mask=o_t < T, other=ignore_index) != ignore_index).to(tl.int32)
        place = count + tl.cumsum(counted, 0) - counted
        tl.store(p_rows + place, o_t, mask=counted == 1)
        count += tl.sum(counted, 0)
    tl.store(p_rows + T, count)


@triton.jit
def gather_kernel(p_hidden, p_rows, p_out, T, C, BC: tl.constexpr):
    """Counted rows of hidden (T, C) to the front of p_out (T, C)."""
    r = tl.program_id(0).to(tl.int64)
    if r >= tl.load(p_rows + T):
        return
    row = tl.load(p_rows + r).to(tl.int64)
    for c in range(0, C, BC):
        o_c = c + tl.arange(0, BC)
        tl.store(p_out + r * C + o_c, tl.load(p_hidden + row * C + o_c, mask=o_c < C), mask=o_c < C)


@triton.jit
def scatter_kernel(
    p_sum,  # (splits, T, C), compacted rows
    p_rows,
    p_grad_hidden,  # (T, C), zero
    T,
    C,
    SPLITS: tl.constexpr,
    BC: tl.constexpr,
):
    r = tl.program_id(0).to(tl.int64)
    if r >= tl.load(p_rows + T):
        return
    row = tl.load(p_rows + r).to(tl.int64)
    for c in range(0, C, BC):
        o_c = c + tl.arange(0, BC)
        b_sum = tl.zeros((BC,), tl.float32)
        for s in tl.static_range(SPLITS):
            b_sum += tl.load(p_sum + (s * T + r) * C + o_c, mask=o_c < C, other=0.0)
        tl.store(p_grad_hidden + row * C + o_c, b_sum.to(p_grad_hidden.dtype.element_ty), mask=o_c < C)


def compact_rows(hidden: Tensor, labels: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Indices of the counted rows with their number behind them, (T + 1,) int32, and those rows of hidden in front."""
    T, C = hidden.shape
    rows = torch.empty(T + 1, dtype=torch.int32, device=labels.device)
    counted = torch.empty_like(hidden)
    compact_kernel[(1,)](labels, rows, T, ignore_index, BLOCK=BLOCK, num_warps=8)
    gather_kernel[(T,)](hidden, rows, counted, T, C, BC=BLOCK, num_warps=4)
    return rows, counted


def scatter_rows(sums: Tensor, rows: Tensor, out: Tensor) -> None:
    """Adds up the splits (splits, T, C) of compacted rows, and writes them to their places in ``out`` (T, C)."""
    splits, T, C = sums.shape
    scatter_kernel[(T,)](sums, rows, out, T, C, SPLITS=splits, BC=BLOCK, num_warps=4)


SPECIMENS = [
    Specimen(
        compact_kernel,
        {"p_labels": "*i64", "p_rows": "*i32", "T": "i32", "ignore_index": "i64"},
        {"BLOCK": BLOCK},
        8,
    ),
    Specimen(
        gather_kernel,
        {"p_hidden": "*bf16", "p_rows": "*i32", "p_out": "*bf16", "T": "i32", "C": "i32"},
        {"BC": BLOCK},
        4,
        divisible_by_16=("C",),
    ),
    Specimen(
        scatter_kernel,
        {"p_sum": "*fp32", "p_rows": "*i32", "p_grad_hidden": "*bf16", "T": "i32", "C": "i32"},
        {"SPLITS": 2, "BC": BLOCK},
        4,
        divisible_by_16=("C",),
    ),
]

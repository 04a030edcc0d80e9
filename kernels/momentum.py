"""Momentum update of a list of tensors, ``m = momentum * m + (1 - momentum) * p``, in one launch per pair of dtypes.

Reads 8 and writes 4 bytes per fp32 parameter for 3 FLOPs: bound by memory bandwidth. Tensors are addressed by their distance
from the first one, held in a table on the device, since a kernel that loads pointers cannot run in the interpreter.
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from blip_fast.kernels.aot import Specimen

BLOCK = 4096
NUM_WARPS = 8


@triton.jit
def _update(p_m, p_p, momentum, rest, o, mask):
    b_m = tl.load(p_m + o, mask=mask)
    b_p = tl.load(p_p + o, mask=mask)
    b_new = b_m.to(tl.float32) * momentum + b_p.to(tl.float32) * rest
    tl.store(p_m + o, b_new.to(b_m.dtype), mask=mask)


@triton.jit
def momentum_update_kernel(
    p_m,
    p_p,
    p_chunks,  # (chunks, 3) int64: distance of the chunk from p_m, from p_p (in elements), elements left
    momentum,
    rest,  # 1 - momentum
    ALIGN_M: tl.constexpr,  # all distances are multiples of these
    ALIGN_P: tl.constexpr,
    BLOCK: tl.constexpr,
):
    p_chunk = p_chunks + tl.program_id(0).to(tl.int64) * 3
    p_m += tl.multiple_of(tl.load(p_chunk), ALIGN_M)
    p_p += tl.multiple_of(tl.load(p_chunk + 1), ALIGN_P)
    left = tl.load(p_chunk + 2)
    o = tl.arange(0, BLOCK)
    if left == BLOCK:  # without a mask the accesses are 16 bytes wide
        _update(p_m, p_p, momentum, rest, o, None)
    else:
        _update(p_m, p_p, momentum, rest, o, o < left)


def momentum_update_(params_m: list[Tensor], params: list[Tensor], momentum: float) -> None:
    """See `blip_fast.ops.momentum_update_`."""
    groups: dict[tuple[torch.dtype, torch.dtype, bool], list[int]] = {}
    for i, (param_m, param) in enumerate(zip(params_m, params, strict=True)):
        if param_m.numel():
            aligned = param_m.data_ptr() % 16 == 0 and param.data_ptr() % 16 == 0
            groups.setdefault((param_m.dtype, param.dtype, aligned), []).append(i)
    for (dtype_m, dtype, aligned), indices in groups.items():
        first_m, first = params_m[indices[0]], params[indices[0]]
        layout = tuple((params_m[i].data_ptr(), params[i].data_ptr(), params_m[i].numel()) for i in indices)
        chunks = _chunk_table(layout, dtype_m.itemsize, dtype.itemsize, first.device)
        align = (16 // dtype_m.itemsize, 16 // dtype.itemsize) if aligned else (1, 1)
        momentum_update_kernel[(chunks.shape[0],)](
            first_m, first, chunks, momentum, 1.0 - momentum, *align, BLOCK=BLOCK, num_warps=NUM_WARPS
        )


# Parameters keep their addresses from step to step, so the table is made once per model and not in a captured graph.
@functools.lru_cache(maxsize=64)
def _chunk_table(layout: tuple[tuple[int, int, int], ...], size_m: int, size_p: int, device: torch.device) -> Tensor:
    base_m, base_p, _ = layout[0]
    rows = []
    for address_m, address_p, count in layout:
        start_m, start_p = (address_m - base_m) // size_m, (address_p - base_p) // size_p
        rows += [(start_m + i, start_p + i, min(BLOCK, count - i)) for i in range(0, count, BLOCK)]
    return torch.tensor(rows, dtype=torch.int64).to(device)


SPECIMENS = [
    Specimen(
        momentum_update_kernel,
        {"p_m": "*fp32", "p_p": p, "p_chunks": "*i64", "momentum": "fp32", "rest": "fp32"},
        {"ALIGN_M": 4, "ALIGN_P": align, "BLOCK": BLOCK},
        NUM_WARPS,
        label=f"copy fp32, parameter {p[1:]}",
    )
    for p, align in (("*fp32", 4), ("*bf16", 8))
]

"""Enqueue of features into a ring buffer of columns, ``queue[:, (pointer + i) % Q] = features[i]``.

Reads and writes each feature once: bound by memory bandwidth. The pointer is read, and advanced, on the device.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from blip_fast.kernels.aot import Specimen

BLOCK = 32
NUM_WARPS = 4


@triton.jit
def enqueue_kernel(
    p_queue,  # (E, Q)
    p_features,  # (N, E)
    p_pointer,  # (1,)
    E,
    Q,
    N,
    BLOCK: tl.constexpr,
):
    o_n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    o_e = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    # Rows that later ones would overwrite are left out, so that each column is written once.
    kept = (o_n < N) & (o_n + Q >= N)
    mask = kept[:, None] & (o_e < E)[None, :]
    b_features = tl.load(p_features + o_n.to(tl.int64)[:, None] * E + o_e[None, :], mask=mask)
    column = (tl.load(p_pointer) + o_n) % Q
    tl.store(p_queue + o_e.to(tl.int64)[None, :] * Q + column[:, None], b_features, mask=mask)


@triton.jit
def advance_kernel(p_pointer, N, Q):
    tl.store(p_pointer, (tl.load(p_pointer) + N) % Q)


def enqueue_(queue: Tensor, features: Tensor, pointer: Tensor) -> None:
    """See `blip_fast.ops.enqueue_`."""
    (rows, size), count = queue.shape, features.shape[0]
    grid = (triton.cdiv(count, BLOCK), triton.cdiv(rows, BLOCK))
    enqueue_kernel[grid](queue, features, pointer, rows, size, count, BLOCK=BLOCK, num_warps=NUM_WARPS)
    # A second launch: the pointer may move only when all programs have read it.
    advance_kernel[(1,)](pointer, count, size, num_warps=1)


SPECIMENS = [
    Specimen(
        enqueue_kernel,
        {"p_queue": "*bf16", "p_features": "*fp32", "p_pointer": "*i64", "E": "i32", "Q": "i32", "N": "i32"},
        {"BLOCK": BLOCK},
        NUM_WARPS,
        label="queue bf16, features fp32",
    ),
    Specimen(advance_kernel, {"p_pointer": "*i64", "N": "i32", "Q": "i32"}, {}, 1),
]

"""Philox4x32-10 inside Triton kernels: the numbers of `blip_fast.reference.philox`, bit for bit."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def philox(seed, c0, c1, c2, c3):
    """Four uint32 blocks. seed: int64. c0..c3: integer scalars or blocks that broadcast; their low 32 bits count."""
    c0 = tl.cast(c0, tl.uint32)
    c1 = tl.cast(c1, tl.uint32)
    c2 = tl.cast(c2, tl.uint32)
    c3 = tl.cast(c3, tl.uint32)
    return tl.philox(seed, c0, c1, c2, c3)


@triton.jit
def uniform(word):
    """Float32 in [0, 1): the high 24 bits, exact."""
    return (word >> 8).to(tl.int32).to(tl.float32) * 5.9604644775390625e-08  # 2**-24

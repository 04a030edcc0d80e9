"""What the attention kernels share: online softmax, dropout by logical coordinates, and their specimens.

Probabilities are ``2 ** (dot * log2_scale - shift) / sum`` with ``dot = q . k`` and ``log2_scale = scale * log2(e)``: one
fused multiply-add and one power. Each row keeps shift and sum for its backward pass.
"""

from __future__ import annotations

import itertools
from typing import Any

import triton
import triton.language as tl

from blip_fast.kernels.aot import Specimen
from blip_fast.kernels.philox import philox
from blip_fast.kernels.tiles import Job, Tile, tile_by_rule

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def softmax_shift(b_max, log2_scale):
    """The shift for maximal products (M,): 0 for rows where all are -inf."""
    return tl.where(b_max == float("-inf"), 0.0, b_max * log2_scale)


@triton.jit
def online_softmax(b_dot, b_max, b_sum, log2_scale):
    """Probabilities of (M, N) relative to the new maximum; that maximum and sum; the factor for older sums."""
    b_new = tl.maximum(b_max, tl.max(b_dot, 1))
    b_shift = softmax_shift(b_new, log2_scale)
    b_p = tl.exp2(b_dot * log2_scale - b_shift[:, None])
    b_factor = tl.exp2(b_max * log2_scale - b_shift)
    return b_p, b_new, b_sum * b_factor + tl.sum(b_p, 1), b_factor


@triton.jit
def keep_mask(seed, offset, threshold, b_position, b_text_head, start, BLOCK_N: tl.constexpr):
    """(M, BLOCK_N) bool: which probabilities survive dropout, for the keys from ``start`` on, a multiple of BLOCK_N.

    The word of key k is number k % 64 // 16 of the counter k // 64 * 16 + k % 16; see
    `blip_fast.reference.cross_attention.keep_mask`. The four words of a counter are 16 columns apart, which in tensor-core
    fragments is another register of the same thread.
    """
    BLOCK_M: tl.constexpr = b_position.shape[0]
    if BLOCK_N % 64 == 0:
        b_counter = start // 4 + tl.arange(0, BLOCK_N // 4)
        x, y, z, w = philox(seed, b_counter[None, :], b_position[:, None], b_text_head[:, None], offset)
        b_words = tl.join(tl.join(x, y), tl.join(z, w))  # (M, counters, low bit of the word's number, high bit)
        b_words = tl.reshape(b_words, (BLOCK_M, BLOCK_N // 64, 16, 2, 2))
        b_words = tl.reshape(tl.permute(b_words, (0, 1, 4, 3, 2)), (BLOCK_M, BLOCK_N))
    else:
        b_key = start + tl.arange(0, BLOCK_N)
        b_counter = b_key // 64 * 16 + b_key % 16
        x, y, z, w = philox(seed, b_counter[None, :], b_position[:, None], b_text_head[:, None], offset)
        b_number = (b_key % 64 // 16)[None, :]
        b_words = tl.where(b_number < 2, tl.where(b_number == 0, x, y), tl.where(b_number == 2, z, w))
    return (b_words >> 8).to(tl.int32) >= threshold


@triton.jit
def rows_of_tile(p_rows, p_bounds, p_tiles, program, B, TILE_ROWS: tl.constexpr, BLOCK_M: tl.constexpr):
    """Image, rows (M,) and their mask for a program that takes BLOCK_M rows of a tile; image > B: nothing to do."""
    p_tile = p_tiles + program // (TILE_ROWS // BLOCK_M) * 2
    image = tl.load(p_tile).to(tl.int64)
    place = tl.load(p_tile + 1) + program % (TILE_ROWS // BLOCK_M) * BLOCK_M
    end = 0
    if image <= B:
        end = tl.load(p_bounds + image + 1)
    if place >= end:
        image = tl.cast(B, tl.int64) + 1  # B may be a constant, 1
    o_place = place + tl.arange(0, BLOCK_M)
    o_row = tl.load(p_rows + o_place, mask=o_place < end, other=0).to(tl.int64)
    return image, o_row, o_place < end


@triton.jit
def keys_of_image(p_lengths, image, B, L):
    """Keys that rows of an image see; none for rows without one (image == B)."""
    length = 0
    if image < B:
        length = L
        if p_lengths is not None:
            length = tl.maximum(tl.minimum(tl.load(p_lengths + image), L), 0)
    return length


def attention_specimens(kernel: Any, name: str, tile_rows: tuple[int, ...]) -> list[Specimen]:
    """The kernel at the tiles that it is launched with: head sizes 64 and 128, bf16 and fp32, with dropout and without."""
    launches = {}
    for head_size, dtype, rows in itertools.product((64, 128), ("bf16", "fp32"), tile_rows):
        tile = tile_by_rule(Job(name, rows, head_size, 2 if dtype == "bf16" else 4))
        launches.setdefault((head_size, dtype, tile), rows)
    return [
        attention_specimen(kernel, head_size, dtype, tile, dropout, TILE_ROWS=rows)
        for (head_size, dtype, tile), rows in launches.items()
        for dropout in (False, True)
    ]


def attention_specimen(
    kernel: Any, head_size: int, dtype: str, tile: Tile, dropout: bool, **constants: Any
) -> Specimen:
    """One kernel at one tile, with the constants that it has beside those of all attention kernels."""
    constants |= {"D": head_size, "BLOCK_D": head_size, "BLOCK_M": tile.block_m, "BLOCK_N": tile.block_n}
    constants |= {"PRECISION": "ieee"}
    constants |= {} if dropout else {"p_seed": None, "p_offset": None}
    fixed = {name: value for name, value in constants.items() if name in kernel.arg_names}
    signature = {name: _argument_type(name, dtype) for name in kernel.arg_names if name not in fixed}
    aligned = tuple(name for name in signature if name.startswith("stride_"))
    label = f"{dtype}, D={head_size}, {tile.block_m} x {tile.block_n}"
    label += (", causal" if constants.get("CAUSAL") else "") + (", dropout" if dropout else "")
    return Specimen(kernel, signature, fixed, tile.num_warps, tile.num_stages, label, aligned)


def _argument_type(name: str, dtype: str) -> str:
    if name in ("p_seed", "p_offset"):
        return "*i64"
    if name in ("p_stat", "p_delta"):
        return "*fp32"
    if name in ("p_q", "p_k", "p_v", "p_o", "p_do", "p_dq", "p_dk", "p_dv", "p_dkv"):
        return f"*{dtype}"
    if name.startswith("p_"):
        return "*i32"
    return "fp32" if name in ("scale", "keep_scale") else "i32"


def dropout_threshold(dropout_p: float) -> int:
    """Of 24-bit numbers: those below it are dropped."""
    return int(dropout_p * 2**24 + 0.5)

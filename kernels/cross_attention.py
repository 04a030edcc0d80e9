"""Cross-attention of packed texts, forward: ``out = softmax(query key^T * scale) value`` with keys of the text's image.

One program per tile of rows of one image and per head, so that an image's keys and values are read once for all its
texts as long as their rows fit in a tile. Reads K and V once (4 B L H D bytes in bf16), does 4 T L H D FLOPs. Where
tiles are too few to fill the GPU (decoding), the keys are split among programs as well and a second kernel merges the
parts in a fixed order.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from blip_fast.kernels.aot import Specimen
from blip_fast.kernels.attention import (
    LOG2E,
    attention_specimens,
    dropout_threshold,
    keep_mask,
    keys_of_image,
    online_softmax,
    rows_of_tile,
    softmax_shift,
)
from blip_fast.kernels.launch import multiprocessors, precision
from blip_fast.kernels.tiles import tile_for
from blip_fast.reference.cross_attention import split_key_value
from blip_fast.reference.row_groups import RowGroups

MIN_SPLIT = 128  # keys
MERGE_BLOCK = 32


@triton.jit
def cross_attention_kernel(
    p_q,  # (T, H, D)
    p_k,  # (B, L, H, D), strided
    p_v,  # (B, L, H, D), strided
    p_o,  # (splits, T, H, D): T, H, D without splits
    p_stat,  # (splits, T, H, 2)
    p_rows,  # (T,)
    p_bounds,  # (B + 2,)
    p_tiles,  # (tiles, 2)
    p_lengths,  # (B,) or None
    p_text,  # (T,)
    p_cu,  # (S + 1,)
    p_seed,  # (1,) or None: no dropout
    p_offset,
    threshold,
    keep_scale,
    scale,
    T,
    H,
    B,
    L,
    split_keys,  # keys per program
    stride_qt,
    stride_qh,
    stride_kb,
    stride_kl,
    stride_kh,
    stride_vb,
    stride_vl,
    stride_vh,
    D: tl.constexpr,
    TILE_ROWS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    head, split = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    image, o_row, m_row = rows_of_tile(p_rows, p_bounds, p_tiles, tl.program_id(0), B, TILE_ROWS, BLOCK_M)
    if image > B:
        return
    length = keys_of_image(p_lengths, image, B, L)
    begin = split.to(tl.int32) * split_keys
    end = tl.minimum(begin + split_keys, length)

    o_d = tl.arange(0, BLOCK_D)
    m_d = o_d < D
    m_q = m_row[:, None] & m_d[None, :]
    b_q = tl.load(p_q + o_row[:, None] * stride_qt + head * stride_qh + o_d[None, :], mask=m_q, other=0.0)
    p_k += image * stride_kb + head * stride_kh + o_d[None, :]
    p_v += image * stride_vb + head * stride_vh + o_d[None, :]
    b_max = tl.full([BLOCK_M], float("-inf"), tl.float32)
    b_sum = tl.zeros([BLOCK_M], tl.float32)
    b_o = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    if p_seed is not None:
        seed, offset = tl.load(p_seed), tl.load(p_offset)
        b_text = tl.load(p_text + o_row, mask=m_row, other=0)
        b_position = o_row.to(tl.int32) - tl.load(p_cu + b_text)
        b_text_head = b_text * H + head.to(tl.int32)
    for start in range(begin, end, BLOCK_N):
        o_n = start + tl.arange(0, BLOCK_N)
        m_kv = (o_n < end)[:, None] & m_d[None, :]
        b_k = tl.load(p_k + o_n.to(tl.int64)[:, None] * stride_kl, mask=m_kv, other=0.0)
        b_dot = tl.dot(b_q, tl.trans(b_k), input_precision=PRECISION)
        b_dot = tl.where((o_n < end)[None, :], b_dot, float("-inf"))
        b_p, b_max, b_sum, b_factor = online_softmax(b_dot, b_max, b_sum, scale * LOG2E)
        if p_seed is not None:
            b_keep = keep_mask(seed, offset, threshold, b_position, b_text_head, start, BLOCK_N)
            b_p = tl.where(b_keep, b_p, 0.0)
        b_v = tl.load(p_v + o_n.to(tl.int64)[:, None] * stride_vl, mask=m_kv, other=0.0)
        b_o = b_o * b_factor[:, None] + tl.dot(b_p.to(b_v.dtype), b_v, input_precision=PRECISION)

    b_o = b_o * (keep_scale / tl.where(begin < end, b_sum, 1.0))[:, None]  # 0 where no key is seen
    o_row_head = (split * T + o_row) * H + head
    tl.store(p_o + o_row_head[:, None] * D + o_d[None, :], b_o.to(p_o.dtype.element_ty), mask=m_q)
    tl.store(p_stat + o_row_head * 2, softmax_shift(b_max, scale * LOG2E), mask=m_row)
    tl.store(p_stat + o_row_head * 2 + 1, b_sum, mask=m_row)


@triton.jit
def merge_splits_kernel(
    p_parts,  # (splits, N, D) fp32, N = T H
    p_stats,  # (splits, N, 2)
    p_o,  # (N, D)
    p_stat,  # (N, 2)
    N,
    SPLITS: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK: tl.constexpr,
):
    o_n = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    o_d = tl.arange(0, BLOCK_D)
    m_n = o_n < N
    m_o = m_n[:, None] & (o_d < D)[None, :]
    b_max = tl.full([BLOCK], float("-inf"), tl.float32)
    for split in range(SPLITS):
        p_part = p_stats + (split * N + o_n) * 2
        b_seen = tl.load(p_part + 1, mask=m_n, other=0.0) != 0.0  # a part without keys has shift 0, sum 0
        b_max = tl.maximum(b_max, tl.where(b_seen, tl.load(p_part, mask=m_n, other=0.0), float("-inf")))
    b_shift = tl.where(b_max == float("-inf"), 0.0, b_max)
    b_sum = tl.zeros([BLOCK], tl.float32)
    b_o = tl.zeros([BLOCK, BLOCK_D], tl.float32)
    for split in range(SPLITS):
        p_part = p_stats + (split * N + o_n) * 2
        b_part_sum = tl.load(p_part + 1, mask=m_n, other=0.0)
        b_part_shift = tl.load(p_part, mask=m_n, other=0.0)
        b_part_shift = tl.where(b_part_sum != 0.0, b_part_shift, b_shift)  # 0 * exp2(0 - shift) may be NaN
        b_weight = b_part_sum * tl.exp2(b_part_shift - b_shift)
        b_part = tl.load(p_parts + (split * N + o_n)[:, None] * D + o_d[None, :], mask=m_o, other=0.0)
        b_sum += b_weight
        b_o += b_part * b_weight[:, None]
    b_o = b_o / tl.where(b_max == float("-inf"), 1.0, b_sum)[:, None]  # 0 where no key is seen
    tl.store(p_o + o_n[:, None] * D + o_d[None, :], b_o.to(p_o.dtype.element_ty), mask=m_o)
    tl.store(p_stat + o_n * 2, b_shift, mask=m_n)
    tl.store(p_stat + o_n * 2 + 1, b_sum, mask=m_n)


def splits_for(programs: int, keys: int, device: torch.device) -> int:
    """Parts in which the keys are split: enough for two programs per multiprocessor, of at least MIN_SPLIT keys."""
    wanted = triton.cdiv(2 * multiprocessors(device), programs)
    return max(1, min(wanted, keys // MIN_SPLIT))


def cross_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor | None,
    groups: Sequence[Tensor],
    image_lengths: Tensor | None,
    seed: Tensor | None,
    offset: Tensor | None,
    dropout_p: float,
    scale: float,
    tile_rows: int,
) -> tuple[Tensor, Tensor]:
    """Output (T, H, D) and statistics (T, H, 2); see `blip_fast.reference.cross_attention`."""
    key, value = split_key_value(key, value)
    groups = RowGroups(*groups)
    (tokens, heads, dim), (images, length) = query.shape, key.shape[:2]
    out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    statistics = torch.empty((tokens, heads, 2), dtype=torch.float32, device=query.device)
    if tokens == 0 or heads == 0:
        return out, statistics
    block_d = max(16, triton.next_power_of_2(dim))
    tile = tile_for("forward", tile_rows, block_d, query.element_size(), query.device)
    programs = groups.tiles.shape[0] * (tile_rows // tile.block_m)
    splits = splits_for(programs * heads, length, query.device)
    split_keys = triton.cdiv(triton.cdiv(length, splits), tile.block_n) * tile.block_n
    part, part_statistics = out, statistics
    if splits > 1:
        part = torch.empty((splits, *out.shape), dtype=torch.float32, device=query.device)
        part_statistics = torch.empty((splits, *statistics.shape), dtype=torch.float32, device=query.device)
    cross_attention_kernel[(programs, heads, splits)](
        query, key, value, part, part_statistics, groups.rows, groups.bounds, groups.tiles, image_lengths,
        groups.text_of_row, groups.cu_seqlens, seed, offset, dropout_threshold(dropout_p), 1.0 / (1.0 - dropout_p),
        scale, tokens, heads, images, length, split_keys, *query.stride()[:2], *key.stride()[:3], *value.stride()[:3],
        D=dim, TILE_ROWS=tile_rows, BLOCK_M=tile.block_m, BLOCK_N=tile.block_n, BLOCK_D=block_d,
        PRECISION=precision(query.dtype), num_warps=tile.num_warps, num_stages=tile.num_stages,
    )  # fmt: skip
    if splits > 1:
        merge_splits_kernel[(triton.cdiv(tokens * heads, MERGE_BLOCK),)](
            part,
            part_statistics,
            out,
            statistics,
            tokens * heads,
            SPLITS=splits,
            D=dim,
            BLOCK_D=block_d,
            BLOCK=MERGE_BLOCK,
            num_warps=4,
        )
    return out, statistics


SPECIMENS = [
    *attention_specimens(cross_attention_kernel, "forward", (16, 64, 128)),
    Specimen(
        merge_splits_kernel,
        {"p_parts": "*fp32", "p_stats": "*fp32", "p_o": "*bf16", "p_stat": "*fp32", "N": "i32"},
        {"SPLITS": 8, "D": 64, "BLOCK_D": 64, "BLOCK": MERGE_BLOCK},
        4,
        label="bf16, 8 parts",
    ),
]

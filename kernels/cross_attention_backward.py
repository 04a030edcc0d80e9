"""Cross-attention of packed texts, backward: two kernels, which make the probabilities P again from saved statistics.

With delta = sum(grad_out * out): grad_value = P^T grad_out; grad_scores = P * (grad_out value^T - delta); grad_query
= grad_scores key * scale; grad_key = grad_scores^T query * scale. The first kernel has the programs of the forward
kernel and also writes delta. The second has one program per block of keys, image and head, which walks the image's
rows in order: sums over texts have a fixed order, without atomics. Together they do 14 T L H D FLOPs, read K and V
twice, and write their gradients once.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from blip_fast.kernels.attention import (
    LOG2E,
    attention_specimens,
    dropout_threshold,
    keep_mask,
    keys_of_image,
    rows_of_tile,
)
from blip_fast.kernels.launch import precision
from blip_fast.kernels.tiles import tile_for
from blip_fast.reference.cross_attention import split_key_value
from blip_fast.reference.row_groups import RowGroups


@triton.jit
def cross_attention_grad_query_kernel(
    p_q,  # (T, H, D), strided
    p_k,  # (B, L, H, D), strided
    p_v,  # (B, L, H, D), strided
    p_o,  # (T, H, D)
    p_do,  # (T, H, D)
    p_stat,  # (T, H, 2)
    p_dq,  # (T, H, D)
    p_delta,  # (T, H)
    p_rows,  # (T,)
    p_bounds,  # (B + 2,)
    p_tiles,  # (tiles, 2)
    p_lengths,  # (B,) or None
    p_text,  # (T,)
    p_cu,  # (S + 1,)
    p_seed,  # (1,), or None: no dropout
    p_offset,  # (1,)
    threshold,
    keep_scale,
    scale,
    H,
    B,
    L,
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
    head = tl.program_id(1).to(tl.int64)
    image, o_row, m_row = rows_of_tile(p_rows, p_bounds, p_tiles, tl.program_id(0), B, TILE_ROWS, BLOCK_M)
    if image > B:
        return
    length = keys_of_image(p_lengths, image, B, L)
    o_d = tl.arange(0, BLOCK_D)
    m_d = o_d < D
    m_q = m_row[:, None] & m_d[None, :]
    o_o = (o_row * H + head)[:, None] * D + o_d[None, :]
    b_q = tl.load(p_q + o_row[:, None] * stride_qt + head * stride_qh + o_d[None, :], mask=m_q, other=0.0)
    b_do = tl.load(p_do + o_o, mask=m_q, other=0.0)
    b_delta = tl.sum(b_do.to(tl.float32) * tl.load(p_o + o_o, mask=m_q, other=0.0).to(tl.float32), 1)
    p_stat += (o_row * H + head) * 2
    b_shift = tl.load(p_stat, mask=m_row, other=float("inf"))
    b_inverse = 1.0 / tl.load(p_stat + 1, mask=m_row, other=1.0)
    p_k += image * stride_kb + head * stride_kh + o_d[None, :]
    p_v += image * stride_vb + head * stride_vh + o_d[None, :]
    b_dq = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    if p_seed is not None:
        seed, offset = tl.load(p_seed), tl.load(p_offset)
        b_text = tl.load(p_text + o_row, mask=m_row, other=0)
        b_position = o_row.to(tl.int32) - tl.load(p_cu + b_text)
        b_text_head = b_text * H + head.to(tl.int32)
    for start in range(0, length, BLOCK_N):
        o_n = start + tl.arange(0, BLOCK_N)
        m_kv = (o_n < length)[:, None] & m_d[None, :]
        b_k = tl.load(p_k + o_n.to(tl.int64)[:, None] * stride_kl, mask=m_kv, other=0.0)
        b_v = tl.load(p_v + o_n.to(tl.int64)[:, None] * stride_vl, mask=m_kv, other=0.0)
        b_dot = tl.dot(b_q, tl.trans(b_k), input_precision=PRECISION)
        b_p = tl.exp2(b_dot * (scale * LOG2E) - b_shift[:, None]) * b_inverse[:, None]
        b_p = tl.where((o_n < length)[None, :], b_p, 0.0)
        b_dp = tl.dot(b_do, tl.trans(b_v), input_precision=PRECISION)
        if p_seed is not None:
            b_keep = keep_mask(seed, offset, threshold, b_position, b_text_head, start, BLOCK_N)
            b_dp = tl.where(b_keep, b_dp * keep_scale, 0.0)
        b_ds = b_p * (b_dp - b_delta[:, None])
        b_dq += tl.dot(b_ds.to(b_k.dtype), b_k, input_precision=PRECISION)
    tl.store(p_dq + o_o, (b_dq * scale).to(p_dq.dtype.element_ty), mask=m_q)
    tl.store(p_delta + o_row * H + head, b_delta, mask=m_row)


@triton.jit
def cross_attention_grad_key_value_kernel(
    p_q,  # (T, H, D), strided
    p_k,  # (B, L, H, D), strided
    p_v,  # (B, L, H, D), strided
    p_do,  # (T, H, D)
    p_stat,  # (T, H, 2)
    p_delta,  # (T, H)
    p_dkv,  # (B, L, 2, H, D)
    p_rows,  # (T,)
    p_bounds,  # (B + 2,)
    p_lengths,  # (B,) or None
    p_text,  # (T,)
    p_cu,  # (S + 1,)
    p_seed,  # (1,), or None: no dropout
    p_offset,  # (1,)
    threshold,
    keep_scale,
    scale,
    H,
    B,
    L,
    stride_qt,
    stride_qh,
    stride_kb,
    stride_kl,
    stride_kh,
    stride_vb,
    stride_vl,
    stride_vh,
    D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    start, head, image = tl.program_id(0) * BLOCK_N, tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    length = keys_of_image(p_lengths, image, B, L)
    first = tl.load(p_bounds + image)
    end = tl.load(p_bounds + image + 1)
    if start >= length:  # keys that nobody sees
        end = first
    o_n = start + tl.arange(0, BLOCK_N)
    o_d = tl.arange(0, BLOCK_D)
    m_d = o_d < D
    m_n = o_n < length
    m_kv = m_n[:, None] & m_d[None, :]
    o_k = image * stride_kb + head * stride_kh + o_n.to(tl.int64)[:, None] * stride_kl + o_d[None, :]
    o_v = image * stride_vb + head * stride_vh + o_n.to(tl.int64)[:, None] * stride_vl + o_d[None, :]
    b_k = tl.load(p_k + o_k, mask=m_kv, other=0.0)
    b_v = tl.load(p_v + o_v, mask=m_kv, other=0.0)
    b_dk = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    b_dv = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    if p_seed is not None:
        seed, offset = tl.load(p_seed), tl.load(p_offset)
    for place in range(first, end, BLOCK_M):
        o_place = place + tl.arange(0, BLOCK_M)
        m_row = o_place < end
        m_q = m_row[:, None] & m_d[None, :]
        o_row = tl.load(p_rows + o_place, mask=m_row, other=0).to(tl.int64)
        b_q = tl.load(p_q + o_row[:, None] * stride_qt + head * stride_qh + o_d[None, :], mask=m_q, other=0.0)
        b_do = tl.load(p_do + (o_row * H + head)[:, None] * D + o_d[None, :], mask=m_q, other=0.0)
        b_shift = tl.load(p_stat + (o_row * H + head) * 2, mask=m_row, other=float("inf"))
        b_inverse = 1.0 / tl.load(p_stat + (o_row * H + head) * 2 + 1, mask=m_row, other=1.0)
        b_delta = tl.load(p_delta + o_row * H + head, mask=m_row, other=0.0)
        b_dot = tl.dot(b_k, tl.trans(b_q), input_precision=PRECISION)  # (keys, rows)
        b_p = tl.exp2(b_dot * (scale * LOG2E) - b_shift[None, :]) * b_inverse[None, :]
        b_p = tl.where(m_n[:, None], b_p, 0.0)
        b_dp = tl.dot(b_v, tl.trans(b_do), input_precision=PRECISION)
        b_dropped = b_p
        if p_seed is not None:
            b_text = tl.load(p_text + o_row, mask=m_row, other=0)
            b_position = o_row.to(tl.int32) - tl.load(p_cu + b_text)
            b_text_head = b_text * H + head.to(tl.int32)
            b_keep = tl.trans(keep_mask(seed, offset, threshold, b_position, b_text_head, start, BLOCK_N))
            b_dropped = tl.where(b_keep, b_p * keep_scale, 0.0)
            b_dp = tl.where(b_keep, b_dp * keep_scale, 0.0)
        b_dv += tl.dot(b_dropped.to(b_do.dtype), b_do, input_precision=PRECISION)
        b_ds = b_p * (b_dp - b_delta[None, :])
        b_dk += tl.dot(b_ds.to(b_q.dtype), b_q, input_precision=PRECISION)
    p_dkv += (((image * L + o_n.to(tl.int64)) * 2 * H + head) * D)[:, None] + o_d[None, :]
    m_out = (o_n < L)[:, None] & m_d[None, :]
    tl.store(p_dkv, (b_dk * scale).to(p_dkv.dtype.element_ty), mask=m_out)
    tl.store(p_dkv + H * D, b_dv.to(p_dkv.dtype.element_ty), mask=m_out)


def cross_attention_backward(
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor | None,
    out: Tensor,
    statistics: Tensor,
    groups: Sequence[Tensor],
    image_lengths: Tensor | None,
    seed: Tensor | None,
    offset: Tensor | None,
    dropout_p: float,
    scale: float,
    tile_rows: int,
) -> tuple[Tensor, Tensor]:
    """Gradient of the query (T, H, D), and of keys and values together (B, L, 2, H, D)."""
    key, value = split_key_value(key, value)
    groups = RowGroups(*groups)
    (_, heads, dim), (images, length) = query.shape, key.shape[:2]
    grad_query = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    grad_key_value = torch.empty((images, length, 2, heads, dim), dtype=key.dtype, device=key.device)
    delta = torch.empty(query.shape[:2], dtype=torch.float32, device=query.device)
    block_d = max(16, triton.next_power_of_2(dim))
    dropout = (seed, offset, dropout_threshold(dropout_p), 1.0 / (1.0 - dropout_p))
    sizes = (scale, heads, images, length, *query.stride()[:2], *key.stride()[:3], *value.stride()[:3])
    constants = {"D": dim, "BLOCK_D": block_d, "PRECISION": precision(query.dtype)}
    if grad_query.numel():
        tile = tile_for("grad_query", tile_rows, block_d, query.element_size(), query.device)
        programs = groups.tiles.shape[0] * (tile_rows // tile.block_m)
        cross_attention_grad_query_kernel[(programs, heads)](
            query, key, value, out, grad_out, statistics, grad_query, delta, groups.rows, groups.bounds, groups.tiles,
            image_lengths, groups.text_of_row, groups.cu_seqlens, *dropout, *sizes, **constants, TILE_ROWS=tile_rows,
            BLOCK_M=tile.block_m, BLOCK_N=tile.block_n, num_warps=tile.num_warps, num_stages=tile.num_stages,
        )  # fmt: skip
    if grad_key_value.numel():
        tile = tile_for("grad_key_value", tile_rows, block_d, query.element_size(), query.device)
        cross_attention_grad_key_value_kernel[(triton.cdiv(length, tile.block_n), heads, images)](
            query, key, value, grad_out, statistics, delta, grad_key_value, groups.rows, groups.bounds, image_lengths,
            groups.text_of_row, groups.cu_seqlens, *dropout, *sizes, **constants,
            BLOCK_M=tile.block_m, BLOCK_N=tile.block_n, num_warps=tile.num_warps, num_stages=tile.num_stages,
        )  # fmt: skip
    return grad_query, grad_key_value


SPECIMENS = [
    *attention_specimens(cross_attention_grad_query_kernel, "grad_query", (16, 64)),
    *attention_specimens(cross_attention_grad_key_value_kernel, "grad_key_value", (64,)),
]

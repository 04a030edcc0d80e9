"""Self-attention of packed texts: ``out = softmax(query key^T * scale) value`` within each text, and its gradients.

One program per text, block of its tokens and head. Texts are short: as a rule one block holds a text, and everything is read
once. Forward reads Q, K, V and writes the output, 8 T H D bytes in bf16, with 4 n^2 H D FLOPs for n tokens; backward reads
these and the gradient of the output and writes three, 16 T H D bytes, with 14 n^2 H D FLOPs (scores and their gradients twice:
once for the block as keys, once as queries; so no sums go through memory, and their order is fixed).
"""

from __future__ import annotations

import itertools

import torch
import triton
import triton.language as tl
from torch import Tensor

from blip_fast.kernels.aot import Specimen
from blip_fast.kernels.attention import (
    LOG2E,
    attention_specimen,
    dropout_threshold,
    keep_mask,
    online_softmax,
    softmax_shift,
)
from blip_fast.kernels.launch import precision
from blip_fast.kernels.tiles import Job, tile_by_rule, tile_for
from blip_fast.reference.packed_self_attention import split_query_key_value


@triton.jit
def text_of_program(p_cu, program, blocks, T, BLOCK: tl.constexpr):
    """Number of the program's text, its first row and length, and the position of the program's block in it."""
    text = program // blocks
    start = tl.load(p_cu + text)
    length = tl.minimum(tl.load(p_cu + text + 1), T) - start
    return text, start.to(tl.int64), length, program % blocks * BLOCK


@triton.jit
def seen_keys(o_m, o_n, length, CAUSAL: tl.constexpr):
    """(M, N) bool: which keys the queries see, by positions in the text."""
    m_seen = (o_n < length)[None, :]
    if CAUSAL:
        m_seen = m_seen & (o_n[None, :] <= o_m[:, None])
    return m_seen


@triton.jit
def load_keys(p_k, p_v, o_row, m_row, head, stride_kt, stride_kh, stride_vt, stride_vh, D: tl.constexpr, o_d):
    """Keys and values (N, D)."""
    m_k = m_row[:, None] & (o_d < D)[None, :]
    b_k = tl.load(p_k + o_row[:, None] * stride_kt + head * stride_kh + o_d[None, :], mask=m_k, other=0.0)
    b_v = tl.load(p_v + o_row[:, None] * stride_vt + head * stride_vh + o_d[None, :], mask=m_k, other=0.0)
    return b_k, b_v


@triton.jit
def packed_self_attention_kernel(
    p_q,  # (T, H, D), strided
    p_k,  # (T, H, D), strided
    p_v,  # (T, H, D), strided
    p_o,  # (T, H, D)
    p_stat,  # (T, H, 2)
    p_cu,  # (S + 1,)
    p_seed,  # (1,) or None: no dropout
    p_offset,
    threshold,
    keep_scale,
    scale,
    T,
    H,
    blocks,  # per text
    stride_qt,
    stride_qh,
    stride_kt,
    stride_kh,
    stride_vt,
    stride_vh,
    D: tl.constexpr,
    CAUSAL: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    head = tl.program_id(1).to(tl.int64)
    text, start, length, first = text_of_program(p_cu, tl.program_id(0), blocks, T, BLOCK_M)
    if first >= length:
        return
    o_m = first + tl.arange(0, BLOCK_M)
    o_d = tl.arange(0, BLOCK_D)
    m_q = (o_m < length)[:, None] & (o_d < D)[None, :]
    o_row = start + o_m
    b_q = tl.load(p_q + o_row[:, None] * stride_qt + head * stride_qh + o_d[None, :], mask=m_q, other=0.0)
    b_max = tl.full([BLOCK_M], float("-inf"), tl.float32)
    b_sum = tl.zeros([BLOCK_M], tl.float32)
    b_o = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    end = tl.minimum(first + BLOCK_M, length) if CAUSAL else length
    for begin in range(0, end, BLOCK_N):
        o_n = begin + tl.arange(0, BLOCK_N)
        b_k, b_v = load_keys(
            p_k, p_v, start + o_n, o_n < length, head, stride_kt, stride_kh, stride_vt, stride_vh, D, o_d
        )  # fmt: skip
        b_dot = tl.dot(b_q, tl.trans(b_k), input_precision=PRECISION)
        b_dot = tl.where(seen_keys(o_m, o_n, length, CAUSAL), b_dot, float("-inf"))
        b_p, b_max, b_sum, b_factor = online_softmax(b_dot, b_max, b_sum, scale * LOG2E)
        if p_seed is not None:
            b_text_head = tl.zeros([BLOCK_M], tl.int32) + (text * H + head.to(tl.int32))
            b_keep = keep_mask(tl.load(p_seed), tl.load(p_offset), threshold, o_m, b_text_head, begin, BLOCK_N)
            b_p = tl.where(b_keep, b_p, 0.0)
        b_o = b_o * b_factor[:, None] + tl.dot(b_p.to(b_v.dtype), b_v, input_precision=PRECISION)
    b_o = b_o * (keep_scale / b_sum)[:, None]
    o_out = o_row * H + head
    tl.store(p_o + o_out[:, None] * D + o_d[None, :], b_o.to(p_o.dtype.element_ty), mask=m_q)
    tl.store(p_stat + o_out * 2, softmax_shift(b_max, scale * LOG2E), mask=o_m < length)
    tl.store(p_stat + o_out * 2 + 1, b_sum, mask=o_m < length)


@triton.jit
def load_queries(p_q, p_o, p_do, p_stat, o_row, m_row, head, H, stride_qt, stride_qh, D: tl.constexpr, o_d):
    """Queries and gradients of their outputs (M, D); shift, inverse sum and delta of their softmax (M,)."""
    m_q = m_row[:, None] & (o_d < D)[None, :]
    o_out = o_row * H + head
    b_q = tl.load(p_q + o_row[:, None] * stride_qt + head * stride_qh + o_d[None, :], mask=m_q, other=0.0)
    b_do = tl.load(p_do + o_out[:, None] * D + o_d[None, :], mask=m_q, other=0.0)
    b_o = tl.load(p_o + o_out[:, None] * D + o_d[None, :], mask=m_q, other=0.0)
    b_delta = tl.sum(b_do.to(tl.float32) * b_o.to(tl.float32), 1)
    b_shift = tl.load(p_stat + o_out * 2, mask=m_row, other=float("inf"))
    return b_q, b_do, b_shift, 1.0 / tl.load(p_stat + o_out * 2 + 1, mask=m_row, other=1.0), b_delta


@triton.jit
def score_gradients(
    b_q, b_do, b_shift, b_inverse, b_delta, b_k, b_v, o_m, o_n, length, begin, text_head, p_seed, p_offset, threshold,
    keep_scale, scale, CAUSAL: tl.constexpr, BLOCK_N: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Probabilities after dropout, and gradients of the scaled scores: (M, N) each."""
    b_dot = tl.dot(b_q, tl.trans(b_k), input_precision=PRECISION)
    b_p = tl.exp2(b_dot * (scale * LOG2E) - b_shift[:, None]) * b_inverse[:, None]
    b_p = tl.where(seen_keys(o_m, o_n, length, CAUSAL), b_p, 0.0)
    b_dp = tl.dot(b_do, tl.trans(b_v), input_precision=PRECISION)
    b_dropped = b_p
    if p_seed is not None:
        b_text_head = tl.zeros_like(o_m) + text_head
        b_keep = keep_mask(tl.load(p_seed), tl.load(p_offset), threshold, o_m, b_text_head, begin, BLOCK_N)
        b_dropped = tl.where(b_keep, b_p * keep_scale, 0.0)
        b_dp = tl.where(b_keep, b_dp * keep_scale, 0.0)
    return b_dropped, b_p * (b_dp - b_delta[:, None])


@triton.jit
def packed_self_attention_backward_kernel(
    p_q,  # (T, H, D), strided
    p_k,  # (T, H, D), strided
    p_v,  # (T, H, D), strided
    p_o,  # (T, H, D)
    p_do,  # (T, H, D)
    p_stat,  # (T, H, 2)
    p_dq,  # (T, H, D), rows strided
    p_dk,  # (T, H, D), rows strided
    p_dv,  # (T, H, D), rows strided
    p_cu,  # (S + 1,)
    p_seed,  # (1,) or None: no dropout
    p_offset,
    threshold,
    keep_scale,
    scale,
    T,
    H,
    blocks,  # per text
    stride_qt,
    stride_qh,
    stride_kt,
    stride_kh,
    stride_vt,
    stride_vh,
    stride_gt,
    D: tl.constexpr,
    CAUSAL: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    head = tl.program_id(1).to(tl.int64)
    text, start, length, first = text_of_program(p_cu, tl.program_id(0), blocks, T, BLOCK_M)
    if first >= length:
        return
    text_head = text * H + head.to(tl.int32)
    o_own = first + tl.arange(0, BLOCK_M)
    o_d = tl.arange(0, BLOCK_D)
    m_own = o_own < length
    o_store = (start + o_own)[:, None] * stride_gt + head * D + o_d[None, :]
    m_store = m_own[:, None] & (o_d < D)[None, :]

    # the block as keys, seen by all queries, or with CAUSAL by those from its own place on
    b_k, b_v = load_keys(
        p_k, p_v, start + o_own, m_own, head, stride_kt, stride_kh, stride_vt, stride_vh, D, o_d
    )  # fmt: skip
    b_dk = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    b_dv = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for begin in range(first if CAUSAL else 0, length, BLOCK_M):
        o_m = begin + tl.arange(0, BLOCK_M)
        b_q, b_do, b_shift, b_inverse, b_delta = load_queries(
            p_q, p_o, p_do, p_stat, start + o_m, o_m < length, head, H, stride_qt, stride_qh, D, o_d
        )  # fmt: skip
        b_dropped, b_ds = score_gradients(
            b_q, b_do, b_shift, b_inverse, b_delta, b_k, b_v, o_m, o_own, length, first, text_head, p_seed, p_offset,
            threshold, keep_scale, scale, CAUSAL, BLOCK_M, PRECISION,
        )  # fmt: skip
        b_dv += tl.dot(tl.trans(b_dropped.to(b_do.dtype)), b_do, input_precision=PRECISION)
        b_dk += tl.dot(tl.trans(b_ds.to(b_q.dtype)), b_q, input_precision=PRECISION)
    tl.store(p_dk + o_store, (b_dk * scale).to(p_dk.dtype.element_ty), mask=m_store)
    tl.store(p_dv + o_store, b_dv.to(p_dv.dtype.element_ty), mask=m_store)

    # the block as queries
    b_q, b_do, b_shift, b_inverse, b_delta = load_queries(
        p_q, p_o, p_do, p_stat, start + o_own, m_own, head, H, stride_qt, stride_qh, D, o_d
    )  # fmt: skip
    b_dq = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for begin in range(0, tl.minimum(first + BLOCK_M, length) if CAUSAL else length, BLOCK_M):
        o_n = begin + tl.arange(0, BLOCK_M)
        b_k, b_v = load_keys(
            p_k, p_v, start + o_n, o_n < length, head, stride_kt, stride_kh, stride_vt, stride_vh, D, o_d
        )  # fmt: skip
        _, b_ds = score_gradients(
            b_q, b_do, b_shift, b_inverse, b_delta, b_k, b_v, o_own, o_n, length, begin, text_head, p_seed, p_offset,
            threshold, keep_scale, scale, CAUSAL, BLOCK_M, PRECISION,
        )  # fmt: skip
        b_dq += tl.dot(b_ds.to(b_k.dtype), b_k, input_precision=PRECISION)
    tl.store(p_dq + o_store, (b_dq * scale).to(p_dq.dtype.element_ty), mask=m_store)


def rows_for(max_length: int) -> int:
    """Rows that a program takes at most: a whole text where it fits in 64."""
    return next((size for size in (16, 32) if max_length <= size), 64)


def packed_self_attention(
    query: Tensor,
    key: Tensor | None,
    value: Tensor | None,
    cu_seqlens: Tensor,
    seed: Tensor | None,
    offset: Tensor | None,
    max_length: int,
    causal: bool,
    dropout_p: float,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Output (T, H, D) and statistics (T, H, 2); see `blip_fast.reference.packed_self_attention`."""
    query, key, value = split_query_key_value(query, key, value)
    tokens, heads, dim = query.shape
    out = torch.zeros((tokens, heads, dim), dtype=query.dtype, device=query.device)  # rows past the last text stay 0
    statistics = torch.zeros((tokens, heads, 2), dtype=torch.float32, device=query.device)
    texts, block_d = cu_seqlens.shape[0] - 1, max(16, triton.next_power_of_2(dim))
    tile = tile_for("self_forward", rows_for(max_length), block_d, query.element_size(), query.device)
    blocks = triton.cdiv(max_length, tile.block_m)
    if texts * blocks * out.numel():
        packed_self_attention_kernel[(texts * blocks, heads)](
            query, key, value, out, statistics, cu_seqlens, seed, offset, dropout_threshold(dropout_p),
            1.0 / (1.0 - dropout_p), scale, tokens, heads, blocks, *query.stride()[:2], *key.stride()[:2],
            *value.stride()[:2], D=dim, CAUSAL=causal, BLOCK_M=tile.block_m, BLOCK_N=tile.block_n, BLOCK_D=block_d,
            PRECISION=precision(query.dtype), num_warps=tile.num_warps, num_stages=tile.num_stages,
        )  # fmt: skip
    return out, statistics


def packed_self_attention_backward(
    grad_out: Tensor,
    query: Tensor,
    key: Tensor | None,
    value: Tensor | None,
    out: Tensor,
    statistics: Tensor,
    cu_seqlens: Tensor,
    seed: Tensor | None,
    offset: Tensor | None,
    max_length: int,
    causal: bool,
    dropout_p: float,
    scale: float,
) -> Tensor:
    """Gradients of query, key and value: (T, 3, H, D) where these are one tensor, else (3, T, H, D)."""
    together = 1 if key is None else 0
    query, key, value = split_query_key_value(query, key, value)
    tokens, heads, dim = query.shape
    shape = (tokens, 3, heads, dim) if together else (3, tokens, heads, dim)
    gradient = torch.zeros(shape, dtype=query.dtype, device=query.device)  # rows past the last text stay 0
    parts = gradient.unbind(together)
    texts, block_d = cu_seqlens.shape[0] - 1, max(16, triton.next_power_of_2(dim))
    tile = tile_for("self_backward", rows_for(max_length), block_d, query.element_size(), query.device)
    blocks = triton.cdiv(max_length, tile.block_m)
    if texts * blocks * out.numel():
        packed_self_attention_backward_kernel[(texts * blocks, heads)](
            query, key, value, out, grad_out, statistics, *parts, cu_seqlens, seed, offset,
            dropout_threshold(dropout_p), 1.0 / (1.0 - dropout_p), scale, tokens, heads, blocks, *query.stride()[:2],
            *key.stride()[:2], *value.stride()[:2], parts[0].stride(0), D=dim, CAUSAL=causal, BLOCK_M=tile.block_m,
            BLOCK_D=block_d, PRECISION=precision(query.dtype), num_warps=tile.num_warps, num_stages=tile.num_stages,
        )  # fmt: skip
    return gradient


def _specimens() -> list[Specimen]:
    """Texts of up to 30 and up to 512 tokens, plain and with all that makes the kernel larger."""
    found = {}
    kernels = {"self_forward": packed_self_attention_kernel, "self_backward": packed_self_attention_backward_kernel}
    for name, size, dtype, (dim, more) in itertools.product(
        kernels, (32, 64), ("bf16", "fp32"), ((64, False), (64, True), (128, True))
    ):
        tile = tile_by_rule(Job(name, size, dim, 2 if dtype == "bf16" else 4))
        specimen = attention_specimen(kernels[name], dim, dtype, tile, dropout=more, CAUSAL=more)
        found[name, specimen.label] = specimen
    return list(found.values())


SPECIMENS = _specimens()

"""Cross-entropy of a linear layer without its logits: z = weight hidden^T + bias, transposed throughout (words x rows).

Three products of the n counted rows, 2 n C V FLOPs each, on tiles that exit beyond n, which stays on the device:

    forward   a tile of z in registers -> its maximum, sum of exponentials and sum per row; z of the first C counted rows is
              kept, rounded, in the memory of grad_weight (V, C)
    backward  for each chunk of the vocabulary: z -> D = (softmax - target) * grad_losses in scratch memory,
              grad_weight = D hidden (over the kept z, written once), grad_hidden += D^T weight in fp32

Chunks run over the vocabulary and not over rows: a chunk of rows would read and write all of grad_weight (94 MB in fp32)
for 2 * rows FLOPs per element, more time than its product takes below about 800 rows on an H100. Keeping z saves the fourth
product; rows beyond C are multiplied again. Nothing is accumulated by atomics.
"""

from __future__ import annotations

import dataclasses
import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from blip_fast.kernels.aot import Specimen
from blip_fast.kernels.counted_rows import compact_rows, scatter_rows
from blip_fast.kernels.launch import multiprocessors, precision

D_BYTES = 12 << 20  # of D in scratch memory: about 3 % of what the eager gradient of the logits takes at 1,000 rows


@triton.jit
def _product(p_a, p_b, a_step, b_step, a_mask, b_mask, depth, b_sum, BK: tl.constexpr, PRECISION: tl.constexpr):
    """b_sum + A B. p_a (M, BK), p_b (BK, N): the first blocks; a_mask (M, 1), b_mask (1, N): rows and columns that exist."""
    o_k = tl.arange(0, BK)
    for k in range(0, depth, BK):
        b_a = tl.load(p_a, mask=a_mask & (o_k[None, :] < depth - k), other=0.0)
        b_b = tl.load(p_b, mask=b_mask & (o_k[:, None] < depth - k), other=0.0)
        b_sum = tl.dot(b_a, b_b, b_sum, input_precision=PRECISION)
        p_a += a_step
        p_b += b_step
    return b_sum


@triton.jit
def _logits(p_hidden, p_weight, p_bias, o_i, o_j, words, rows, C, BK: tl.constexpr, HAS_BIAS: tl.constexpr,
            PRECISION: tl.constexpr):  # fmt: skip
    """z in fp32 of the words o_i < words and the rows o_j < rows; the pointers are those of word 0 and row 0."""
    o_k = tl.arange(0, BK)
    p_w = p_weight + o_i[:, None] * C + o_k[None, :]
    p_h = p_hidden + o_j[None, :] * C + o_k[:, None]
    b_z = tl.zeros((o_i.shape[0], o_j.shape[0]), tl.float32)
    b_z = _product(p_w, p_h, BK, BK, (o_i < words)[:, None], (o_j < rows)[None, :], C, b_z, BK, PRECISION)
    if HAS_BIAS:
        b_z += tl.load(p_bias + o_i, mask=o_i < words, other=0.0).to(tl.float32)[:, None]
    return b_z


@triton.jit
def linear_cross_entropy_fwd_kernel(
    p_hidden,  # (T, C), counted rows first
    p_weight,  # (V, C)
    p_bias,  # (V,)
    p_labels,  # (T,)
    p_rows,  # (T + 1,)
    p_logits,  # (V, C): z of counted row r < C in column r
    p_statistics,  # (tiles of V, 3, T): maximum, sum of exp(z - maximum), sum of z
    p_at_label,  # (T,): z[label]
    T,
    C,
    V,
    KEEP: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    PRECISION: tl.constexpr,
    BV: tl.constexpr,
    BT: tl.constexpr,
    BK: tl.constexpr,
):
    start = tl.program_id(0) * BT
    rows = tl.minimum(tl.load(p_rows + T) - start, BT)
    if rows <= 0:
        return
    tile = tl.program_id(1)
    word = tile.to(tl.int64) * BV
    words = tl.minimum(V - tile * BV, BV)
    o_i = tl.arange(0, BV)
    o_j = tl.arange(0, BT)
    inside = o_j < rows
    p_h = p_hidden + start.to(tl.int64) * C
    b_z = _logits(p_h, p_weight + word * C, p_bias + word, o_i, o_j, words, rows, C, BK, HAS_BIAS, PRECISION)
    if KEEP:  # the statistics are of what backward will see
        kept = (inside & (start + o_j < C))[None, :]
        b_rounded = b_z.to(p_logits.dtype.element_ty)
        p_z = p_logits + word * C + start
        tl.store(p_z + o_i[:, None] * C + o_j[None, :], b_rounded, mask=(o_i < words)[:, None] & kept)
        b_z = tl.where(kept, b_rounded.to(tl.float32), b_z)
    p_s = p_statistics + tile.to(tl.int64) * 3 * T + start
    tl.store(p_s + 2 * T + o_j, tl.sum(tl.where((o_i < words)[:, None], b_z, 0.0), 0), mask=inside)
    label = tl.load(p_labels + tl.load(p_rows + start + o_j, mask=inside, other=0), mask=inside, other=-1) - word
    here = inside & (label >= 0) & (label < words)
    b_at_label = tl.sum(tl.where(o_i[:, None] == label.to(tl.int32)[None, :], b_z, 0.0), 0)
    tl.store(p_at_label + start + o_j, b_at_label, mask=here)
    b_z = tl.where((o_i < words)[:, None], b_z, float("-inf"))
    b_max = tl.max(b_z, 0)
    b_exp = tl.exp(b_z - tl.where(b_max == float("-inf"), 0.0, b_max)[None, :])
    tl.store(p_s + o_j, b_max, mask=inside)
    tl.store(p_s + T + o_j, tl.sum(b_exp, 0), mask=inside)


@triton.jit
def combine_kernel(
    p_statistics,
    p_at_label,
    p_labels,
    p_rows,
    p_losses,  # (T,), zero
    p_lse,  # (T,), zero
    T,
    V,
    tiles,
    smoothing,
    SMOOTH: tl.constexpr,
    BT: tl.constexpr,
):
    """Losses and log-sum-exps from the statistics of the tiles."""
    o_r = tl.program_id(0) * BT + tl.arange(0, BT)
    inside = o_r < tl.load(p_rows + T)
    b_max = tl.full((BT,), float("-inf"), tl.float32)
    p_s = p_statistics + o_r
    for _ in range(tiles):
        b_max = tl.maximum(b_max, tl.load(p_s, mask=inside, other=0.0))
        p_s += 3 * T
    b_sum = tl.zeros((BT,), tl.float32)
    b_total = tl.zeros((BT,), tl.float32)
    p_s = p_statistics + o_r
    for _ in range(tiles):
        b_scale = tl.exp(tl.load(p_s, mask=inside, other=0.0) - b_max)
        b_sum += tl.load(p_s + T, mask=inside, other=1.0) * b_scale
        b_total += tl.load(p_s + 2 * T, mask=inside, other=0.0)
        p_s += 3 * T
    row = tl.load(p_rows + o_r, mask=inside, other=0)
    label = tl.load(p_labels + row, mask=inside, other=0)
    b_lse = tl.where((label >= 0) & (label < V), b_max + tl.log(b_sum), float("nan"))
    b_loss = b_lse - (1.0 - smoothing) * tl.load(p_at_label + o_r, mask=inside, other=0.0)
    if SMOOTH:
        b_loss -= smoothing / V * b_total
    tl.store(p_losses + row, b_loss, mask=inside)
    tl.store(p_lse + row, b_lse, mask=inside)


@triton.jit
def logits_gradient_kernel(
    p_hidden,
    p_weight,
    p_bias,
    p_labels,
    p_rows,
    p_logits,
    p_lse,
    p_grad_losses,  # (T,)
    p_d,  # (chunk, stride): D of the chunk
    p_grad_bias,  # (tiles of T, V): sums of D over a tile
    T,
    C,
    V,
    first,  # word of the chunk
    chunk,  # its length
    stride,
    smoothing,
    KEPT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    NEED_BIAS: tl.constexpr,
    PRECISION: tl.constexpr,
    BV: tl.constexpr,
    BT: tl.constexpr,
    BK: tl.constexpr,
):
    start = tl.program_id(0) * BT
    rows = tl.minimum(tl.load(p_rows + T) - start, BT)
    i = tl.program_id(1) * BV
    word = first + i.to(tl.int64)
    o_i = tl.arange(0, BV)
    o_j = tl.arange(0, BT)
    words = tl.minimum(chunk - i, BV)
    p_sum = p_grad_bias + tl.program_id(0).to(tl.int64) * V + word
    if rows <= 0:
        if NEED_BIAS:
            tl.store(p_sum + o_i, tl.zeros((BV,), tl.float32), mask=o_i < words)
        return
    inside = o_j < rows
    p_h = p_hidden + start.to(tl.int64) * C
    p_z = p_logits + word * C + start + o_i[:, None] * C + o_j[None, :]
    kept = (o_i < words)[:, None] & (inside & (start + o_j < C))[None, :]
    if not KEPT:
        b_z = _logits(p_h, p_weight + word * C, p_bias + word, o_i, o_j, words, rows, C, BK, HAS_BIAS, PRECISION)
    elif start + rows <= C:
        b_z = tl.load(p_z, mask=kept, other=0.0).to(tl.float32)
    else:
        b_z = _logits(p_h, p_weight + word * C, p_bias + word, o_i, o_j, words, rows, C, BK, HAS_BIAS, PRECISION)
        b_z = tl.where(kept, tl.load(p_z, mask=kept, other=0.0).to(tl.float32), b_z)
    row = tl.load(p_rows + start + o_j, mask=inside, other=0)
    b_lse = tl.load(p_lse + row, mask=inside, other=0.0)
    b_grad = tl.load(p_grad_losses + row, mask=inside, other=0.0)
    label = (tl.load(p_labels + row, mask=inside, other=-1) - word).to(tl.int32)
    b_target = smoothing / V + tl.where(o_i[:, None] == label[None, :], 1.0 - smoothing, 0.0)
    b_d = (tl.exp(b_z - b_lse[None, :]) - b_target) * b_grad[None, :]
    mask = (o_i < words)[:, None] & inside[None, :]
    p_out = p_d + i.to(tl.int64) * stride + start
    tl.store(p_out + o_i[:, None] * stride + o_j[None, :], b_d.to(p_d.dtype.element_ty), mask=mask)
    if NEED_BIAS:
        tl.store(p_sum + o_i, tl.sum(tl.where(mask, b_d, 0.0), 1), mask=o_i < words)


@triton.jit
def grad_weight_kernel(
    p_d,
    p_hidden,
    p_rows,
    p_grad_weight,  # the chunk's rows of (V, C)
    T,
    C,
    chunk,
    stride,
    PRECISION: tl.constexpr,
    BV: tl.constexpr,
    BC: tl.constexpr,
    BK: tl.constexpr,
):
    i = tl.program_id(1).to(tl.int64) * BV
    o_i = tl.arange(0, BV)
    o_c = tl.program_id(0) * BC + tl.arange(0, BC)
    o_k = tl.arange(0, BK)
    words = (o_i < chunk - i)[:, None]
    columns = (o_c < C)[None, :]
    p_a = p_d + i * stride + o_i[:, None] * stride + o_k[None, :]
    p_b = p_hidden + o_k[:, None] * C + o_c[None, :]
    b_sum = tl.zeros((BV, BC), tl.float32)
    b_sum = _product(p_a, p_b, BK, BK * C, words, columns, tl.load(p_rows + T), b_sum, BK, PRECISION)
    p_out = p_grad_weight + i * C + o_i[:, None] * C + o_c[None, :]
    tl.store(p_out, b_sum.to(p_grad_weight.dtype.element_ty), mask=words & columns)


@triton.jit
def grad_hidden_kernel(
    p_d,
    p_weight,  # the chunk's rows of (V, C)
    p_rows,
    p_sum,  # (splits, T, C) fp32
    T,
    C,
    chunk,
    stride,
    part,  # words of the chunk per split
    ADD: tl.constexpr,  # to the sums of earlier chunks
    PRECISION: tl.constexpr,
    BT: tl.constexpr,
    BC: tl.constexpr,
    BK: tl.constexpr,
):
    start = tl.program_id(1) * BT
    rows = tl.minimum(tl.load(p_rows + T) - start, BT)
    if rows <= 0:
        return
    o_j = tl.arange(0, BT)
    o_c = tl.program_id(0) * BC + tl.arange(0, BC)
    o_k = tl.arange(0, BK)
    inside = (o_j < rows)[:, None]
    columns = (o_c < C)[None, :]
    i = tl.program_id(2).to(tl.int64) * part
    p_a = p_d + i * stride + start + o_j[:, None] + o_k[None, :] * stride
    p_b = p_weight + i * C + o_k[:, None] * C + o_c[None, :]
    words = tl.minimum(chunk - i, part).to(tl.int32)
    b_sum = tl.zeros((BT, BC), tl.float32)
    b_sum = _product(p_a, p_b, BK * stride, BK * C, inside, columns, words, b_sum, BK, PRECISION)
    p_out = p_sum + (tl.program_id(2) * T + start).to(tl.int64) * C + o_j[:, None] * C + o_c[None, :]
    if ADD:
        b_sum += tl.load(p_out, mask=inside & columns, other=0.0)
    tl.store(p_out, b_sum, mask=inside & columns)


@dataclasses.dataclass(frozen=True)
class Tile:
    """Shape of a product's tile and of its pipeline."""

    rows: int
    columns: int
    depth: int
    num_warps: int
    num_stages: int


@dataclasses.dataclass(frozen=True)
class Config:
    """The tiles of the four products: words x rows (forward, gradient of the logits), words x C, rows x C."""

    forward: Tile
    gradient: Tile
    weight: Tile
    hidden: Tile


@functools.cache
def configuration(dtype: torch.dtype, rows: int) -> Config:
    """Tensor-core tiles as large as the registers allow; fewer rows take narrower tiles; fp32 is bound by its arithmetic."""
    few = max(16, min(128, triton.next_power_of_2(rows)))
    if dtype == torch.float32:
        tile = Tile(64, min(few, 64), 16, 8, 2)
        return Config(tile, tile, Tile(64, 64, 16, 8, 2), Tile(min(few, 64), 64, 16, 8, 2))
    tile = Tile(128, few, 64, 8, 3)
    return Config(tile, tile, Tile(128, 128, 64, 8, 3), Tile(few, 128, 64, 8, 3))


def forward(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    label_smoothing: float,
    ignore_index: int,
    keep_logits: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Losses, log-sum-exps and kept logits; see `blip_fast.ops.linear_cross_entropy`."""
    (T, C), V = hidden.shape, weight.shape[0]
    losses, lse = (torch.zeros(T, dtype=torch.float32, device=hidden.device) for _ in range(2))
    logits = torch.empty_like(weight) if keep_logits else weight.new_empty(0)
    if T == 0:
        return losses, lse, logits
    rows, hidden = compact_rows(hidden, labels, ignore_index)
    tile = configuration(hidden.dtype, T).forward
    tiles = triton.cdiv(V, tile.rows)
    statistics = torch.empty(tiles, 3, T, dtype=torch.float32, device=hidden.device)
    at_label = torch.empty_like(losses)
    linear_cross_entropy_fwd_kernel[(triton.cdiv(T, tile.columns), tiles)](
        hidden, weight, weight if bias is None else bias, labels, rows, logits, statistics, at_label, T, C, V,
        KEEP=keep_logits, HAS_BIAS=bias is not None, PRECISION=precision(hidden.dtype),
        BV=tile.rows, BT=tile.columns, BK=tile.depth, num_warps=tile.num_warps, num_stages=tile.num_stages,
    )  # fmt: skip
    combine_kernel[(triton.cdiv(T, 32),)](
        statistics, at_label, labels, rows, losses, lse, T, V, tiles, label_smoothing,
        SMOOTH=label_smoothing > 0, BT=32, num_warps=1,
    )  # fmt: skip
    return losses, lse, logits


def backward(
    grad_losses: Tensor,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    lse: Tensor,
    logits: Tensor,
    label_smoothing: float,
    ignore_index: int,
    need_hidden: bool,
    need_weight: bool,
    need_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of hidden, weight (in ``logits`` where they were kept) and bias."""
    (T, C), V = hidden.shape, weight.shape[0]
    kept = logits.numel() > 0
    grad_hidden = torch.zeros_like(hidden) if need_hidden else hidden.new_empty(0)
    grad_weight = torch.empty_like(weight) if need_weight and not kept else weight.new_empty(0)
    out = logits if kept else grad_weight
    if T == 0:
        out.zero_()
        return grad_hidden, grad_weight, weight.new_zeros(V if need_bias else 0)
    config, products = configuration(hidden.dtype, T), precision(hidden.dtype)
    rows, hidden = compact_rows(hidden, labels, ignore_index)
    stride = triton.cdiv(T, 16) * 16
    chunk = min(V, max(1024, D_BYTES // (stride * weight.element_size()) // 256 * 256))
    d = weight.new_empty(chunk, stride)
    row_tiles = triton.cdiv(T, config.gradient.columns)
    sums = torch.empty(row_tiles if need_bias else 0, V, dtype=torch.float32, device=hidden.device)
    hidden_grid = (triton.cdiv(C, config.hidden.columns), triton.cdiv(T, config.hidden.rows))
    splits = max(1, min(4, multiprocessors(hidden.device) // (hidden_grid[0] * hidden_grid[1])))
    partial = torch.empty(splits if need_hidden else 0, T, C, dtype=torch.float32, device=hidden.device)
    for word in range(0, V, chunk):
        words, tile = min(chunk, V - word), config.gradient
        logits_gradient_kernel[(row_tiles, triton.cdiv(words, tile.rows))](
            hidden, weight, weight if bias is None else bias, labels, rows, logits, lse, grad_losses, d, sums,
            T, C, V, word, words, stride, label_smoothing,
            KEPT=kept, HAS_BIAS=bias is not None, NEED_BIAS=need_bias, PRECISION=products,
            BV=tile.rows, BT=tile.columns, BK=tile.depth, num_warps=tile.num_warps, num_stages=tile.num_stages,
        )  # fmt: skip
        if need_weight:
            tile = config.weight
            grad_weight_kernel[(triton.cdiv(C, tile.columns), triton.cdiv(words, tile.rows))](
                d, hidden, rows, out[word:], T, C, words, stride, PRECISION=products,
                BV=tile.rows, BC=tile.columns, BK=tile.depth, num_warps=tile.num_warps, num_stages=tile.num_stages,
            )  # fmt: skip
        if need_hidden:
            tile = config.hidden
            grad_hidden_kernel[(*hidden_grid, splits)](
                d, weight[word:], rows, partial, T, C, words, stride, triton.cdiv(words, splits), ADD=word > 0,
                PRECISION=products,
                BT=tile.rows, BC=tile.columns, BK=tile.depth, num_warps=tile.num_warps, num_stages=tile.num_stages,
            )  # fmt: skip
    if need_hidden:
        scatter_rows(partial, rows, grad_hidden)
    return grad_hidden, grad_weight, sums.sum(0).to(weight.dtype) if need_bias else weight.new_empty(0)


def _specimens() -> list[Specimen]:
    types = {"p_labels": "*i64", "p_rows": "*i32", "smoothing": "fp32"}
    types |= dict.fromkeys(("p_statistics", "p_at_label", "p_losses", "p_lse", "p_grad_losses", "p_grad_bias"), "*fp32")
    found = []
    for dtype, name in ((torch.bfloat16, "bf16"), (torch.float32, "fp32")):
        config = configuration(dtype, 1000)
        for kernel, tile, blocks in (
            (linear_cross_entropy_fwd_kernel, config.forward, ("BV", "BT", "BK")),
            (logits_gradient_kernel, config.gradient, ("BV", "BT", "BK")),
            (grad_weight_kernel, config.weight, ("BV", "BC", "BK")),
            (grad_hidden_kernel, config.hidden, ("BT", "BC", "BK")),
            (combine_kernel, Tile(32, 0, 0, 1, 2), ("BT",)),
        ):
            flags = dict.fromkeys(("KEEP", "KEPT", "HAS_BIAS", "NEED_BIAS", "ADD", "SMOOTH"), True)
            flags["PRECISION"] = "ieee"
            flags |= zip(blocks, (tile.rows, tile.columns, tile.depth), strict=False)
            constants = {key: value for key, value in flags.items() if key in kernel.arg_names}
            signature = {
                key: types.get(key, "*" + name if key.startswith("p_") else "i32")
                for key in kernel.arg_names
                if key not in constants
            }
            if kernel is grad_hidden_kernel:
                signature["p_sum"] = "*fp32"
            aligned = tuple(key for key in ("T", "C", "stride", "chunk", "first") if key in signature)
            variants = [constants] if "KEPT" not in constants else [constants, constants | {"KEPT": False}]
            found += [
                Specimen(kernel, signature, variant, tile.num_warps, tile.num_stages, name, divisible_by_16=aligned)
                for variant in variants
            ]
    return found


SPECIMENS = _specimens()

"""Contrastive loss against momentum keys, with its gradients, in one sweep over the keys.

Online features u_i and momentum features v_i are rows of one matrix X (2 B, E). For each row the sweep accumulates, with the
running maximum of online softmax, the log-sum-exp of the logits x . k / temp and the expected key under their softmax. Then

    loss_i = lse(u_i) - u_i . t_i / temp,    d loss_i / d u_i = (expected(u_i) - t_i) / temp,
    t_i = alpha * expected(v_i) + (1 - alpha) * mean of the positive keys.

Per direction that is 16 B E (N + Q) FLOPs; the queue, E Q elements, is read from memory once and by the other row blocks from
the cache. Both products of a tile share the keys. The keys are split over programs; each split leaves its partial sums,
(2 B, E) fp32, and a second kernel merges them in fixed order. With `alpha` = 0 blocks of momentum rows end at once.
"""

from __future__ import annotations

import dataclasses

import torch
import triton
import triton.language as tl
from torch import Tensor

from blip_fast.kernels.aot import LIMITS, Specimen
from blip_fast.kernels.contrastive_positives import mean_positive_keys
from blip_fast.kernels.launch import multiprocessors, shared_memory

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def _rows(p_x, p_x_m, o_r, o_e, B, E, offset):
    """Rows of X, (BLOCK_R, len(o_e)): online features (B, E), then momentum features from row `offset` on, then zeros."""
    online, momentum, e_in = o_r < B, (o_r >= B) & (o_r < 2 * B), o_e < E
    b_u = tl.load(p_x + o_r.to(tl.int64)[:, None] * E + o_e, mask=online[:, None] & e_in, other=0.0)
    o_m = (o_r - B + offset).to(tl.int64)
    b_v = tl.load(p_x_m + o_m[:, None] * E + o_e, mask=momentum[:, None] & e_in, other=0.0)
    return tl.where(online[:, None], b_u, b_v)


@triton.jit
def _keys(p_key, stride_e, stride_j, o_e, o_j, E, count):
    o_key = o_e.to(tl.int64)[:, None] * stride_e + o_j.to(tl.int64)[None, :] * stride_j
    return tl.load(p_key + o_key, mask=(o_e < E)[:, None] & (o_j < count)[None, :], other=0.0)


@triton.jit
def _update(
    p_x, p_x_m, b_x, p_key, stride_e, stride_j, tile, count, scale, b_max, b_total, b_expected, B, E, offset,
    BLOCK_J: tl.constexpr, BLOCK_C: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One tile of keys; returns the statistics and the products x . k (BLOCK_R, BLOCK_J).

    Products in fp32 take E in pieces of BLOCK_C, read again from the cache, since all of it would not fit the registers.
    """
    BLOCK_R: tl.constexpr = b_expected.shape[0]
    BLOCK_E: tl.constexpr = b_expected.shape[1]
    o_e, o_j = tl.arange(0, BLOCK_E), tile * BLOCK_J + tl.arange(0, BLOCK_J)
    if BLOCK_C == BLOCK_E:
        b_key = _keys(p_key, stride_e, stride_j, o_e, o_j, E, count).to(p_x.dtype.element_ty)
        b_score = tl.dot(b_x, b_key, input_precision=PRECISION)
    else:
        o_r = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
        b_score = tl.zeros((BLOCK_R, BLOCK_J), tl.float32)
        for c in range(0, E, BLOCK_C):
            o_c = c + tl.arange(0, BLOCK_C)
            b_x_c = _rows(p_x, p_x_m, o_r, o_c, B, E, offset)
            b_key_c = _keys(p_key, stride_e, stride_j, o_c, o_j, E, count).to(p_x.dtype.element_ty)
            b_score = tl.dot(b_x_c, b_key_c, acc=b_score, input_precision=PRECISION)
        b_key = _keys(p_key, stride_e, stride_j, o_e, o_j, E, count).to(p_x.dtype.element_ty)
    b_masked = tl.where((o_j < count)[None, :], b_score * scale, float("-inf"))
    b_top = tl.maximum(b_max, tl.max(b_masked, axis=1))
    b_shift = tl.where(b_top == float("-inf"), 0.0, b_top)  # -inf - -inf would be NaN
    b_weight = tl.exp2(b_masked - b_shift[:, None])
    b_factor = tl.exp2(b_max - b_shift)
    b_total = b_total * b_factor + tl.sum(b_weight, axis=1)
    b_expected = tl.dot(
        b_weight.to(b_key.dtype), tl.trans(b_key), acc=b_expected * b_factor[:, None], input_precision=PRECISION
    )
    return b_top, b_total, b_expected, b_score


@triton.jit
def contrastive_sweep_kernel(
    p_image,  # (B, E)
    p_text,
    p_image_m,  # (N, E)
    p_text_m,
    p_image_queue,  # (E, Q)
    p_text_queue,
    p_temp,  # ()
    p_alpha,  # ()
    p_sim_i2t,  # out: (B, N)
    p_sim_t2i,
    p_max,  # out: (2, splits, 2 B), logits to base 2
    p_total,  # out: (2, splits, 2 B)
    p_expected,  # out: (2, splits, 2 B, E)
    B,
    N,
    Q,
    E,
    offset,
    splits,
    BLOCK_R: tl.constexpr,
    BLOCK_J: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_C: tl.constexpr,
    PRECISION: tl.constexpr,
):
    i_row, split, direction = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    if (i_row * BLOCK_R >= B) & (tl.load(p_alpha) == 0):
        return
    if direction == 0:
        p_x, p_x_m, p_batch, p_queue, p_sim = p_image, p_image_m, p_text_m, p_text_queue, p_sim_i2t
    else:
        p_x, p_x_m, p_batch, p_queue, p_sim = p_text, p_text_m, p_image_m, p_image_queue, p_sim_t2i
    o_r, o_e = i_row * BLOCK_R + tl.arange(0, BLOCK_R), tl.arange(0, BLOCK_E)
    b_x = _rows(p_x, p_x_m, o_r, o_e, B, E, offset) if BLOCK_C == BLOCK_E else 0
    temp = tl.load(p_temp)
    b_max = tl.full((BLOCK_R,), float("-inf"), tl.float32)
    b_total = tl.zeros((BLOCK_R,), tl.float32)
    b_expected = tl.zeros((BLOCK_R, BLOCK_E), tl.float32)

    batch_tiles = tl.cdiv(N, BLOCK_J)
    tiles = batch_tiles + tl.cdiv(Q, BLOCK_J)
    first, last = tiles * split // splits, tiles * (split + 1) // splits
    for tile in range(first, tl.minimum(last, batch_tiles)):
        b_max, b_total, b_expected, b_score = _update(
            p_x, p_x_m, b_x, p_batch, 1, E, tile, N, LOG2E / temp, b_max, b_total, b_expected, B, E, offset,
            BLOCK_J, BLOCK_C, PRECISION,
        )  # fmt: skip
        o_n = tile * BLOCK_J + tl.arange(0, BLOCK_J)
        mask = (o_r < B)[:, None] & (o_n < N)[None, :]
        tl.store(p_sim + o_r.to(tl.int64)[:, None] * N + o_n[None, :], b_score / temp, mask=mask)
    for tile in range(tl.maximum(first, batch_tiles) - batch_tiles, last - batch_tiles):
        b_max, b_total, b_expected, b_score = _update(
            p_x, p_x_m, b_x, p_queue, Q, 1, tile, Q, LOG2E / temp, b_max, b_total, b_expected, B, E, offset,
            BLOCK_J, BLOCK_C, PRECISION,
        )  # fmt: skip

    o_out = (direction * splits + split).to(tl.int64) * 2 * B + o_r
    tl.store(p_max + o_out, b_max, mask=o_r < 2 * B)
    tl.store(p_total + o_out, b_total, mask=o_r < 2 * B)
    tl.store(p_expected + o_out[:, None] * E + o_e, b_expected, mask=(o_r < 2 * B)[:, None] & (o_e < E))


@triton.jit
def _merge(p_max, p_total, p_expected, row, rows, splits, E, BLOCK_S: tl.constexpr, BLOCK_E: tl.constexpr):
    """Log-sum-exp to base 2 and expected key (BLOCK_E) of a row, over its splits."""
    o_e = tl.arange(0, BLOCK_E)
    top = tl.full((), float("-inf"), tl.float32)
    for s in range(0, splits, BLOCK_S):
        o_s = s + tl.arange(0, BLOCK_S)
        top = tl.maximum(top, tl.max(tl.load(p_max + o_s * rows + row, mask=o_s < splits, other=float("-inf")), axis=0))
    total = tl.zeros((), tl.float32)
    b_sum = tl.zeros((BLOCK_E,), tl.float32)
    for s in range(0, splits, BLOCK_S):
        o_s = s + tl.arange(0, BLOCK_S)
        o_row = (o_s * rows + row).to(tl.int64)
        b_factor = tl.exp2(tl.load(p_max + o_row, mask=o_s < splits, other=float("-inf")) - top)
        total += tl.sum(tl.load(p_total + o_row, mask=o_s < splits, other=0.0) * b_factor, axis=0)
        mask = (o_s < splits)[:, None] & (o_e < E)
        b_expected = tl.load(p_expected + o_row[:, None] * E + o_e, mask=mask, other=0.0)
        b_sum += tl.sum(b_expected * b_factor[:, None], axis=0)
    return top + tl.log2(total), b_sum / total


@triton.jit
def contrastive_finish_kernel(
    p_image,  # (B, E)
    p_text,
    p_image_m,  # (N, E)
    p_text_m,
    p_positive,  # (2, B, E): means of the positive keys, where HAS_IDS
    p_temp,
    p_alpha,
    p_max,  # (2, splits, 2 B)
    p_total,
    p_expected,  # (2, splits, 2 B, E)
    p_gradient_image,  # out: (B, E)
    p_gradient_text,
    p_row,  # out: (2, 2, B): loss of the row, and its part of the gradient of temp
    B,
    E,
    offset,
    splits,
    HAS_IDS: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    row, direction = tl.program_id(0).to(tl.int64), tl.program_id(1)
    o_e = tl.arange(0, BLOCK_E)
    e_in = o_e < E
    if direction == 0:
        p_x, p_batch, p_gradient = p_image, p_text_m, p_gradient_image
    else:
        p_x, p_batch, p_gradient = p_text, p_image_m, p_gradient_text
    start = direction.to(tl.int64) * splits * 2 * B
    p_max, p_total, p_expected = p_max + start, p_total + start, p_expected + start * E
    b_x = tl.load(p_x + row * E + o_e, mask=e_in, other=0.0).to(tl.float32)
    if HAS_IDS:
        b_target = tl.load(p_positive + (direction * B + row) * E + o_e, mask=e_in, other=0.0)
    else:
        b_target = tl.load(p_batch + (row + offset) * E + o_e, mask=e_in, other=0.0).to(tl.float32)
    temp, alpha = tl.load(p_temp), tl.load(p_alpha)
    if alpha != 0:
        _, b_expected_m = _merge(p_max, p_total, p_expected, B + row, 2 * B, splits, E, BLOCK_S, BLOCK_E)
        b_target = alpha * b_expected_m + (1 - alpha) * b_target
    lse, b_expected = _merge(p_max, p_total, p_expected, row, 2 * B, splits, E, BLOCK_S, BLOCK_E)
    loss = lse * LN2 - tl.sum(b_x * b_target, axis=0) / temp
    b_gradient = (b_expected - b_target) / (temp * 2 * B)
    tl.store(p_gradient + row * E + o_e, b_gradient, mask=e_in)
    tl.store(p_row + direction * B + row, loss)
    tl.store(p_row + (2 + direction) * B + row, -tl.sum(b_x * b_gradient, axis=0) / temp)


@triton.jit
def contrastive_reduce_kernel(
    p_row,  # (2, 2, B)
    p_loss,  # out: ()
    p_gradient_temp,  # out: ()
    B,
    BLOCK: tl.constexpr,
):
    b_loss = tl.zeros((BLOCK,), tl.float32)
    b_gradient = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, 2 * B, BLOCK):
        o = start + tl.arange(0, BLOCK)
        b_loss += tl.load(p_row + o, mask=o < 2 * B, other=0.0)
        b_gradient += tl.load(p_row + 2 * B + o, mask=o < 2 * B, other=0.0)
    tl.store(p_loss, tl.sum(b_loss, axis=0) / (2 * B))
    tl.store(p_gradient_temp, tl.sum(b_gradient, axis=0))


THREE_TILES = 160 * 1024  # bytes of shared memory that three tiles of an fp32 queue need at most


@dataclasses.dataclass(frozen=True)
class Config:
    """Tile sizes of the sweep for one shape."""

    block_r: int
    block_j: int
    block_e: int
    block_c: int
    precision: str
    num_warps: int
    num_stages: int
    splits: int


def config_for(
    batch: int,
    gathered: int,
    queued: int,
    embed: int,
    dtype: torch.dtype,
    queue_dtype: torch.dtype,
    processors: int,
    shared: int,
) -> Config:
    """Heuristic: the largest tiles that do not spill on sm_80 to sm_100, and splits that give each multiprocessor a program.

    16-bit features use tensor cores: accumulators (block_r, block_e) of at most 64 registers a thread, and three tiles of
    keys in flight, two where ``shared`` memory has no room for tiles of fp32. fp32 features use fp32 arithmetic, as tf32
    would be less exact than the reference; that needs more registers, and runs two programs at a time where there is room.
    """
    exact = dtype == torch.float32
    block_e = max(16, triton.next_power_of_2(embed))
    block_r = max(
        16, min(triton.next_power_of_2(2 * batch), (8192 if exact else 16384) // block_e, 32 if exact else 64)
    )
    block_j = max(16, min(64, 16384 // block_e) // (1 if block_r * block_e < 16384 and not exact else 2))
    tiles = triton.cdiv(gathered, block_j) + triton.cdiv(queued, block_j)
    programs = processors * 2 if exact else processors
    return Config(
        block_r=block_r,
        block_j=block_j,
        block_e=block_e,
        block_c=16 if exact else block_e,
        precision="ieee" if exact else "tf32",
        num_warps=8 if block_r * block_e >= 2048 else 4,
        num_stages=_stages(exact, queue_dtype, shared),
        splits=max(1, min(tiles, programs // (2 * triton.cdiv(2 * batch, block_r)))),
    )


def _stages(exact: bool, queue_dtype: torch.dtype, shared: int) -> int:
    """Tiles of keys in flight: as many as fit and let nothing spill, with Triton 3.6 and 3.8."""
    if queue_dtype != torch.float32:
        return 3
    if exact:
        return 1
    return 3 if shared >= THREE_TILES else 2


MERGE_SPLITS, REDUCE_BLOCK = 8, 1024


def contrastive_loss(
    image_feat: Tensor,
    text_feat: Tensor,
    image_feat_m: Tensor,
    text_feat_m: Tensor,
    image_queue: Tensor,
    text_queue: Tensor,
    temp: Tensor,
    alpha: Tensor,
    ids: Tensor | None,
    queue_ids: Tensor | None,
    offset: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """See `blip_fast.ops.contrastive_loss`; returns also the gradients of image_feat, text_feat and temp."""
    (batch, embed), gathered, queued = image_feat.shape, image_feat_m.shape[0], image_queue.shape[1]
    device, dtypes = image_feat.device, (image_feat.dtype, image_queue.dtype)
    c = config_for(batch, gathered, queued, embed, *dtypes, multiprocessors(device), shared_memory(device))

    def empty(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=device)

    online, momentum, queues = (image_feat, text_feat), (image_feat_m, text_feat_m), (image_queue, text_queue)
    sims, gradients = [empty(batch, gathered) for _ in range(2)], [empty(batch, embed) for _ in range(2)]
    maximum, total = empty(2, c.splits, 2 * batch), empty(2, c.splits, 2 * batch)
    expected = empty(2, c.splits, 2 * batch, embed)
    rows, loss, grad_temp = empty(2, 2, batch), empty(), empty()
    sizes = (batch, gathered, queued, embed, offset)
    contrastive_sweep_kernel[(triton.cdiv(2 * batch, c.block_r), c.splits, 2)](
        *online, *momentum, *queues, temp, alpha, *sims, maximum, total, expected, *sizes, c.splits,
        BLOCK_R=c.block_r, BLOCK_J=c.block_j, BLOCK_E=c.block_e, BLOCK_C=c.block_c,
        PRECISION=c.precision, num_warps=c.num_warps, num_stages=c.num_stages,
    )  # fmt: skip
    positive = maximum  # unread without ids
    if ids is not None and queue_ids is not None:
        positive = mean_positive_keys(momentum, queues, ids, queue_ids, batch, offset)
    contrastive_finish_kernel[(batch, 2)](
        *online, *momentum, positive, temp, alpha, maximum, total, expected, *gradients, rows, batch, embed, offset,
        c.splits, HAS_IDS=ids is not None, BLOCK_S=MERGE_SPLITS, BLOCK_E=c.block_e, num_warps=4,
    )  # fmt: skip
    contrastive_reduce_kernel[(1,)](rows, loss, grad_temp, batch, BLOCK=REDUCE_BLOCK, num_warps=4)
    return loss, sims[0], sims[1], gradients[0], gradients[1], grad_temp


DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
FEATURES = ("p_image", "p_text", "p_image_m", "p_text_m")
SIZES = dict.fromkeys(("B", "N", "Q", "E", "offset"), "i32")


def _floats(*names: str) -> dict[str, str]:
    return dict.fromkeys(names, "*fp32")


def _sweep_specimen(dtype: str, queue: str, batch: int, embed: int = 256, arch: int = 90) -> Specimen:
    shared = LIMITS[arch]["shared_per_block"]
    c = config_for(batch, batch, 57_600, embed, DTYPES[dtype], DTYPES[queue], 132, shared)
    inputs = dict.fromkeys(FEATURES, f"*{dtype}") | dict.fromkeys(("p_image_queue", "p_text_queue"), f"*{queue}")
    floats = _floats("p_temp", "p_alpha", "p_sim_i2t", "p_sim_t2i", "p_max", "p_total", "p_expected")
    blocks = {"BLOCK_R": c.block_r, "BLOCK_J": c.block_j, "BLOCK_E": c.block_e, "BLOCK_C": c.block_c}
    return Specimen(
        contrastive_sweep_kernel,
        {**inputs, **floats, **SIZES, "splits": "i32"},
        {**blocks, "PRECISION": c.precision},
        c.num_warps,
        c.num_stages,
        label=f"batch {batch}, E {embed}, features {dtype}, queue {queue}, stages {c.num_stages}",
        divisible_by_16=("Q", "E"),
    )


SPECIMENS = [
    *[_sweep_specimen("bf16", queue, batch) for queue in ("bf16", "fp32") for batch in (16, 75)],
    *[_sweep_specimen("fp32", queue, 75) for queue in ("bf16", "fp32")],
    *[_sweep_specimen("bf16", "fp32", batch, arch=89) for batch in (16, 75)],
    _sweep_specimen("bf16", "bf16", 75, embed=512),
    Specimen(
        contrastive_finish_kernel,
        {
            **dict.fromkeys(FEATURES, "*bf16"),
            **_floats(
                "p_positive",
                "p_temp",
                "p_alpha",
                "p_max",
                "p_total",
                "p_expected",
                "p_gradient_image",
                "p_gradient_text",
                "p_row",
            ),
            **dict.fromkeys(("B", "E", "offset", "splits"), "i32"),
        },
        {"HAS_IDS": False, "BLOCK_S": MERGE_SPLITS, "BLOCK_E": 256},
        4,
        divisible_by_16=("E",),
    ),
    Specimen(
        contrastive_reduce_kernel,
        {**_floats("p_row", "p_loss", "p_gradient_temp"), "B": "i32"},
        {"BLOCK": REDUCE_BLOCK},
        4,
    ),
]

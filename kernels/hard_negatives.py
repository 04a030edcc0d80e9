"""Hard negatives: one draw per row of two similarity matrices, ``P(j) ~ softmax(row)[j] + epsilon`` off the positives.

Reads the similarities three times (largest, sums, draw; twice from cache) and writes one index per row: bound by launch
and latency for a batch of pairs, 4 bytes of memory traffic per similarity for large ones. Weights are 64-bit fixed
point, so that sums do not depend on their order; the functions mirror `blip_fast.reference.hard_negatives`.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from blip_fast.kernels.aot import Specimen
from blip_fast.kernels.philox import philox
from blip_fast.reference.hard_negatives import fraction_bits

MAX_BLOCK = 1024
NUM_WARPS = 8


@triton.jit
def _fixed_point_exp(t, drop):
    """exp(t) * 2**(40 - drop) for t <= 0; 0 where t <= -32 or NaN."""
    t = tl.where(t > -32.0, t, -32.0)
    base_2 = (t * -16777216.0).to(tl.int64) * 1549082005 >> 30
    fraction = -base_2 & 0xFFFFFF
    power = 1338725 + (fraction * 232067 >> 24)
    power = 10388937 + (power * fraction >> 24)
    power = 59576866 + (power * fraction >> 24)
    power = 257944253 + (power * fraction >> 24)
    power = 744260972 + (power * fraction >> 24)
    power = 1073741824 + (power * fraction >> 24)
    return (power << 10 >> drop) >> (base_2 + 0xFFFFFF >> 24)


@triton.jit
def _random_below(total, x, y):
    """total * r >> 62 for a 62-bit number r of two random words."""
    high = (x >> 1).to(tl.int64)
    low = (y >> 1).to(tl.int64)
    total_high = total >> 31
    total_low = total & 0x7FFFFFFF
    return total_high * high + ((total_high * low + total_low * high + (total_low * low >> 31)) >> 31)


@triton.jit
def _load(p_sim, p_ids, own, start, N, HAS_IDS: tl.constexpr, HAS_EPSILON: tl.constexpr, BLOCK: tl.constexpr):
    """A tile of columns: similarities (-inf where they do not count), the admissible ones, those that are not the own."""
    o = start + tl.arange(0, BLOCK)
    inside = o < N
    b_other = (o != own) & inside
    b_admissible = b_other
    if HAS_IDS:
        b_admissible = (tl.load(p_ids + o, mask=inside, other=0) != tl.load(p_ids + own)) & inside
    # Without epsilon the softmax runs over the admissible columns, so that a dominant positive does not hide them.
    b_sim = tl.load(p_sim + o, mask=inside if HAS_EPSILON else b_admissible, other=float("-inf")).to(tl.float32)
    return b_sim, b_admissible, b_other


@triton.jit
def hard_negatives_kernel(
    p_i2t,  # (B, N)
    p_t2i,  # (B, N)
    p_ids,  # (N,) or p_i2t
    p_seed,  # (1,)
    p_offset,  # (1,)
    p_image_for_text,  # (B,)
    p_text_for_image,  # (B,)
    N,
    row_offset,
    epsilon,
    drop,  # 40 - bits after the point of the weights
    HAS_IDS: tl.constexpr,
    HAS_EPSILON: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row, direction = tl.program_id(0), tl.program_id(1)
    own = row + row_offset
    p_sim = (p_t2i if direction == 0 else p_i2t) + row.to(tl.int64) * N

    largest = float("-inf")
    undefined = 0  # NaN, which the maximum ignores; where it is infinite all differences are NaN or -inf, and weigh 0
    for start in range(0, N, BLOCK):
        b_sim, _, _ = _load(p_sim, p_ids, own, start, N, HAS_IDS, HAS_EPSILON, BLOCK)
        undefined += tl.sum((b_sim != b_sim).to(tl.int32), 0)
        largest = tl.maximum(largest, tl.max(tl.where(b_sim == b_sim, b_sim, float("-inf")), 0))

    everything = tl.zeros((), tl.int64)
    weight = tl.zeros((), tl.int64)
    admissible = tl.zeros((), tl.int64)
    for start in range(0, N, BLOCK):
        b_sim, b_admissible, _ = _load(p_sim, p_ids, own, start, N, HAS_IDS, HAS_EPSILON, BLOCK)
        b_exp = tl.where(undefined == 0, _fixed_point_exp(b_sim - largest, drop), 0)
        everything += tl.sum(b_exp, 0)
        weight += tl.sum(tl.where(b_admissible, b_exp, 0), 0)
        admissible += tl.sum(b_admissible.to(tl.int64), 0)
    share = (everything.to(tl.float32) * epsilon).to(tl.int64)
    total = weight + admissible * share
    # Without weights: equal ones on the admissible columns, or else on all but the own.
    weighted = total > 0
    total = tl.where(weighted, total, tl.where(admissible > 0, admissible, N - 1))

    x, y, _, _ = philox(tl.load(p_seed), own, direction, tl.load(p_offset), tl.load(p_offset) >> 32)
    threshold = _random_below(total, x, y)
    before = tl.zeros((), tl.int64)
    pick = tl.zeros((), tl.int64)
    for start in range(0, N, BLOCK):
        b_sim, b_admissible, b_other = _load(p_sim, p_ids, own, start, N, HAS_IDS, HAS_EPSILON, BLOCK)
        b_weight = tl.where(weighted, _fixed_point_exp(b_sim - largest, drop) + share, 1)
        b_weight = tl.where(tl.where(admissible > 0, b_admissible, b_other), b_weight, 0)
        b_sum = before + tl.cumsum(b_weight, 0)
        pick += tl.sum((b_sum <= threshold).to(tl.int64), 0)
        before += tl.sum(b_weight, 0)
    pick = tl.where(total > 0, pick, own)
    tl.store((p_image_for_text if direction == 0 else p_text_for_image) + row, pick)


def mine_hard_negatives(
    sim_i2t: Tensor, sim_t2i: Tensor, ids: Tensor | None, epsilon: float, seed: Tensor, offset: Tensor, row_offset: int
) -> tuple[Tensor, Tensor]:
    """See `blip_fast.ops.mine_hard_negatives`."""
    rows, columns = sim_i2t.shape
    picks = seed.new_empty(rows), seed.new_empty(rows)
    if rows:
        hard_negatives_kernel[(rows, 2)](
            sim_i2t,
            sim_t2i,
            sim_i2t if ids is None else ids,
            seed,
            offset,
            *picks,
            columns,
            row_offset,
            epsilon,
            40 - fraction_bits(columns, epsilon),
            HAS_IDS=ids is not None,
            HAS_EPSILON=epsilon > 0,
            BLOCK=min(MAX_BLOCK, triton.next_power_of_2(columns)),
            num_warps=NUM_WARPS,
        )
    return picks


SPECIMENS = [
    Specimen(
        hard_negatives_kernel,
        {"p_i2t": sim, "p_t2i": sim, "p_ids": "*i64", "p_seed": "*i64", "p_offset": "*i64"}
        | {"p_image_for_text": "*i64", "p_text_for_image": "*i64"}
        | {"N": "i32", "row_offset": "i32", "epsilon": "fp32", "drop": "i32"},
        {"HAS_IDS": has_ids, "HAS_EPSILON": not has_ids, "BLOCK": MAX_BLOCK},
        NUM_WARPS,
        label=f"similarities {sim[1:]}{', ids' if has_ids else ''}",
    )
    for sim in ("*fp32", "*bf16")
    for has_ids in (False, True)
]

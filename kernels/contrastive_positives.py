"""Mean of the keys that share a row's id, for the targets of the contrastive loss in retrieval fine-tuning.

Every row compares its id with all N + Q ids, 8 bytes each and read from the cache by all rows but the first, and reads only
the keys that match, which are few. Nothing else of the queue is touched.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from blip_fast.kernels.aot import Specimen

ID_BLOCK, KEY_BLOCK = 4096, 16


@triton.jit
def _positive_sums(
    p_key,
    stride_e,
    stride_j,
    p_ids,
    own,
    count,
    b_sum,
    matches,
    E,
    BLOCK_I: tl.constexpr,
    BLOCK_J: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    """Adds the keys whose id is `own` to b_sum (BLOCK_E). Blocks of ids without a match, nearly all, are only compared."""
    o_e = tl.arange(0, BLOCK_E)
    for start in range(0, count, BLOCK_I):
        o_i = start + tl.arange(0, BLOCK_I)
        found = tl.sum((tl.load(p_ids + o_i, mask=o_i < count, other=own + 1) == own).to(tl.int32), axis=0)
        matches += found
        if found > 0:
            for j in range(start, tl.minimum(start + BLOCK_I, count), BLOCK_J):
                o_j = j + tl.arange(0, BLOCK_J)
                equal = tl.load(p_ids + o_j, mask=o_j < count, other=own + 1) == own
                o_key = o_e.to(tl.int64)[:, None] * stride_e + o_j.to(tl.int64)[None, :] * stride_j
                b_key = tl.load(p_key + o_key, mask=equal[None, :] & (o_e < E)[:, None], other=0.0)
                b_sum += tl.sum(b_key.to(tl.float32), axis=1)
    return b_sum, matches


@triton.jit
def contrastive_positives_kernel(
    p_image_m,  # (N, E)
    p_text_m,
    p_image_queue,  # (E, Q)
    p_text_queue,
    p_ids,  # (N,) int64
    p_queue_ids,  # (Q,) int64
    p_positive,  # out: (2, B, E)
    B,
    N,
    Q,
    E,
    offset,
    BLOCK_I: tl.constexpr,
    BLOCK_J: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    row, direction = tl.program_id(0).to(tl.int64), tl.program_id(1)
    if direction == 0:
        p_batch, p_queue = p_text_m, p_text_queue
    else:
        p_batch, p_queue = p_image_m, p_image_queue
    own = tl.load(p_ids + offset + row)
    b_sum = tl.zeros((BLOCK_E,), tl.float32)
    matches = tl.full((), 0, tl.int32)
    b_sum, matches = _positive_sums(p_batch, 1, E, p_ids, own, N, b_sum, matches, E, BLOCK_I, BLOCK_J, BLOCK_E)
    b_sum, matches = _positive_sums(p_queue, Q, 1, p_queue_ids, own, Q, b_sum, matches, E, BLOCK_I, BLOCK_J, BLOCK_E)
    o_e = tl.arange(0, BLOCK_E)
    tl.store(p_positive + (direction * B + row) * E + o_e, b_sum / matches.to(tl.float32), mask=o_e < E)


def mean_positive_keys(
    momentum: tuple[Tensor, Tensor],
    queues: tuple[Tensor, Tensor],
    ids: Tensor,
    queue_ids: Tensor,
    batch: int,
    offset: int,
) -> Tensor:
    """Means (2, B, E) of the text keys that share an image's id, and of the image keys.

    Args:
        momentum: image and text features of the batch, (N, E).
        queues: of images and texts, (E, Q).
        ids, queue_ids: (N,) and (Q,) int64. Row i of B is number offset + i of the batch, so that it has one positive at least.
    """
    gathered, embed = momentum[0].shape
    positive = torch.empty((2, batch, embed), dtype=torch.float32, device=ids.device)
    contrastive_positives_kernel[(batch, 2)](
        *momentum, *queues, ids, queue_ids, positive, batch, gathered, queue_ids.numel(), embed, offset,
        BLOCK_I=ID_BLOCK, BLOCK_J=KEY_BLOCK, BLOCK_E=max(16, triton.next_power_of_2(embed)), num_warps=4,
    )  # fmt: skip
    return positive


SPECIMENS = [
    Specimen(
        contrastive_positives_kernel,
        {
            **dict.fromkeys(("p_image_m", "p_text_m"), "*bf16"),
            **dict.fromkeys(("p_image_queue", "p_text_queue", "p_positive"), "*fp32"),
            **dict.fromkeys(("p_ids", "p_queue_ids"), "*i64"),
            **dict.fromkeys(("B", "N", "Q", "E", "offset"), "i32"),
        },
        {"BLOCK_I": ID_BLOCK, "BLOCK_J": KEY_BLOCK, "BLOCK_E": 256},
        4,
        divisible_by_16=("Q", "E"),
    )
]

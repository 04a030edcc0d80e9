"""Hard negatives for image-text matching, drawn on the device (ALBEF section 3.3; BLIP section 3.2).

There is no CUDA C++ for it: the job is one launch of a few microseconds, whose time is that of the launch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from blip_fast.ops.registry import Operation
from blip_fast.outputs import Negatives
from blip_fast.reference import hard_negatives as reference
from blip_fast.reference.philox import word_on

MAX_COLUMNS = 2**20


def mine_hard_negatives(
    sim_i2t: Tensor,
    sim_t2i: Tensor,
    ids: Tensor | None = None,
    epsilon: float = 1e-4,
    *,
    seed: int | Tensor,
    offset: int | Tensor = 0,
    row_offset: int = 0,
) -> Negatives:
    """Draw for every text a wrong image, and for every image a wrong text, in proportion to softmax + epsilon.

    Row b draws one column j with probability in proportion to ``softmax(row)[j] + epsilon``, zero where row and column
    belong together: the row's own column, ``row_offset + b``, and those of equal id. Pre-training as published is
    ``ids=None``, retrieval fine-tuning is ``ids`` with ``epsilon=0``. With negatives from all ranks, rows are the local
    batch, columns the gathered one, and ``row_offset`` the position of the former in the latter.

    Picks depend on seed, offset, direction and the global row (``row_offset + b``) alone, by Philox4x32-10, and weights
    are summed in fixed point: every backend makes the same picks, and so does a batch split over ranks. Nothing is read
    back to the host; no gradient is recorded. A call with the same seed and offset repeats its picks, so the caller
    advances ``offset`` by 1 from step to step.

    A row whose weights are all zero (equal ids), or whose softmax is undefined (NaN or +inf among its similarities),
    draws uniformly from the columns of other ids; where there are none, from all but its own; a single column, itself.

    Args:
        sim_i2t, sim_t2i: (B, N) similarities over temperature, 1 <= N <= 2**20; float32, bfloat16 or float16 (float64:
            reference backend, rounded to float32).
        ids: (N,) int64 ids of the columns, or None if all differ.
        epsilon: in [0, 1]; keeps very dissimilar pairs possible.
        seed: 64 bits, an int or an int64 tensor of one element on the device of the similarities.
        offset: number of the draw, as ``seed``. Tensors are what a CUDA graph needs.
        row_offset: column of the first row's own pair; ``row_offset + B <= N``.

    Returns:
        ``Negatives(image_for_text, text_for_image)``: (B,) int64 columns each, drawn from sim_t2i and from sim_i2t.

    Raises:
        ValueError: shapes, dtypes, devices, epsilon or row_offset do not fit.
    """
    _check(sim_i2t, sim_t2i, ids, epsilon, row_offset)
    seed, offset = word_on("seed", seed, sim_i2t.device), word_on("offset", offset, sim_i2t.device)
    with torch.no_grad():
        sims = sim_i2t.contiguous(), sim_t2i.contiguous()
        ids = None if ids is None else ids.contiguous()
        return Negatives(*_operation.call(*sims, ids, epsilon, seed, offset, row_offset))


def _check(sim_i2t: Tensor, sim_t2i: Tensor, ids: Tensor | None, epsilon: float, row_offset: int) -> None:
    if sim_i2t.dim() != 2 or not 1 <= sim_i2t.shape[1] <= MAX_COLUMNS:
        raise ValueError(f"sim_i2t has shape {tuple(sim_i2t.shape)}; expected (B, N) with 1 <= N <= {MAX_COLUMNS}")
    if sim_t2i.shape != sim_i2t.shape:
        raise ValueError(f"sim_t2i has shape {tuple(sim_t2i.shape)}; expected that of sim_i2t, {tuple(sim_i2t.shape)}")
    if not sim_i2t.is_floating_point() or sim_t2i.dtype != sim_i2t.dtype:
        raise ValueError(f"sim_i2t is {sim_i2t.dtype} and sim_t2i {sim_t2i.dtype}; expected one floating-point dtype")
    rows, columns = sim_i2t.shape
    if ids is not None and (ids.shape != (columns,) or ids.dtype != torch.int64):
        raise ValueError(f"ids is {ids.dtype} of shape {tuple(ids.shape)}; expected int64 of shape ({columns},)")
    if sim_t2i.device != sim_i2t.device or (ids is not None and ids.device != sim_i2t.device):
        raise ValueError(f"sim_t2i or ids is on another device than sim_i2t; expected {sim_i2t.device}")
    if not 0.0 <= epsilon <= 1.0:
        raise ValueError(f"epsilon is {epsilon}; expected a number in [0, 1]")
    if not 0 <= row_offset <= columns - rows:
        raise ValueError(f"row_offset is {row_offset} for {rows} rows; expected 0 to {columns} columns - {rows}")


def _fake(
    sim_i2t: Tensor, sim_t2i: Tensor, ids: Tensor | None, epsilon: float, seed: Tensor, offset: Tensor, row_offset: int
) -> tuple[Tensor, Tensor]:
    rows = sim_i2t.shape[0]
    return sim_t2i.new_empty(rows, dtype=torch.int64), sim_i2t.new_empty(rows, dtype=torch.int64)


_operation = Operation(
    "mine_hard_negatives(Tensor sim_i2t, Tensor sim_t2i, Tensor? ids, float epsilon, Tensor seed, Tensor offset, "
    "int row_offset) -> (Tensor, Tensor)",
    _fake,
)
_operation.add_reference(reference.draw)
_operation.add_native("cpu")
_operation.add_triton("hard_negatives:mine_hard_negatives")
_operation.add_flops(lambda *shapes, **options: 0)  # by the counter's convention only matrix products count

"""Enqueue of momentum features into the negatives' queue (MoCo, ALBEF; BLIP section 3.2), without host synchronisation."""

from __future__ import annotations

import torch
from torch import Tensor

from blip_fast.ops.registry import Operation
from blip_fast.reference import enqueue as reference


def enqueue_(queue: Tensor, features: Tensor, pointer: Tensor) -> None:
    """Write a batch of features into a ring buffer in place: ``queue[:, (pointer + i) % Q] = features[i]``.

    The pointer stays on the device and is advanced by N modulo Q. Q need not be a multiple of N; where N > Q only the last
    Q rows remain, as if rows were written one after the other. No gradient is recorded.

    Args:
        queue: (E, Q), contiguous; float32, bfloat16, float16 or int64 (queues of ids).
        features: (N, E) on the same device; floating point for a floating-point queue (rounded to its dtype), else int64.
        pointer: int64 tensor with one element in [0, Q), on the same device: the next column to write.

    Raises:
        ValueError: shapes, dtypes, devices or layout do not fit.
    """
    _check(queue, features, pointer)
    if features.shape[0]:
        with torch.no_grad():
            _operation.call(queue, features.contiguous(), pointer)


def _check(queue: Tensor, features: Tensor, pointer: Tensor) -> None:
    if queue.dim() != 2 or queue.shape[1] == 0 or not queue.is_contiguous():
        raise ValueError(f"queue has shape {tuple(queue.shape)}; expected a contiguous (E, Q) tensor with Q >= 1")
    if features.dim() != 2 or features.shape[1] != queue.shape[0]:
        raise ValueError(f"features has shape {tuple(features.shape)}; expected (N, {queue.shape[0]})")
    if not queue.is_floating_point() and queue.dtype != torch.int64:
        raise ValueError(f"queue is {queue.dtype}; expected floating point or int64")
    if features.dtype != torch.int64 if queue.dtype == torch.int64 else not features.is_floating_point():
        expected = "int64" if queue.dtype == torch.int64 else "floating point"
        raise ValueError(f"features is {features.dtype}; expected {expected}, as the queue is {queue.dtype}")
    if pointer.numel() != 1 or pointer.dtype != torch.int64:
        raise ValueError(f"pointer is {pointer.dtype} of {pointer.numel()} elements; expected one int64 element")
    if not queue.device == features.device == pointer.device:
        raise ValueError(
            f"queue, features and pointer are on {queue.device}, {features.device} and {pointer.device}; expected one device"
        )


def _fake(queue: Tensor, features: Tensor, pointer: Tensor) -> None:
    return None


_operation = Operation("enqueue_(Tensor(a!) queue, Tensor features, Tensor(b!) pointer) -> ()", _fake)
_operation.add_reference(reference.enqueue_)
_operation.add_native("cpu")
_operation.add_triton("enqueue:enqueue_")
_operation.add_native("cuda")

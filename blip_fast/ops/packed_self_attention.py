"""Self-attention of packed texts, bidirectional or causal: no padding is computed or copied.

There is no CUDA C++ for it: two matrix products with a softmax between them, which Triton maps to tensor cores.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from blip_fast.ops.cross_attention import MAX_HEAD_SIZE
from blip_fast.ops.registry import Operation
from blip_fast.reference.packed_self_attention import backward as reference_backward
from blip_fast.reference.packed_self_attention import forward as reference_forward
from blip_fast.reference.philox import dropout_state


def packed_self_attention(
    query: Tensor,
    key: Tensor | None,
    value: Tensor | None,
    cu_seqlens: Tensor,
    max_length: int,
    causal: bool = False,
    dropout_p: float = 0.0,
    scale: float | None = None,
    seed: Tensor | int | None = None,
    offset: Tensor | int = 0,
) -> Tensor:
    """Softmax attention of every token to the tokens of its own text ("Attention is all you need", equation 1).

    The self-attention of BLIP's text encoder, and with ``causal`` of its decoder (arXiv 2201.12086, figure 2), without the
    copies to and from a padded form. Differentiable in query, key and value, in a fixed order of sums. Nothing waits for the
    device. Under autocast, query, key and value are cast to its dtype; softmax statistics are fp32.

    Rows past the last text give 0, and gradient 0.

    Args:
        query: (T, H, D), the tokens of S texts one after another; D <= 128; float32, bfloat16 or float16 (float64:
            reference). Any strides as long as the last dimension is contiguous. Or, with ``key`` and ``value`` None,
            (T, 3, H, D): query, key and value together, whose gradient comes back as one tensor too. May be longer than the
            texts together: its capacity.
        key: (T, H, D) as query, or None.
        value: (T, H, D) as query, or None.
        cu_seqlens: (S + 1,) int32 or int64: text s holds rows cu_seqlens[s] to cu_seqlens[s + 1]; starts at 0.
        max_length: no text has more tokens; the launch on a GPU has room for so many.
        causal: tokens see themselves and earlier ones only.
        dropout_p: dropout probability of attention weights, in [0, 1). The mask depends on seed, offset, text, head, and the
            positions of query and key in the text alone, as in `cross_attention`. Survivors are scaled by 1 / (1 - dropout_p).
        scale: factor of the scores, positive; None: D ** -0.5.
        seed: 64-bit key of dropout, an int or an int64 tensor with one element; None: drawn from the device's generator.
        offset: an int or an int64 tensor with one element, of which the low 32 bits count: tells layers and steps apart.

    Returns:
        (T, H, D), dtype of the query.

    Raises:
        ValueError: shapes, dtypes, devices or strides do not fit, dropout_p is outside [0, 1), max_length is negative, or
            scale is not positive.
    """
    _check(query, key, value, cu_seqlens, max_length)
    scale = query.shape[-1] ** -0.5 if scale is None else float(scale)
    if not scale > 0:
        raise ValueError(f"scale is {scale}; expected a positive number")
    rng = dropout_state(dropout_p, seed, offset, query.device)
    options = (max_length, causal, float(dropout_p), scale)
    return _operation.call(query, key, value, cu_seqlens.to(torch.int32).contiguous(), *rng, *options)[0]


def _check(query: Tensor, key: Tensor | None, value: Tensor | None, cu_seqlens: Tensor, max_length: int) -> None:
    if (key is None) != (value is None):
        raise ValueError("one of key and value is None; expected both, or none with query (T, 3, H, D)")
    expected = "(T, H, D)" if key is not None else "(T, 3, H, D)"
    fits = query.dim() == 3 if key is not None else query.dim() == 4 and query.shape[1] == 3
    if not fits or not 1 <= query.shape[-1] <= MAX_HEAD_SIZE or not query.is_floating_point():
        raise ValueError(
            f"query is {query.dtype} of shape {tuple(query.shape)}; expected floating point {expected}, D <= {MAX_HEAD_SIZE}"
        )
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        if tensor is None:
            continue
        if tensor.shape != query.shape or tensor.dtype != query.dtype or tensor.device != query.device:
            raise ValueError(
                f"{name} is {tensor.dtype} of shape {tuple(tensor.shape)} on {tensor.device}; "
                f"expected {query.dtype} of shape {tuple(query.shape)} on {query.device} as query"
            )
        if tensor.stride(-1) != 1 and tensor.shape[-1] > 1:
            raise ValueError(f"{name} has stride {tensor.stride(-1)} in its last dimension; expected 1")
    if cu_seqlens.dim() != 1 or cu_seqlens.shape[0] < 1 or cu_seqlens.dtype not in (torch.int32, torch.int64):
        raise ValueError(
            f"cu_seqlens is {cu_seqlens.dtype} of shape {tuple(cu_seqlens.shape)}; expected int32 or int64 of shape (S + 1,)"
        )
    if cu_seqlens.device != query.device:
        raise ValueError(f"cu_seqlens is on {cu_seqlens.device}; expected {query.device} as query")
    if max_length < 0:
        raise ValueError(f"max_length is {max_length}; expected the greatest length of a text")


def _fake(query: Tensor, key: Tensor | None, *args: Any) -> tuple[Tensor, Tensor]:
    shape = (query.shape[0], *query.shape[-2:])
    dtype = torch.promote_types(query.dtype, torch.float32)
    return query.new_empty(shape), query.new_empty((*shape[:2], 2), dtype=dtype)


def _fake_backward(grad_out: Tensor, query: Tensor, key: Tensor | None, *args: Any) -> Tensor:
    return query.new_empty(query.shape) if key is None else query.new_empty(3, *query.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.max_length, ctx.causal, ctx.dropout_p, ctx.scale = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*tensors, *output)


def _backward(ctx: Any, grad_out: Tensor, _: Tensor) -> tuple[Any, ...]:
    query, key, value, cu_seqlens, seed, offset, out, statistics = ctx.saved_tensors
    gradient = _backward_operation.call(
        grad_out.contiguous(),
        query,
        key,
        value,
        out,
        statistics,
        cu_seqlens,
        seed,
        offset,
        ctx.max_length,
        ctx.causal,
        ctx.dropout_p,
        ctx.scale,
    )
    gradients = (gradient, None, None) if key is None else gradient.unbind(0)
    return (*gradients, None, None, None, None, None, None, None)


def _flops(
    query: Any,
    key: Any,
    value: Any,
    cu_seqlens: Any,
    seed: Any,
    offset: Any,
    max_length: int,
    *args: Any,
    **kwargs: Any,
) -> int:
    """As if every text had ``max_length`` tokens, or as many as there is room for: shapes alone tell no more."""
    return 4 * query[0] * query[-2] * query[-1] * min(max_length, query[0])


def _backward_flops(
    grad_out: Any,
    query: Any,
    key: Any,
    value: Any,
    out: Any,
    statistics: Any,
    cu_seqlens: Any,
    seed: Any,
    offset: Any,
    max_length: int,
    *args: Any,
    **kwargs: Any,
) -> int:
    return 10 * query[0] * query[-2] * query[-1] * min(max_length, query[0])


_COMMON = (
    "Tensor cu_seqlens, Tensor? seed, Tensor? offset, SymInt max_length, bool causal, float dropout_p, float scale) -> "
)
_operation = Operation(
    f"packed_self_attention(Tensor query, Tensor? key, Tensor? value, {_COMMON}(Tensor, Tensor)", _fake
)
_operation.add_reference(reference_forward)
_operation.add_native("cpu")
_operation.add_triton("packed_self_attention:packed_self_attention")
_operation.add_autograd(_backward, _setup_context)
_operation.add_autocast()
_operation.add_flops(_flops)

_backward_operation = Operation(
    "packed_self_attention_backward(Tensor grad_out, Tensor query, Tensor? key, Tensor? value, Tensor out, "
    f"Tensor statistics, {_COMMON}Tensor",
    _fake_backward,
)
_backward_operation.add_reference(reference_backward)
_backward_operation.add_native("cpu")
_backward_operation.add_triton("packed_self_attention:packed_self_attention_backward")
_backward_operation.add_flops(_backward_flops)

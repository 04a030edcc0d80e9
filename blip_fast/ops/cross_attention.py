"""Cross-attention of packed texts to images whose keys and values exist once, however many texts share an image.

There is no CUDA C++ for it: two matrix products with a softmax between them, which Triton maps to tensor cores.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from blip_fast.ops.registry import Operation
from blip_fast.reference.cross_attention import backward as reference_backward
from blip_fast.reference.cross_attention import forward as reference_forward
from blip_fast.reference.philox import dropout_state
from blip_fast.reference.row_groups import RowGroups, group_rows, tile_rows

MAX_HEAD_SIZE = 128


def cross_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor | None,
    cu_seqlens: Tensor,
    image_of_text: Tensor,
    image_lengths: Tensor | None = None,
    dropout_p: float = 0.0,
    scale: float | None = None,
    seed: Tensor | int | None = None,
    offset: Tensor | int = 0,
    groups: RowGroups | None = None,
) -> Tensor:
    """Softmax attention of every text row to the tokens of its text's image ("Attention is all you need", equation 1).

    BLIP's image-grounded text encoder and decoder (arXiv 2201.12086, figure 2): positives, negatives and the language-model
    pass go through one call, and keys and values are projected and read once per image. Differentiable in query, key and value;
    gradients of keys and values are sums over an image's texts, in a fixed order. Nothing waits for the device. Under
    autocast, query, key and value are cast to its dtype; softmax statistics are fp32.

    Rows that attend to nothing (past the last text, of a text whose image is outside [0, B), or of an image of length 0)
    give 0, and gradient 0. Keys and values past ``image_lengths`` are not read, and get gradient 0.

    Args:
        query: (T, H, D), the rows of S texts one after another; D <= 128; float32, bfloat16 or float16 (float64: reference).
            May be longer than the texts together: its capacity.
        key: (B, L, H, D), dtype of the query; any strides as long as the last dimension is contiguous, so that views of a fused
            projection need no copy. Or, with ``value=None``, (B, L, 2, H, D): keys and values together; then their gradient
            comes back as one tensor, without the copies that autograd makes for views.
        value: (B, L, H, D) as key, or None.
        cu_seqlens: (S + 1,) int32 or int64: text s holds rows cu_seqlens[s] to cu_seqlens[s + 1]; starts at 0.
        image_of_text: (S,) int32 or int64 in [0, B), in any order; images may have several texts or none.
        image_lengths: (B,) int32 or int64: tokens of each image, <= L; None: all L.
        dropout_p: dropout probability of attention weights, in [0, 1). The mask depends on seed, offset, text, head, position
            in the text and key alone; see `blip_fast.reference.cross_attention.keep_mask`. Survivors are scaled by
            1 / (1 - dropout_p).
        scale: factor of the scores, positive; None: D ** -0.5.
        seed: 64-bit key of dropout, an int or an int64 tensor with one element; None: drawn from the device's generator.
        offset: an int or an int64 tensor with one element, of which the low 32 bits count: tells layers and steps apart.
        groups: `group_rows(cu_seqlens, image_of_text, T, B)`, when several calls share a batch; None: made here. Their sizes
            are checked, not what they say.

    Returns:
        (T, H, D), dtype of the query.

    Raises:
        ValueError: shapes, dtypes, devices or strides do not fit, dropout_p is outside [0, 1), or scale is not positive.
    """
    _check(query, key, value, image_lengths)
    _check_texts(query, cu_seqlens, image_of_text)
    if groups is None:
        groups = group_rows(cu_seqlens, image_of_text, query.shape[0], key.shape[0])
    check_groups(groups, query, key)
    return _attend(query, key, value, groups, image_lengths, dropout_p, scale, seed, offset)


def cross_attention_padded(
    query: Tensor,
    key: Tensor,
    value: Tensor | None,
    mask: Tensor | None = None,
    image_of_text: Tensor | None = None,
    image_lengths: Tensor | None = None,
    dropout_p: float = 0.0,
    scale: float | None = None,
    seed: Tensor | int | None = None,
    offset: Tensor | int = 0,
) -> Tensor:
    """`cross_attention` for texts that are padded to one length: padding costs no attention and gives 0.

    Args:
        query: (S, N, H, D).
        key, value, image_lengths, dropout_p, scale, seed, offset: as for `cross_attention`.
        mask: (S, N), bool or 0/1 integers: which tokens are real; None: all.
        image_of_text: (S,) int32 or int64; None: text s belongs to image s, and S == B.

    Returns:
        (S, N, H, D), dtype of the query.

    Raises:
        ValueError: shapes, dtypes, devices or strides do not fit, dropout_p is outside [0, 1), or scale is not positive.
    """
    if query.dim() != 4:
        raise ValueError(f"query has shape {tuple(query.shape)}; expected (S, N, H, D)")
    texts, longest = query.shape[:2]
    if mask is not None and mask.shape != query.shape[:2]:
        raise ValueError(f"mask has shape {tuple(mask.shape)}; expected {tuple(query.shape[:2])} as query")
    if image_of_text is None and texts != key.shape[0]:
        raise ValueError(f"image_of_text is None for {texts} texts and {key.shape[0]} images; expected equal numbers")
    cu_seqlens = torch.arange(texts + 1, device=query.device, dtype=torch.int32) * longest
    if image_of_text is None:
        image_of_text = torch.arange(texts, device=query.device, dtype=torch.int32)
    rows = query.flatten(0, 1)
    _check(rows, key, value, image_lengths)
    _check_texts(rows, cu_seqlens, image_of_text)
    keep = None if mask is None else mask.flatten().bool()
    groups = group_rows(cu_seqlens, image_of_text, rows.shape[0], key.shape[0], keep)
    return _attend(rows, key, value, groups, image_lengths, dropout_p, scale, seed, offset).view(query.shape)


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor | None,
    groups: RowGroups,
    image_lengths: Tensor | None,
    dropout_p: float,
    scale: float | None,
    seed: Tensor | int | None,
    offset: Tensor | int,
) -> Tensor:
    scale = query.shape[-1] ** -0.5 if scale is None else float(scale)
    if not scale > 0:
        raise ValueError(f"scale is {scale}; expected a positive number")
    lengths = None if image_lengths is None else image_lengths.to(torch.int32).contiguous()
    rng = dropout_state(dropout_p, seed, offset, query.device)
    tile = tile_rows(query.shape[0], key.shape[0])
    return _operation.call(query, key, value, list(groups), lengths, *rng, float(dropout_p), scale, tile)[0]


def _check(query: Tensor, key: Tensor, value: Tensor | None, image_lengths: Tensor | None) -> None:
    if query.dim() != 3 or not 1 <= query.shape[-1] <= MAX_HEAD_SIZE or not query.is_floating_point():
        raise ValueError(
            f"query is {query.dtype} of shape {tuple(query.shape)}; expected floating point (T, H, D), D <= {MAX_HEAD_SIZE}"
        )
    heads, dim = query.shape[1:]
    together = "L, 2" if value is None else "L"
    if key.dim() != (5 if value is None else 4) or key.shape[2:] != ((2,) if value is None else ()) + (heads, dim):
        raise ValueError(f"key has shape {tuple(key.shape)}; expected (B, {together}, {heads}, {dim})")
    if value is not None and value.shape != key.shape:
        raise ValueError(f"value has shape {tuple(value.shape)}; expected {tuple(key.shape)} as key")
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        if tensor is None:
            continue
        if tensor.dtype != query.dtype:
            raise ValueError(f"{name} is {tensor.dtype}; expected {query.dtype} as query")
        if tensor.device != query.device:
            raise ValueError(f"{name} is on {tensor.device}; expected {query.device} as query")
        if tensor.stride(-1) != 1 and dim > 1:
            raise ValueError(f"{name} has stride {tensor.stride(-1)} in its last dimension; expected 1")
    if image_lengths is not None:
        _check_integers("image_lengths", image_lengths, key.shape[0], query.device)


def _check_texts(query: Tensor, cu_seqlens: Tensor, image_of_text: Tensor) -> None:
    if image_of_text.dim() != 1:
        raise ValueError(f"image_of_text has shape {tuple(image_of_text.shape)}; expected one dimension")
    texts = image_of_text.shape[0]
    _check_integers("image_of_text", image_of_text, texts, query.device)
    _check_integers("cu_seqlens", cu_seqlens, texts + 1, query.device)


def check_groups(groups: RowGroups, query: Tensor, key: Tensor) -> None:
    """ValueError where groups were made for another number of rows than (T, ...) or of images than (B, ...)."""
    tokens, images = query.shape[0], key.shape[0]
    for name, size in (("rows", tokens), ("text_of_row", tokens), ("bounds", images + 2)):
        tensor = getattr(groups, name)
        if tensor.shape != (size,) or tensor.dtype != torch.int32 or tensor.device != query.device:
            raise ValueError(
                f"groups.{name} is {tensor.dtype} of shape {tuple(tensor.shape)} on {tensor.device}; expected what group_rows "
                f"makes of {tokens} rows and {images} images on {query.device}"
            )


def _check_integers(name: str, tensor: Tensor, size: int, device: torch.device) -> None:
    if tensor.shape != (size,) or tensor.dtype not in (torch.int32, torch.int64):
        raise ValueError(
            f"{name} is {tensor.dtype} of shape {tuple(tensor.shape)}; expected int32 or int64 of shape ({size},)"
        )
    if tensor.device != device:
        raise ValueError(f"{name} is on {tensor.device}; expected {device} as query")


def _fake(query: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    statistics = query.new_empty((*query.shape[:2], 2), dtype=torch.promote_types(query.dtype, torch.float32))
    return query.new_empty(query.shape), statistics


def _fake_backward(grad_out: Tensor, query: Tensor, key: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    return query.new_empty(query.shape), key.new_empty(*key.shape[:2], 2, *query.shape[1:])


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    query, key, value, groups, lengths, seed, offset, ctx.dropout_p, ctx.scale, ctx.tile = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(query, key, value, *output, lengths, seed, offset, *groups)


def _backward(ctx: Any, grad_out: Tensor, _: Tensor) -> tuple[Any, ...]:
    query, key, value, out, statistics, lengths, seed, offset, *groups = ctx.saved_tensors
    grad_query, grad_key_value = _backward_operation.call(
        grad_out.contiguous(),
        query,
        key,
        value,
        out,
        statistics,
        groups,
        lengths,
        seed,
        offset,
        ctx.dropout_p,
        ctx.scale,
        ctx.tile,
    )
    grads = (grad_key_value, None) if value is None else grad_key_value.unbind(2)
    return (grad_query, *grads, *(None,) * 7)


def _flops(query: Any, key: Any, *args: Any, **kwargs: Any) -> int:
    return 4 * query[0] * query[1] * query[2] * key[1]


def _backward_flops(grad_out: Any, query: Any, key: Any, *args: Any, **kwargs: Any) -> int:
    return 10 * query[0] * query[1] * query[2] * key[1]


_COMMON = (
    "Tensor[] groups, Tensor? image_lengths, Tensor? seed, Tensor? offset, float dropout_p, float scale, int tile_rows) "
    "-> (Tensor, Tensor)"
)
_operation = Operation(f"cross_attention(Tensor query, Tensor key, Tensor? value, {_COMMON}", _fake)
_operation.add_reference(reference_forward)
_operation.add_native("cpu")
_operation.add_triton("cross_attention:cross_attention")
_operation.add_autograd(_backward, _setup_context)
_operation.add_autocast()
_operation.add_flops(_flops)

_backward_operation = Operation(
    "cross_attention_backward(Tensor grad_out, Tensor query, Tensor key, Tensor? value, Tensor out, Tensor statistics, "
    + _COMMON,
    _fake_backward,
)
_backward_operation.add_reference(reference_backward)
_backward_operation.add_native("cpu")
_backward_operation.add_triton("cross_attention_backward:cross_attention_backward")
_backward_operation.add_flops(_backward_flops)

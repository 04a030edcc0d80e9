"""One token of each text through a layer of the text decoder, in one call: what a step of decoding does twelve times.

For a few texts, calling a layer's operations one by one from Python takes a fifth of a step. No Triton and no CUDA room: on a
GPU a whole step is one CUDA graph (`blip_fast.generation.static`), whose parts are the operations themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from blip_fast.ops.cross_attention import check_groups
from blip_fast.ops.registry import Operation, autocast_enabled
from blip_fast.reference.decode_layer import LayerParameters
from blip_fast.reference.decode_layer import decode_layer as eager
from blip_fast.reference.row_groups import RowGroups


@torch.no_grad()
def decode_layer(
    hidden: Tensor,
    parameters: LayerParameters,
    cache: Tensor,
    ancestry: Tensor,
    slots: Tensor,
    lengths: Tensor,
    key: Tensor,
    value: Tensor,
    groups: RowGroups,
    eps: float = 1e-12,
) -> Tensor:
    """The text decoder's layer for new tokens (arXiv 2201.12086, figure 2: causal self-attention, cross-attention, MLP).

    Keys and values of the R tokens are written to the cache, where each text finds those of its past by its ancestry. A row
    of the result depends on its text and on how many texts look at the same image, not on other texts. No dropout, no gradient.

    Args:
        hidden: (R, C) states of one new token of each text; float32 (reference: floating point).
        parameters: the layer's, of the dtype of ``hidden``, contiguous; C = H * D.
        cache: (2, S, N, H, D), contiguous: keys, then values of up to N tokens in S slots; changed in place.
        ancestry: (R, N) int64: the slot of text r's token n, for n <= lengths[r]; at lengths[r] it is slots[r].
        slots: (R,) int64, all different: where the tokens' keys and values go.
        lengths: (R,) int64 in [0, N): how many tokens the texts have before this one.
        key, value: (B, L, H, D) of the images, see `blip_fast.ops.cross_attention`.
        groups: `group_rows` of R texts of one token each: which image each looks at.
        eps: of the layer norms.

    Returns:
        (R, C), dtype of ``hidden``.

    Raises:
        ValueError: shapes or dtypes do not fit.
        RuntimeError: slots, lengths or ancestry are outside of the cache (on a CPU).
    """
    _check(hidden, parameters, cache, ancestry, slots, lengths, key, value)
    check_groups(groups, hidden, key)
    return _operation.call(
        hidden.contiguous(), list(parameters), cache, ancestry, slots, lengths, key, value, list(groups), eps
    )


def layer_kernel(layers: Sequence[LayerParameters], like: Tensor) -> Callable[..., Tensor] | None:
    """The kernel for a loop over layers and inputs like this one, or None where a layer is better computed in parts."""
    if _operation.forced() not in (None, "cpu") or autocast_enabled(like.device):
        return None
    tensors = [like, *(tensor for parameters in layers for tensor in parameters)]
    return _operation.resolve(*tensors) if _operation.select(tensors) == "cpu" else None


def _check(
    hidden: Tensor,
    parameters: LayerParameters,
    cache: Tensor,
    ancestry: Tensor,
    slots: Tensor,
    lengths: Tensor,
    key: Tensor,
    value: Tensor,
) -> None:
    if hidden.dim() != 2:
        raise ValueError(f"hidden has shape {tuple(hidden.shape)}; expected (R, C)")
    rows, width = hidden.shape
    if cache.dim() != 5 or cache.shape[0] != 2 or cache.shape[3:].numel() != width or not cache.is_contiguous():
        raise ValueError(
            f"cache has shape {tuple(cache.shape)}; expected contiguous (2, S, N, H, D) with H * D = {width}"
        )
    for name, tensor, shape in (
        ("ancestry", ancestry, (rows, cache.shape[2])),
        ("slots", slots, (rows,)),
        ("lengths", lengths, (rows,)),
    ):
        if tensor.shape != shape or tensor.dtype != torch.int64 or not tensor.is_contiguous():
            raise ValueError(
                f"{name} is {tensor.dtype} of shape {tuple(tensor.shape)}; expected contiguous int64 {shape}"
            )
    for name, tensor in (("key", key), ("value", value)):
        if tensor.dim() != 4 or tensor.shape[2:] != cache.shape[3:] or tensor.shape != key.shape:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}; expected (B, L, H, D), H and D as in the cache")
        if tensor.stride(-1) != 1 and tensor.shape[-1] > 1:
            raise ValueError(f"{name} has stride {tensor.stride(-1)} in its last dimension; expected 1")
    inner = parameters.up.shape[0]
    shapes = {"up": (inner, width), "up_bias": (inner,), "down": (width, inner)}
    for name, tensor in parameters._asdict().items():
        square = "norm" not in name and not name.endswith("bias")
        shape = shapes.get(name, (width, width) if square else (width,))
        if tensor.shape != shape or not tensor.is_contiguous():
            raise ValueError(f"parameters.{name} has shape {tuple(tensor.shape)}; expected contiguous {shape}")
    named = {"cache": cache, "key": key, "value": value, **parameters._asdict()}
    for name, tensor in named.items():
        if tensor.dtype != hidden.dtype:
            raise ValueError(f"{name} is {tensor.dtype}; expected {hidden.dtype} as hidden")


def _fake(hidden: Tensor, *args: Any) -> Tensor:
    return torch.empty_like(hidden)


def _flops(
    hidden: Any,
    parameters: Any,
    cache: Any,
    ancestry: Any,
    slots: Any,
    lengths: Any,
    key: Any,
    *args: Any,
    **kwargs: Any,
) -> int:
    """Products with all weights, and attention to all places of the cache and of the image."""
    rows, width = hidden
    weights = sum(shape[0] * shape[1] for shape in parameters if len(shape) == 2)
    return 2 * rows * weights + 4 * rows * width * (cache[2] + key[1])


_operation = Operation(
    "decode_layer(Tensor hidden, Tensor[] parameters, Tensor(a!) cache, Tensor ancestry, Tensor slots, Tensor lengths, "
    "Tensor key, Tensor value, Tensor[] groups, float eps) -> Tensor",
    _fake,
)
_operation.add_reference(eager)
_operation.add_native("cpu", (torch.float32,))
_operation.add_flops(_flops)

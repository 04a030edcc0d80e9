"""Which library computes the image encoder's attention on the fused path."""

from __future__ import annotations

import importlib.util
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blip_fast.ops import cross_attention
from blip_fast.reference.vit import SelfAttention

VitAttention = Literal["sdpa", "xformers"]
LIBRARIES: tuple[VitAttention, ...] = ("sdpa", "xformers")
_CHOICE = "attention_library"  # attribute of a SelfAttention; without it "sdpa"


def set_vit_attention(model: nn.Module, attention: VitAttention) -> None:
    """Choose the library for all image encoders in ``model``, momentum copies included.

    Args:
        model: a fused model, or an image encoder of one.
        attention: "sdpa" is `torch.nn.functional.scaled_dot_product_attention`, the default, of which
            `torch.nn.attention.sdpa_kernel` chooses the kernel. "xformers" is its ``memory_efficient_attention``, which
            needs a GPU.

    Raises:
        ImportError: xformers is asked for and not installed.
        ValueError: ``attention`` is another word, or the model has no image encoder.
    """
    if attention not in LIBRARIES:
        raise ValueError(f"attention={attention!r}; expected one of {', '.join(map(repr, LIBRARIES))}")
    if attention == "xformers" and importlib.util.find_spec("xformers") is None:
        raise ImportError("attention='xformers' needs the package xformers: pip install 'blip_fast[xformers]'")
    modules = [module for module in model.modules() if isinstance(module, SelfAttention)]
    if not modules:
        raise ValueError(
            f"model is a {type(model).__name__} without an image encoder; expected one with attention layers"
        )
    for module in modules:
        setattr(module, _CHOICE, attention)


def attend(module: SelfAttention, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention of query (B, N, H, D) to key and value (B, L, H, D) by the module's library: (B, N, H, D).

    Raises RuntimeError where xformers has no operator for these tensors.
    """
    if getattr(module, _CHOICE, "sdpa") == "xformers":
        return _xformers(query, key, value)
    if query.device.type == "cpu" and not torch.is_grad_enabled():
        return _without_gradient(query, key, value)
    heads_first = (tensor.transpose(1, 2) for tensor in (query, key, value))
    return F.scaled_dot_product_attention(*heads_first).transpose(1, 2)


def _without_gradient(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """By `cross_attention` of images to themselves: on a CPU its kernel is faster (benchmarks/ops/cross_attention.py)."""
    images, rows = query.shape[:2]
    bounds = torch.arange(0, images * rows + 1, rows, dtype=torch.int32, device=query.device)
    own = torch.arange(images, device=query.device)
    return cross_attention(query.flatten(0, 1), key, value, bounds, own).view_as(query)


def _xformers(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    from xformers.ops import memory_efficient_attention

    try:
        return memory_efficient_attention(query, key, value)
    except NotImplementedError as error:
        raise RuntimeError(
            f"attention='xformers': xformers has no operator for {query.dtype} on {query.device}, head size "
            f"{query.shape[-1]}; expected a GPU that it supports, or attention='sdpa'"
        ) from error

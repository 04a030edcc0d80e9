"""One token of each text through a layer of the text decoder, in plain torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blip_fast.reference.cross_attention import forward as attend
from blip_fast.reference.linear import is_plain
from blip_fast.reference.text import TextLayer


class LayerParameters(NamedTuple):
    """Weights and biases of a layer, in the order of their use; C is the text's width, M that of the MLP."""

    query: Tensor  # (C, C), of the self-attention
    query_bias: Tensor  # (C)
    key: Tensor
    key_bias: Tensor
    value: Tensor
    value_bias: Tensor
    output: Tensor
    output_bias: Tensor
    norm: Tensor  # (C)
    norm_bias: Tensor
    image_query: Tensor  # (C, C), of the cross-attention
    image_query_bias: Tensor
    image_output: Tensor
    image_output_bias: Tensor
    image_norm: Tensor
    image_norm_bias: Tensor
    up: Tensor  # (M, C), of the MLP
    up_bias: Tensor
    down: Tensor  # (C, M)
    down_bias: Tensor
    last_norm: Tensor
    last_norm_bias: Tensor

    @classmethod
    def of(cls, layer: TextLayer) -> LayerParameters | None:
        """Those of a layer; None where some are no plain weights, as in int8, or have hooks."""
        own, image = layer.attention, layer.crossattention
        parts: list[nn.Module] = [own.self.query, own.self.key, own.self.value, own.output.dense, own.output.LayerNorm]
        parts += [image.self.query, image.output.dense, image.output.LayerNorm]
        parts += [layer.intermediate.dense, layer.output.dense, layer.output.LayerNorm]
        if not all(map(is_plain, parts)):
            return None
        return cls(*(tensor.contiguous() for part in parts for tensor in (part.weight, part.bias)))


def decode_layer(
    hidden: Tensor,
    parameters: Sequence[Tensor],
    cache: Tensor,
    ancestry: Tensor,
    slots: Tensor,
    lengths: Tensor,
    key: Tensor,
    value: Tensor,
    groups: Sequence[Tensor],
    eps: float = 1e-12,
) -> Tensor:
    """States (R, C) after the layer; keys and values go to the cache. See `blip_fast.ops.decode_layer`."""
    p, heads = LayerParameters(*parameters), cache.shape[-2:]

    def add_norm(part: Tensor, residual: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.layer_norm(part + residual, residual.shape[-1:], weight, bias, eps)

    cache[0, slots, lengths] = F.linear(hidden, p.key, p.key_bias).unflatten(1, heads)
    cache[1, slots, lengths] = F.linear(hidden, p.value, p.value_bias).unflatten(1, heads)
    places = torch.arange(cache.shape[2], device=hidden.device)
    query = F.linear(hidden, p.query, p.query_bias).unflatten(1, heads)
    scores = torch.einsum("rhd,rnhd->rhn", query, cache[0, ancestry, places]) * heads[1] ** -0.5
    probability = scores.masked_fill(places > lengths[:, None, None], -torch.inf).softmax(-1)
    past = cache[1, ancestry, places].masked_fill(places[:, None, None] > lengths[:, None, None, None], 0.0)
    attended = torch.einsum("rhn,rnhd->rhd", probability, past).flatten(1)
    hidden = add_norm(F.linear(attended, p.output, p.output_bias), hidden, p.norm, p.norm_bias)

    query = F.linear(hidden, p.image_query, p.image_query_bias).unflatten(1, heads)
    seen, _ = attend(query, key, value, groups, None, None, None, 0.0, heads[1] ** -0.5, 0)
    seen = F.linear(seen.flatten(1), p.image_output, p.image_output_bias)
    hidden = add_norm(seen, hidden, p.image_norm, p.image_norm_bias)
    inner = F.gelu(F.linear(hidden, p.up, p.up_bias))
    return add_norm(F.linear(inner, p.down, p.down_bias), hidden, p.last_norm, p.last_norm_bias)

"""The image encoder on torch's fused attention, as functions of the reference's modules (which hold the parameters)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from blip_fast.ops import cross_attention
from blip_fast.ops.linear import linear_layer
from blip_fast.reference.vit import Block, Mlp, SelfAttention, VisionTransformer


def image_states(encoder: VisionTransformer, image: Tensor) -> Tensor:
    """Images (B, 3, S, S) -> states (B, 1 + patches, width), as ``encoder(image)``."""
    hidden = encoder.embed(image)
    for block in encoder.blocks:
        hidden = run_block(block, hidden)
    return encoder.norm(hidden)


def class_state(encoder: VisionTransformer, image: Tensor) -> Tensor:
    """State of the class token, (B, width), as ``encoder(image)[:, 0]``: the last block computes nothing else."""
    hidden = encoder.embed(image)
    for block in encoder.blocks[:-1]:
        hidden = run_block(block, hidden)
    return encoder.norm(run_block(encoder.blocks[-1], hidden, class_only=True))[:, 0]


def run_block(block: Block, hidden: Tensor, class_only: bool = False) -> Tensor:
    """One pre-norm block; with ``class_only`` for token 0, which still attends to all: (B, 1, width)."""
    attended = self_attention(block.attn, block.norm1(hidden), class_only)
    hidden = (hidden[:, :1] if class_only else hidden) + block.drop_path(attended)
    return hidden + block.drop_path(mlp(block.mlp, block.norm2(hidden)))


def self_attention(module: SelfAttention, hidden: Tensor, class_only: bool) -> Tensor:
    """Multi-head self-attention of hidden (B, L, width), for all tokens or for token 0 only."""
    batch, length, width = hidden.shape
    heads, depth = module.heads, width // module.heads
    if class_only:
        query_weight, key_value_weight = module.qkv.weight.split([width, 2 * width])
        query_bias, key_value_bias = module.qkv.bias.split([width, 2 * width])
        query = F.linear(hidden[:, :1], query_weight, query_bias).view(batch, 1, heads, depth).transpose(1, 2)
        key_value = F.linear(hidden, key_value_weight, key_value_bias).view(batch, length, 2, heads, depth)
        key, value = key_value.permute(2, 0, 3, 1, 4).unbind(0)
    else:
        query, key, value = (
            linear_layer(module.qkv, hidden).view(batch, length, 3, heads, depth).permute(2, 0, 3, 1, 4).unbind(0)
        )
    return linear_layer(module.proj, attend(query, key, value))


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention of query (B, H, n, D) to key and value (B, H, L, D): (B, n, H * D).

    On a CPU and without gradient by `cross_attention`, whose kernel takes two thirds of the time of torch's.
    """
    if torch.is_grad_enabled() or query.device.type != "cpu":
        return F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
    images, _, rows, _ = query.shape
    query, key, value = (states.transpose(1, 2) for states in (query, key, value))
    bounds = torch.arange(0, images * rows + 1, rows, dtype=torch.int32)
    return cross_attention(query.flatten(0, 1), key, value, bounds, torch.arange(images)).view(images, rows, -1)


def mlp(module: Mlp, hidden: Tensor) -> Tensor:
    """Linear, exact GELU, linear."""
    return linear_layer(module.fc2, linear_layer(module.fc1, hidden, gelu=True))

"""The image encoder on fused attention, as functions of the reference's modules (which hold the parameters)."""

from __future__ import annotations

from torch import Tensor

from blip_fast.models.vit_attention import attend
from blip_fast.ops.linear import linear, linear_layer
from blip_fast.reference.linear import is_plain
from blip_fast.reference.recompute import recomputed
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
    mode = block.recompute_of("block")
    return recomputed(_run_block, block, hidden, class_only, mode=mode, draws=block.draws)


def _run_block(block: Block, hidden: Tensor, class_only: bool) -> Tensor:
    mode = block.recompute_of("sublayer")
    attended = recomputed(self_attention, block.attn, block.norm1(hidden), class_only, mode=mode)
    hidden = (hidden[:, :1] if class_only else hidden) + block.drop_path(attended)
    return hidden + block.drop_path(recomputed(mlp, block.mlp, block.norm2(hidden), mode=mode))


def self_attention(module: SelfAttention, hidden: Tensor, class_only: bool) -> Tensor:
    """Multi-head self-attention of hidden (B, L, width), for all tokens or for token 0 only."""
    batch, length, width = hidden.shape
    heads, depth = module.heads, width // module.heads
    if class_only and is_plain(module.qkv):
        query_weight, key_value_weight = module.qkv.weight.split([width, 2 * width])
        query_bias, key_value_bias = module.qkv.bias.split([width, 2 * width])
        query = linear(hidden[:, :1], query_weight, query_bias).view(batch, 1, heads, depth)
        key_value = linear(hidden, key_value_weight, key_value_bias).view(batch, length, 2, heads, depth)
        key, value = key_value.unbind(2)
    else:
        query, key, value = linear_layer(module.qkv, hidden).view(batch, length, 3, heads, depth).unbind(2)
        query = query[:, :1] if class_only else query
    return linear_layer(module.proj, attend(module, query, key, value).flatten(2))


def mlp(module: Mlp, hidden: Tensor) -> Tensor:
    """Linear, exact GELU, linear."""
    return linear_layer(module.fc2, linear_layer(module.fc1, hidden, gelu=True))

"""The image encoder on fused attention; parameters and names are the reference's."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from blip_fast.reference import vit as reference


class VisionTransformer(reference.VisionTransformer):
    """Images (B, 3, S, S) -> states (B, 1 + patches, width), as the reference computes them."""

    def forward(self, image: Tensor) -> Tensor:
        hidden = self.embed(image)
        for block in self.blocks:
            hidden = run_block(block, hidden)
        return self.norm(hidden)

    def class_state(self, image: Tensor) -> Tensor:
        """State of the class token only, (B, width): the last block computes nothing else."""
        hidden = self.embed(image)
        for block in self.blocks[:-1]:
            hidden = run_block(block, hidden)
        return self.norm(run_block(self.blocks[-1], hidden, class_only=True))[:, 0]


def run_block(block: reference.Block, hidden: Tensor, class_only: bool = False) -> Tensor:
    """One pre-norm block; with ``class_only`` for token 0, which still attends to all: (B, 1, width)."""
    attended = self_attention(block.attn, block.norm1(hidden), class_only)
    hidden = (hidden[:, :1] if class_only else hidden) + block.drop_path(attended)
    return hidden + block.drop_path(block.mlp(block.norm2(hidden)))


def self_attention(module: reference.SelfAttention, hidden: Tensor, class_only: bool) -> Tensor:
    """Multi-head self-attention (B, L, width) -> (B, L or 1, width) through torch's fused attention."""
    batch, length, width = hidden.shape
    heads, depth = module.heads, width // module.heads
    if class_only:
        query_weight, key_value_weight = module.qkv.weight.split([width, 2 * width])
        query_bias, key_value_bias = module.qkv.bias.split([width, 2 * width])
        query = F.linear(hidden[:, :1], query_weight, query_bias).view(batch, 1, heads, depth).transpose(1, 2)
        packed = F.linear(hidden, key_value_weight, key_value_bias).view(batch, length, 2, heads, depth)
        key, value = packed.permute(2, 0, 3, 1, 4).unbind(0)
    else:
        query, key, value = module.qkv(hidden).view(batch, length, 3, heads, depth).permute(2, 0, 3, 1, 4).unbind(0)
    attended = F.scaled_dot_product_attention(query, key, value)
    return module.proj(attended.transpose(1, 2).flatten(2))



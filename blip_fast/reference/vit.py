"""The image encoder: a Vision Transformer (arXiv 2010.11929) with pre-norm blocks and a class token."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blip_fast.config import BlipConfig
from blip_fast.reference.attention import attention, merge_heads
from blip_fast.reference.recompute import Recompute, recomputed, set_recompute


class PatchEmbed(nn.Module):
    """Cuts images (B, 3, S, S) into patches and projects each: (B, patches, width)."""

    def __init__(self, patch: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, kernel_size=patch, stride=patch)

    def forward(self, image: Tensor) -> Tensor:
        return self.proj(image).flatten(2).transpose(1, 2)


class SelfAttention(nn.Module):
    """Multi-head self-attention without mask; query, key and value come from one projection."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, hidden: Tensor) -> Tensor:
        batch, length, width = hidden.shape
        qkv = self.qkv(hidden).view(batch, length, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(merge_heads(attention(query, key, value)))


class Mlp(nn.Module):
    """Linear, exact GELU, linear."""

    def __init__(self, width: int, hidden_width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden_width)
        self.fc2 = nn.Linear(hidden_width, width)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(hidden)))


class DropPath(nn.Module):
    """Stochastic depth (arXiv 1603.09382): training drops a residual branch for whole samples, rescaling the rest."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, branch: Tensor) -> Tensor:
        if self.probability == 0.0 or not self.training:
            return branch
        keep = 1.0 - self.probability
        kept = branch.new_empty((branch.shape[0],) + (1,) * (branch.ndim - 1)).bernoulli_(keep)
        return branch * (kept / keep)


class Block(nn.Module):
    """Pre-norm transformer block: x + attention(norm(x)), then x + mlp(norm(x)).

    Attributes:
        recompute: what is not kept for the backward pass: "full" wraps attention and MLP, one by one, as published;
            "selective" the whole block. See `blip_fast.reference.recompute`.
    """

    recompute: Recompute | None = None

    def __init__(self, config: BlipConfig, drop_path: float) -> None:
        super().__init__()
        width = config.vit_width
        self.norm1 = nn.LayerNorm(width, eps=config.vit_layer_norm_eps)
        self.attn = SelfAttention(width, config.vit_heads)
        self.drop_path = DropPath(drop_path)
        self.norm2 = nn.LayerNorm(width, eps=config.vit_layer_norm_eps)
        self.mlp = Mlp(width, int(width * config.vit_mlp_ratio))

    def forward(self, hidden: Tensor) -> Tensor:
        return recomputed(self.run, hidden, mode=self.recompute_of("block"), draws=self.draws)

    def recompute_of(self, part: Literal["block", "sublayer"]) -> Recompute | None:
        """What is not kept of the whole block, and of attention and MLP inside of it."""
        return self.recompute if (self.recompute == "selective") == (part == "block") else None

    @property
    def draws(self) -> bool:
        """Whether a forward pass draws random numbers."""
        return self.training and self.drop_path.probability > 0.0

    def run(self, hidden: Tensor) -> Tensor:
        """The block itself; with "full", what is inside of attention and MLP is not kept."""
        mode = self.recompute_of("sublayer")
        hidden = hidden + self.drop_path(recomputed(self.attn, self.norm1(hidden), mode=mode))
        return hidden + self.drop_path(recomputed(self.mlp, self.norm2(hidden), mode=mode))


class VisionTransformer(nn.Module):
    """Images (B, 3, S, S) -> states (B, 1 + patches, width); state 0 is the class token, all are normalised.

    Drop path grows linearly from 0 in the first block to ``config.drop_path`` in the last.
    """

    def __init__(self, config: BlipConfig) -> None:
        super().__init__()
        width, depth = config.vit_width, config.vit_depth
        patches = (config.image_size // config.vit_patch) ** 2
        self.image_size = config.image_size
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + patches, width))
        self.patch_embed = PatchEmbed(config.vit_patch, width)
        rates = [config.drop_path * index / max(depth - 1, 1) for index in range(depth)]
        self.blocks = nn.ModuleList(Block(config, rate) for rate in rates)
        self.norm = nn.LayerNorm(width, eps=config.vit_layer_norm_eps)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Truncated normal of deviation 0.02 for embeddings and linear weights, zero for their biases."""
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        for module in self.blocks.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def set_grad_checkpointing(self, enable: bool = True, layers: int | None = None, mode: Recompute = "full") -> None:
        """Keep less of the last ``layers`` blocks (None: all) for the backward pass, which computes it again.

        ``enable`` and ``layers`` are the published programs' ``vit_grad_ckpt`` and ``vit_ckpt_layer``.

        Args:
            enable: False keeps everything in all blocks.
            layers: how many blocks, counted from the last.
            mode: "full", as published, keeps nothing inside of attention and MLP; "selective" keeps the results of
                linear layers and fused attention, and computes norms and activations again.
        """
        set_recompute(self.blocks, enable, layers, mode)

    def embed(self, image: Tensor) -> Tensor:
        """Class token and patches with their position embeddings, (B, 1 + patches, width)."""
        if image.ndim != 4 or image.shape[1] != 3 or image.shape[-2:] != (self.image_size, self.image_size):
            raise ValueError(
                f"image has shape {tuple(image.shape)}; expected (B, 3, {self.image_size}, {self.image_size})"
            )
        patches = self.patch_embed(image)
        cls_token = self.cls_token.expand(patches.shape[0], -1, -1)
        return torch.cat([cls_token, patches], dim=1) + self.pos_embed

    def forward(self, image: Tensor) -> Tensor:
        hidden = self.embed(image)
        for block in self.blocks:
            hidden = block(hidden)
        return self.norm(hidden)

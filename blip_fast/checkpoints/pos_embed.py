"""Position embeddings for another image size."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def interpolate_pos_embed(pos_embed: Tensor, patches: int) -> Tensor:
    """Resize the position embedding of a square grid of patches to another one, bicubically; the class token is kept.

    Args:
        pos_embed: (1, 1 + P, C), class token first.
        patches: number of patches wanted.

    Returns:
        (1, 1 + patches, C); ``pos_embed`` itself when the size is the same. Raises ValueError unless P and ``patches``
        are square numbers.
    """
    old_side, new_side = math.isqrt(pos_embed.shape[1] - 1), math.isqrt(patches)
    if old_side**2 != pos_embed.shape[1] - 1 or new_side**2 != patches:
        raise ValueError(
            f"pos_embed has {pos_embed.shape[1] - 1} patches and patches={patches}; both must be square numbers"
        )
    if old_side == new_side:
        return pos_embed
    grid = pos_embed[:, 1:].unflatten(1, (old_side, old_side)).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(new_side, new_side), mode="bicubic", align_corners=False)
    return torch.cat([pos_embed[:, :1], grid.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)

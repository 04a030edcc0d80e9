"""Scaled dot-product attention and its masks, written out: softmax(Q K^T / sqrt(d) + mask) V."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

SELF_MASK = -1e4  # added to the scores of padded or future tokens in self-attention
CROSS_MASK = -1e9  # added to the scores of padded states in cross-attention; -1e4 where fp16 cannot hold it


def split_heads(hidden: Tensor, heads: int) -> Tensor:
    """(B, N, H*D) -> (B, H, N, D)."""
    batch, length, width = hidden.shape
    return hidden.view(batch, length, heads, width // heads).transpose(1, 2)


def merge_heads(hidden: Tensor) -> Tensor:
    """(B, H, N, D) -> (B, N, H*D)."""
    return hidden.transpose(1, 2).flatten(2)


def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, dropout_p: float = 0.0) -> Tensor:
    """Attend from query (B, H, N, D) to key and value (B, H, L, D); returns (B, H, N, D).

    ``mask`` is added to the scores and broadcasts to (B, H, N, L). ``dropout_p`` drops attention probabilities; pass 0
    outside of training.
    """
    probabilities = attention_probabilities(query, key, mask)
    if dropout_p > 0.0:
        probabilities = F.dropout(probabilities, dropout_p)
    return probabilities @ value


def attention_probabilities(query: Tensor, key: Tensor, mask: Tensor | None = None) -> Tensor:
    """How much each of query (B, H, N, D) attends to each of key (B, H, L, D): (B, H, N, L), rows sum to 1."""
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
    return (scores if mask is None else scores + mask).softmax(dim=-1)


def padding_mask(attention_mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Self-attention mask (B, 1, 1, N) from ``attention_mask`` (B, N), 1 for tokens and 0 for padding."""
    return (1.0 - attention_mask[:, None, None, :].to(dtype)) * SELF_MASK


def causal_mask(attention_mask: Tensor, dtype: torch.dtype, queries: int) -> Tensor:
    """Decoder mask (B, 1, queries, N): the last ``queries`` of N tokens see real tokens up to themselves."""
    length = attention_mask.shape[1]
    positions = torch.arange(length, device=attention_mask.device)
    visible = positions[None, :] <= positions[length - queries :, None]
    return (1.0 - (visible * attention_mask[:, None, None, :]).to(dtype)) * SELF_MASK


def cross_mask(state_mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Cross-attention mask (B, 1, 1, L) from ``state_mask`` (B, L); None (all states are real) stays None."""
    if state_mask is None:
        return None
    value = SELF_MASK if dtype == torch.float16 else CROSS_MASK
    return (1.0 - state_mask[:, None, None, :].to(dtype)) * value

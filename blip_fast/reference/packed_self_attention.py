"""Self-attention of packed texts in plain torch: texts padded to the longest, softmax written out."""

from __future__ import annotations

import torch
from torch import Tensor

from blip_fast.reference.cross_attention import LOG2E, keep_mask
from blip_fast.reference.philox import dropout_state


def split_query_key_value(query: Tensor, key: Tensor | None, value: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value, (T, H, D) each, where ``query`` may hold all three: (T, 3, H, D)."""
    if key is not None and value is not None:
        return query, key, value
    return query.select(1, 0), query.select(1, 1), query.select(1, 2)


class _Attention:
    """The probabilities of one call, (S, H, N, N), before and after dropout. The longest text is read from the device."""

    def __init__(
        self,
        query: Tensor,
        key: Tensor,
        cu_seqlens: Tensor,
        seed: Tensor | None,
        offset: Tensor | None,
        causal: bool,
        dropout_p: float,
        scale: float,
    ) -> None:
        start, lengths = cu_seqlens[:-1].long(), cu_seqlens.diff()
        self.tokens, texts = query.shape[0], lengths.shape[0]
        longest = int(lengths.max()) if texts and self.tokens else 0
        position = torch.arange(longest, device=query.device)
        self.real = position < lengths[:, None]  # (S, N)
        self.row = (start[:, None] + position).clamp(max=max(self.tokens - 1, 0))
        self.seen = self.real[:, None, None] & ((position <= position[:, None]) | (not causal))
        self.scores = torch.einsum("snhd,smhd->shnm", self.pad(query), self.pad(key)) * scale
        self.scores = self.scores.masked_fill(~self.seen, -torch.inf)
        self.probability = torch.softmax(self.scores, dim=-1).masked_fill(~self.seen, 0.0)
        self.factor: Tensor | float = 1.0
        if dropout_p > 0 and longest:
            heads = query.shape[1]
            head, text = torch.arange(heads, device=query.device), torch.arange(texts, device=query.device)
            text_head = (text[:, None] * heads + head)[..., None].expand(self.scores.shape[:3])
            keep = keep_mask(seed, offset, dropout_p, text_head, position.expand_as(text_head), longest)
            self.factor = keep.to(query.dtype) / (1.0 - dropout_p)

    def pad(self, rows: Tensor) -> Tensor:
        """(T, ...) -> (S, N, ...), 0 behind the end of a text."""
        padded = rows[self.row]
        return padded.where(self.real.view(*self.real.shape, *(1,) * (rows.dim() - 1)), 0)

    def pack(self, padded: Tensor) -> Tensor:
        """(S, N, ...) -> (T, ...), 0 in rows past the last text."""
        return padded.new_zeros(self.tokens, *padded.shape[2:]).index_put((self.row[self.real],), padded[self.real])


def packed_self_attention(
    query: Tensor,
    key: Tensor | None,
    value: Tensor | None,
    cu_seqlens: Tensor,
    max_length: int,
    causal: bool = False,
    dropout_p: float = 0.0,
    scale: float | None = None,
    seed: Tensor | int | None = None,
    offset: Tensor | int = 0,
) -> Tensor:
    """Attention of packed tokens (T, H, D) within each text; see `blip_fast.ops.packed_self_attention`."""
    rng = dropout_state(dropout_p, seed, offset, query.device)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    return forward(query, key, value, cu_seqlens, *rng, max_length, causal, dropout_p, scale)[0]


def forward(
    query: Tensor,
    key: Tensor | None,
    value: Tensor | None,
    cu_seqlens: Tensor,
    seed: Tensor | None,
    offset: Tensor | None,
    max_length: int,
    causal: bool,
    dropout_p: float,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Output (T, H, D) and statistics (T, H, 2).

    The statistics of a row give its probabilities again, as in `blip_fast.reference.cross_attention`.
    """
    query, key, value = split_query_key_value(query, key, value)
    attention = _Attention(query, key, cu_seqlens, seed, offset, causal, dropout_p, scale)
    dtype = torch.promote_types(query.dtype, torch.float32)
    if attention.row.numel() == 0:
        return query.new_zeros(query.shape), query.new_zeros(*query.shape[:2], 2, dtype=dtype)
    scores = attention.scores.to(dtype).transpose(1, 2)
    maximum = scores.amax(-1, keepdim=True)
    total = (scores - maximum).exp().sum(-1, keepdim=True)
    out = torch.einsum("shnm,smhd->snhd", attention.probability * attention.factor, attention.pad(value))
    return attention.pack(out), attention.pack(torch.cat([maximum * LOG2E, total], dim=-1))


def backward(
    grad_out: Tensor,
    query: Tensor,
    key: Tensor | None,
    value: Tensor | None,
    out: Tensor,
    statistics: Tensor,
    cu_seqlens: Tensor,
    seed: Tensor | None,
    offset: Tensor | None,
    max_length: int,
    causal: bool,
    dropout_p: float,
    scale: float,
) -> Tensor:
    """Gradients of query, key and value: (T, 3, H, D) where these are one tensor, else (3, T, H, D)."""
    together = 1 if key is None else 0
    query, key, value = split_query_key_value(query, key, value)
    attention = _Attention(query, key, cu_seqlens, seed, offset, causal, dropout_p, scale)
    if attention.row.numel() == 0:
        return torch.stack([torch.zeros_like(query)] * 3, dim=together)
    grad_padded = attention.pad(grad_out)
    grad_p = torch.einsum("snhd,smhd->shnm", grad_padded, attention.pad(value)) * attention.factor
    delta = (grad_padded * attention.pad(out)).sum(-1).transpose(1, 2)[..., None]
    grad_scores = attention.probability * (grad_p - delta) * scale
    grad_query = torch.einsum("shnm,smhd->snhd", grad_scores, attention.pad(key))
    grad_key = torch.einsum("shnm,snhd->smhd", grad_scores, attention.pad(query))
    grad_value = torch.einsum("shnm,snhd->smhd", attention.probability * attention.factor, grad_padded)
    return torch.stack([attention.pack(grad) for grad in (grad_query, grad_key, grad_value)], dim=together)

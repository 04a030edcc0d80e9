"""Cross-attention of packed texts in plain torch: keys and values gathered per text, texts padded, softmax written out."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from blip_fast.reference.philox import dropout_state, philox
from blip_fast.reference.row_groups import RowGroups, group_rows

LOG2E = math.log2(math.e)
BLOCK, SLOTS = 64, 16  # one Philox counter serves the keys {slot, slot + 16, slot + 32, slot + 48} of a block of 64


def keep_mask(seed: Tensor, offset: Tensor, dropout_p: float, text_head: Tensor, position: Tensor, keys: int) -> Tensor:
    """Which attention probabilities survive dropout: (..., keys) bool for ``text_head`` and ``position`` (...).

    The number of key k is word ``k % 64 // 16`` at the counter ``(k // 64 * 16 + k % 16, position of the query in its text,
    text * heads + head, offset)``; its high 24 bits are compared with ``dropout_p``.
    """
    blocks = -(-keys // BLOCK)
    counter = torch.arange(blocks * SLOTS, device=position.device)
    words = philox(seed, counter, position[..., None], text_head[..., None], offset)
    drawn = torch.stack([torch.as_tensor(word) for word in words], dim=-1).unflatten(-2, (blocks, SLOTS))
    in_order = drawn.transpose(-1, -2).flatten(-3)[..., :keys]
    return (in_order >> 8) >= int(dropout_p * 2**24 + 0.5)


def split_key_value(key: Tensor, value: Tensor | None) -> tuple[Tensor, Tensor]:
    """Keys and values, (B, L, H, D) each, where ``key`` may hold both: (B, L, 2, H, D)."""
    if value is not None:
        return key, value
    return key.select(2, 0), key.select(2, 1)


class _Texts:
    """Packed rows (T, ...) as padded texts (S, N, ...) and back. The longest text is read from the device."""

    def __init__(self, groups: RowGroups, images: int) -> None:
        self.start, lengths = groups.cu_seqlens[:-1].long(), groups.cu_seqlens.diff()
        self.text_of_row = groups.text_of_row.long()
        self.inside = (groups.image_of_text >= 0) & (groups.image_of_text < images)
        self.image = groups.image_of_text.where(self.inside, 0).long()
        tokens, texts = self.text_of_row.shape[0], lengths.shape[0]
        longest = int(lengths.max()) if texts and tokens and images else 0
        self.position = torch.arange(longest, device=lengths.device)
        self.row = (self.start[:, None] + self.position).clamp(max=tokens - 1)
        text = torch.arange(texts, device=lengths.device)[:, None]
        self.valid = (self.position < lengths[:, None]) & self.inside[:, None] & (self.text_of_row[self.row] == text)

    def unpack(self, rows: Tensor) -> Tensor:
        padded = rows[self.row]
        return padded.where(_expand(self.valid, padded), 0)

    def pack(self, padded: Tensor) -> Tensor:
        text = self.text_of_row.clamp(max=padded.shape[0] - 1)
        position = torch.arange(text.shape[0], device=text.device) - self.start[text]
        rows = padded[text, position.clamp(0, padded.shape[1] - 1)]
        alive = (self.text_of_row < padded.shape[0]) & self.inside[text]
        return rows.where(_expand(alive, rows), 0)


def _expand(mask: Tensor, like: Tensor) -> Tensor:
    return mask.reshape(mask.shape + (1,) * (like.dim() - mask.dim()))


class _Attention:
    """The probabilities of one call, (S, H, N, L), before and after dropout."""

    def __init__(
        self,
        query: Tensor,
        key: Tensor,
        texts: _Texts,
        image_lengths: Tensor | None,
        seed: Tensor | None,
        offset: Tensor | None,
        dropout_p: float,
        scale: float,
    ) -> None:
        self.image = texts.image
        self.masked: Tensor | None = None
        if image_lengths is not None:
            self.masked = torch.arange(key.shape[1], device=key.device) >= image_lengths[texts.image][:, None]
        self.scores = torch.einsum("snhd,slhd->shnl", texts.unpack(query), self.seen(key)) * scale
        if self.masked is not None:
            self.scores = self.scores.masked_fill(self.masked[:, None, None], -torch.inf)
        self.probability = torch.softmax(self.scores, dim=-1)
        if self.masked is not None:
            self.probability = self.probability.masked_fill(self.masked[:, None, None], 0.0)
        self.factor: Tensor | float = 1.0
        if dropout_p > 0:
            heads = torch.arange(key.shape[2], device=key.device)[:, None]
            text = torch.arange(texts.image.shape[0], device=key.device)[:, None, None]
            text_head = (text * heads.shape[0] + heads).expand(*self.scores.shape[:3])
            position = texts.position.expand_as(text_head)
            keep = keep_mask(seed, offset, dropout_p, text_head, position, key.shape[1])
            self.factor = keep.to(key.dtype) / (1.0 - dropout_p)

    def seen(self, states: Tensor) -> Tensor:
        """Keys or values (B, L, H, D) of each text's image, (S, L, H, D); those past its length are not read."""
        gathered = states[self.image]
        return gathered if self.masked is None else gathered.masked_fill(self.masked[..., None, None], 0.0)


def cross_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor | None,
    cu_seqlens: Tensor,
    image_of_text: Tensor,
    image_lengths: Tensor | None = None,
    dropout_p: float = 0.0,
    scale: float | None = None,
    seed: Tensor | int | None = None,
    offset: Tensor | int = 0,
    groups: RowGroups | None = None,
) -> Tensor:
    """Attention of packed text rows (T, H, D) to the tokens of each text's image; see `blip_fast.ops.cross_attention`."""
    if groups is None:
        groups = group_rows(cu_seqlens, image_of_text, query.shape[0], key.shape[0])
    rng = dropout_state(dropout_p, seed, offset, query.device)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    return forward(query, key, value, groups, image_lengths, *rng, dropout_p, scale, 0)[0]


def cross_attention_padded(
    query: Tensor,
    key: Tensor,
    value: Tensor | None,
    mask: Tensor | None = None,
    image_of_text: Tensor | None = None,
    image_lengths: Tensor | None = None,
    dropout_p: float = 0.0,
    scale: float | None = None,
    seed: Tensor | int | None = None,
    offset: Tensor | int = 0,
) -> Tensor:
    """The same for padded texts (S, N, H, D); see `blip_fast.ops.cross_attention_padded`."""
    texts, longest = query.shape[:2]
    cu_seqlens = torch.arange(texts + 1, device=query.device) * longest
    if image_of_text is None:
        image_of_text = torch.arange(texts, device=query.device)
    keep = None if mask is None else mask.flatten().bool()
    groups = group_rows(cu_seqlens, image_of_text, texts * longest, key.shape[0], keep)
    options = (image_lengths, dropout_p, scale, seed, offset, groups)
    return cross_attention(query.flatten(0, 1), key, value, cu_seqlens, image_of_text, *options).view(query.shape)


def forward(
    query: Tensor,
    key: Tensor,
    value: Tensor | None,
    groups: Sequence[Tensor],
    image_lengths: Tensor | None,
    seed: Tensor | None,
    offset: Tensor | None,
    dropout_p: float,
    scale: float,
    tile_rows: int,
) -> tuple[Tensor, Tensor]:
    """Output (T, H, D) and statistics (T, H, 2).

    The statistics of a row give its probabilities again, ``2 ** (score * log2(e) - shift) / sum``: shift and sum,
    float32 (float64 in float64). The shift is the maximal score times log2(e); (0, 0) where no key is seen.
    """
    key, value = split_key_value(key, value)
    texts = _Texts(RowGroups(*groups), key.shape[0])
    dtype = torch.promote_types(query.dtype, torch.float32)
    if texts.row.numel() == 0 or key.shape[1] == 0:
        return query.new_zeros(query.shape), query.new_zeros(*query.shape[:2], 2, dtype=dtype)
    attention = _Attention(query, key, texts, image_lengths, seed, offset, dropout_p, scale)
    scores = attention.scores.to(dtype).transpose(1, 2)
    maximum = scores.amax(-1, keepdim=True)
    maximum = maximum.where(maximum > -torch.inf, 0.0)
    total = (scores - maximum).exp().sum(-1, keepdim=True)
    out = torch.einsum("shnl,slhd->snhd", attention.probability * attention.factor, attention.seen(value))
    return texts.pack(out), texts.pack(torch.cat([maximum * LOG2E, total], dim=-1))


def backward(
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor | None,
    out: Tensor,
    statistics: Tensor,
    groups: Sequence[Tensor],
    image_lengths: Tensor | None,
    seed: Tensor | None,
    offset: Tensor | None,
    dropout_p: float,
    scale: float,
    tile_rows: int,
) -> tuple[Tensor, Tensor]:
    """Gradient of the query (T, H, D), and of keys and values together (B, L, 2, H, D)."""
    key, value = split_key_value(key, value)
    texts = _Texts(RowGroups(*groups), key.shape[0])
    grad_key_value = key.new_zeros(key.shape[0], key.shape[1], 2, *key.shape[2:])
    if texts.row.numel() == 0:
        return query.new_zeros(query.shape), grad_key_value
    attention = _Attention(query, key, texts, image_lengths, seed, offset, dropout_p, scale)
    grad_out_padded = texts.unpack(grad_out)
    grad_p = torch.einsum("snhd,slhd->shnl", grad_out_padded, attention.seen(value)) * attention.factor
    delta = (grad_out_padded * texts.unpack(out)).sum(-1).transpose(1, 2)[..., None]
    grad_scores = attention.probability * (grad_p - delta) * scale
    grad_query = texts.pack(torch.einsum("shnl,slhd->snhd", grad_scores, attention.seen(key)))
    grad_key = torch.einsum("shnl,snhd->slhd", grad_scores, texts.unpack(query))
    grad_value = torch.einsum("shnl,snhd->slhd", attention.probability * attention.factor, grad_out_padded)
    per_text = torch.stack([grad_key, grad_value], dim=2)
    return grad_query, grad_key_value.index_put((texts.image,), per_text, accumulate=True)

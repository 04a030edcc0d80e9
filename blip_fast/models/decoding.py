"""Token-by-token decoding without repeated work: image keys projected once, token keys never moved.

Keys and values of the image are projected once and shared by all its texts. Those of the tokens lie in a static cache; a text
finds its past by its ancestry, the row that wrote each position, so that re-ordering beams moves a few integers.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from blip_fast.models.text import key_value, split_heads
from blip_fast.ops import cross_attention
from blip_fast.reference.attention import causal_mask
from blip_fast.reference.decoder import TextDecoder
from blip_fast.reference.text import TextLayer


class DecodingSession:
    """Decodes ``copies`` texts for each of B images (or questions), states (B, L, state_width)."""

    def __init__(self, decoder: TextDecoder, states: Tensor, copies: int, max_length: int) -> None:
        self.decoder = decoder
        self.layers = decoder.bert.encoder.layer
        rows, heads = states.shape[0] * copies, self.layers[0].attention.self.heads
        self.image_of_row = torch.arange(states.shape[0], device=states.device).repeat_interleave(copies)
        self.projected = [key_value(layer.crossattention.self, states) for layer in self.layers]
        depth = self.layers[0].attention.self.query.out_features // heads
        shape = (len(self.layers), 2, rows, max_length, heads, depth)
        self.cache = torch.empty(shape, dtype=states.dtype, device=states.device)
        self.ancestry = torch.arange(rows, device=states.device)[:, None].repeat(1, max_length)
        self.length = 0

    def step(self, tokens: Tensor) -> Tensor:
        """Append tokens (R, n); returns the logits (R, vocabulary) of the token after them."""
        rows, count = tokens.shape
        hidden = self.decoder.bert.embeddings(tokens, first_position=self.length)
        self.length += count
        mask = causal_mask(tokens.new_ones(rows, self.length), hidden.dtype, count) if count > 1 else None
        cu_seqlens = torch.arange(0, rows * count + 1, count, dtype=torch.int32, device=tokens.device)
        for index, layer in enumerate(self.layers):
            hidden = self.self_attention(index, layer, hidden, mask)
            hidden = self.image_attention(index, layer, hidden.flatten(0, 1), cu_seqlens).view_as(hidden)
            hidden = layer.output(layer.intermediate(hidden), hidden)
        return self.decoder.cls(hidden[:, -1])

    def self_attention(self, index: int, layer: TextLayer, hidden: Tensor, mask: Tensor | None) -> Tensor:
        """Self-attention sub-layer of the newest tokens, hidden (R, n, width), over all tokens of their texts."""
        module, start, end = layer.attention.self, self.length - hidden.shape[1], self.length
        query = split_heads(module.query(hidden), module.heads).transpose(1, 2)
        keys, values = self.cache[index]
        keys[:, start:end] = split_heads(module.key(hidden), module.heads)
        values[:, start:end] = split_heads(module.value(hidden), module.heads)
        positions = torch.arange(end, device=hidden.device)
        past = (self.ancestry[:, :end], positions)
        key, value = keys[past].transpose(1, 2), values[past].transpose(1, 2)
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return layer.attention.output(attended.transpose(1, 2).flatten(2), hidden)

    def image_attention(self, index: int, layer: TextLayer, hidden: Tensor, cu_seqlens: Tensor) -> Tensor:
        """Cross-attention sub-layer of rows (R * n, width)."""
        module = layer.crossattention.self
        query = split_heads(module.query(hidden), module.heads)
        attended = cross_attention(query, self.projected[index], None, cu_seqlens, self.image_of_row)
        return layer.crossattention.output(attended.flatten(1), hidden)

    def reorder(self, rows: Tensor) -> None:
        """Let text r continue text ``rows[r]``; both must belong to the same image."""
        self.ancestry[:, : self.length] = self.ancestry[rows, : self.length]

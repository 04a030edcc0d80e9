"""Token-by-token decoding without repeated work: image keys projected once, token keys never moved.

Keys and values of the image are projected once and shared by all its texts. Those of the tokens lie in a static cache; a text
finds its past by its ancestry, the slot that each position was written to, so that re-ordering beams moves a few integers
and a finished text leaves without a copy.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blip_fast.generation.prompts import Prompts
from blip_fast.ops import cross_attention, group_rows
from blip_fast.reference.decoder import TextDecoder
from blip_fast.reference.row_groups import RowGroups
from blip_fast.reference.text import AttentionCore, TextLayer


class DecodingSession:
    """Decodes ``copies`` texts for each of B images (or questions).

    :meth:`prefill` reads the prompts, once per image; from then on R = B * copies texts, image after image, take a step
    each. Every text keeps a slot of the cache to the end; texts may differ in length.
    """

    def __init__(self, decoder: TextDecoder, states: Tensor, copies: int, max_length: int) -> None:
        """States (B, L, state_width) are what the texts look at."""
        self.decoder, self.copies = decoder, copies
        self.layers: list[TextLayer] = list(decoder.bert.encoder.layer)
        images, self.device = states.shape[0], states.device
        self.images = images
        self.projected = [project(layer.crossattention.self, states) for layer in self.layers]
        heads, width = self.layers[0].attention.self.heads, self.layers[0].attention.self.query.out_features
        shape = (len(self.layers), 2, images * copies, max_length, heads, width // heads)
        self.cache = torch.empty(shape, dtype=states.dtype, device=states.device)
        self.slots = torch.arange(images * copies, device=states.device)
        self.ancestry = self.slots[:, None].repeat(1, max_length)
        self.image_of_row = self.slots // copies
        self.lengths = torch.zeros_like(self.slots)
        self.longest, self.uniform = 0, True

    def prefill(self, prompts: Prompts) -> Tensor:
        """Read the prompts of the B images; returns the logits (B, V) of their next tokens."""
        width = prompts.ids.shape[1]
        self.longest, self.uniform = width, bool((prompts.lengths == width).all())
        first = torch.arange(self.images, device=self.device) * self.copies
        positions = torch.arange(width, device=self.device)
        hidden = self.embed(prompts.ids, positions.expand_as(prompts.ids))
        own = torch.arange(self.images, device=self.device)
        groups = group_rows(bounds(self.images, width, self.device), own, self.images * width, self.images)
        for index, layer in enumerate(self.layers):
            module, (keys, values) = layer.attention.self, self.cache[index]
            query, key, value = (split_heads(part(hidden), module.heads) for part in projections(module))
            keys[first, :width], values[first, :width] = key, value
            attended = attend(query, key, value, causal=True)
            hidden = layer.attention.output(attended, hidden)
            hidden = self.look_and_think(index, hidden.flatten(0, 1), groups).view_as(hidden)
        written = positions < prompts.lengths.repeat_interleave(self.copies)[:, None]
        shared = first.repeat_interleave(self.copies)[:, None]
        self.ancestry[:, :width] = torch.where(written, shared, self.slots[:, None])
        self.lengths.copy_(prompts.lengths.repeat_interleave(self.copies))
        last = prompts.lengths[:, None, None] - 1
        return self.decoder.cls(hidden.gather(1, last.expand(-1, 1, hidden.shape[2]))[:, 0])

    def step(self, tokens: Tensor) -> Tensor:
        """Append tokens (R,) to the texts; returns the logits (R, V) of their next tokens."""
        rows = tokens.shape[0]
        self.longest += 1
        hidden = self.embed(tokens, self.lengths)
        positions = torch.arange(self.longest, device=self.device)
        past = (self.ancestry[:, : self.longest], positions)
        mask = None if self.uniform else (positions <= self.lengths[:, None])[:, None, None]
        groups = group_rows(bounds(rows, 1, self.device), self.image_of_row, rows, self.images)
        for index, layer in enumerate(self.layers):
            module, (keys, values) = layer.attention.self, self.cache[index]
            query, key, value = (split_heads(part(hidden), module.heads) for part in projections(module))
            keys[self.slots, self.lengths], values[self.slots, self.lengths] = key, value
            attended = attend(query[:, None], keys[past], values[past], mask)[:, 0]
            hidden = layer.attention.output(attended, hidden)
            hidden = self.look_and_think(index, hidden, groups)
        self.lengths += 1
        return self.decoder.cls(hidden)

    def reorder(self, parents: Tensor) -> None:
        """Let text r continue text ``parents[r]`` of the same image, whose length is the same."""
        columns = torch.arange(self.ancestry.shape[1], device=self.device)
        own = columns >= self.lengths[:, None]
        self.ancestry = torch.where(own, self.slots[:, None], self.ancestry.index_select(0, parents))

    def keep(self, rows: Tensor) -> None:
        """Go on with texts ``rows`` only, in that order."""
        self.slots, self.lengths = self.slots.index_select(0, rows), self.lengths.index_select(0, rows)
        self.ancestry, self.image_of_row = self.ancestry.index_select(0, rows), self.image_of_row.index_select(0, rows)

    def embed(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Word plus position embeddings, normalised; tokens and positions have any shape."""
        module = self.decoder.bert.embeddings
        return module.LayerNorm(module.word_embeddings(tokens) + module.position_embeddings(positions))

    def look_and_think(self, index: int, hidden: Tensor, groups: RowGroups) -> Tensor:
        """Cross-attention and MLP of layer ``index`` for rows (R, width)."""
        layer = self.layers[index]
        module = layer.crossattention.self
        query = split_heads(module.query(hidden), module.heads)
        attended = cross_attention(
            query, *self.projected[index], groups.cu_seqlens, groups.image_of_text, groups=groups
        )
        hidden = layer.crossattention.output(attended.flatten(1), hidden)
        return layer.output(layer.intermediate(hidden), hidden)


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
    """Attention from query (R, n, H, D) to key and value (R, N, H, D): (R, n, H * D)."""
    query, key, value = (tensor.transpose(1, 2) for tensor in (query, key, value))
    attended = F.scaled_dot_product_attention(query, key, value, mask, is_causal=causal)
    return attended.transpose(1, 2).flatten(2)


def projections(module: AttentionCore) -> tuple[nn.Linear, nn.Linear, nn.Linear]:
    """The layers that make query, key and value."""
    return module.query, module.key, module.value


def project(module: AttentionCore, states: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values (B, L, H, D) of states (B, L, state_width)."""
    return split_heads(module.key(states), module.heads), split_heads(module.value(states), module.heads)


def split_heads(states: Tensor, heads: int) -> Tensor:
    """(..., H * D) -> (..., H, D)."""
    return states.unflatten(-1, (heads, -1))


def bounds(texts: int, length: int, device: torch.device) -> Tensor:
    """(S + 1,) int32 first rows of texts of one length."""
    return torch.arange(0, texts * length + 1, length, dtype=torch.int32, device=device)

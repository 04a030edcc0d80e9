"""Token-by-token decoding without repeated work: image keys projected once, token keys never moved.

Keys and values of the image are projected once and shared by all its texts. Those of the tokens lie in a static cache; a text
finds its past by its ancestry, the slot that each position was written to, so that re-ordering beams moves a few integers
and a finished text leaves without a copy.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from blip_fast.generation.prompts import Prompts
from blip_fast.ops import group_rows
from blip_fast.ops.decode_layer import layer_kernel
from blip_fast.ops.linear import MANY_ROWS, linear_layers
from blip_fast.ops.registry import OPERATIONS
from blip_fast.reference.decode_layer import LayerParameters
from blip_fast.reference.decoder import TextDecoder
from blip_fast.reference.row_groups import RowGroups, tile_rows
from blip_fast.reference.text import AttentionCore, ResidualOutput, TextLayer


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
        self.linear = linear_layers(states)
        self.look = OPERATIONS["cross_attention"].resolve(states)
        self.projected = [self.project(layer.crossattention.self, states) for layer in self.layers]
        heads = self.projected[0][0].shape[-2:]  # H, D
        shape = (len(self.layers), 2, images * copies, max_length, *heads)
        self.cache = torch.zeros(shape, dtype=self.projected[0][0].dtype, device=states.device)
        self.slots = torch.arange(images * copies, device=states.device)
        self.ancestry = self.slots[:, None].repeat(1, max_length)
        self.image_of_row = self.slots // copies
        self.groups = self.group()
        self.parameters = [found for layer in self.layers if (found := LayerParameters.of(layer))]
        plain = len(self.parameters) == len(self.layers)
        self.kernel = layer_kernel(self.parameters, states) if plain else None
        self.lengths = torch.zeros_like(self.slots)
        self.longest, self.uniform = 0, True

    def prefill(self, prompts: Prompts) -> Tensor:
        """Read the prompts of the B images; returns the logits (B, V) of their next tokens."""
        width = prompts.ids.shape[1]
        self.longest, self.uniform = width, bool((prompts.lengths == width).all())
        own = torch.arange(self.images, device=self.device)
        positions = torch.arange(width, device=self.device)
        groups = group_rows(bounds(self.images, width, self.device), own, self.images * width, self.images)

        def attend_to_prompt(cache: Tensor, *rows: Tensor) -> Tensor:
            query, key, value = (part.unflatten(0, (self.images, width)) for part in rows)
            cache[0][own * self.copies, :width], cache[1][own * self.copies, :width] = key, value
            return attention(query, key, value, causal=True).flatten(0, 1)

        hidden = self.embed(prompts.ids, positions.expand_as(prompts.ids)).flatten(0, 1)
        hidden = self.run_layers(hidden, groups, attend_to_prompt)
        written = positions < prompts.lengths.repeat_interleave(self.copies)[:, None]
        first_slot = self.image_of_row[:, None] * self.copies
        self.ancestry[:, :width] = torch.where(written, first_slot, self.slots[:, None])
        self.lengths.copy_(prompts.lengths.repeat_interleave(self.copies))
        return self.predict(hidden.index_select(0, own * width + prompts.lengths - 1))

    def step(self, tokens: Tensor) -> Tensor:
        """Append tokens (R,) to the texts; returns the logits (R, V) of their next tokens."""
        self.longest += 1
        logits = self.compute(tokens)
        self.lengths.add_(1)
        return logits

    def compute(self, tokens: Tensor) -> Tensor:
        """Logits after tokens (R,) at places ``self.lengths`` of their texts, of which up to ``self.longest`` are looked at."""
        hidden = self.embed(tokens, self.lengths)
        in_parts = self.kernel is None or len(tokens) >= MANY_ROWS  # whose products another kernel may do faster
        return self.predict(self.run_layers_in_parts(hidden) if in_parts else self.run_kernel(hidden))

    def run_kernel(self, hidden: Tensor) -> Tensor:
        """States (R, width) of the texts' new tokens through all layers, each in one call."""
        assert self.kernel is not None
        place, groups = (self.ancestry, self.slots, self.lengths), list(self.groups)
        for index, layer in enumerate(self.layers):
            eps = layer.output.LayerNorm.eps
            hidden = self.kernel(
                hidden, list(self.parameters[index]), self.cache[index], *place, *self.projected[index], groups, eps
            )
        return hidden

    def run_layers_in_parts(self, hidden: Tensor) -> Tensor:
        """The same by the operations that a layer consists of."""
        positions = torch.arange(self.longest, device=self.device)
        past, here = (self.ancestry[:, : self.longest], positions), (self.slots, self.lengths)
        mask = None if self.uniform else (positions <= self.lengths[:, None])[:, None, None]

        def attend_to_past(cache: Tensor, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            cache[0][here], cache[1][here] = key, value
            return attention(query[:, None], cache[0][past], cache[1][past], mask)[:, 0]

        return self.run_layers(hidden, self.groups, attend_to_past)

    def group(self) -> RowGroups:
        """The texts' new tokens, by image."""
        rows = self.slots.shape[0]
        return group_rows(bounds(rows, 1, self.device), self.image_of_row, rows, self.images)

    def reorder(self, parents: Tensor) -> None:
        """Let text r continue text ``parents[r]`` of the same image, whose length is the same."""
        columns = torch.arange(self.ancestry.shape[1], device=self.device)
        own = columns >= self.lengths[:, None]
        self.ancestry.copy_(torch.where(own, self.slots[:, None], self.ancestry.index_select(0, parents)))

    def keep(self, rows: Tensor) -> None:
        """Go on with texts ``rows`` only, in that order."""
        self.slots, self.lengths = self.slots.index_select(0, rows), self.lengths.index_select(0, rows)
        self.ancestry, self.image_of_row = self.ancestry.index_select(0, rows), self.image_of_row.index_select(0, rows)
        self.groups = self.group()
        self.longest = int(self.lengths.max())
        self.uniform = bool((self.lengths == self.longest).all())

    def embed(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Word plus position embeddings, normalised; tokens and positions have any shape."""
        module = self.decoder.bert.embeddings
        return module.LayerNorm(module.word_embeddings(tokens) + module.position_embeddings(positions))

    def run_layers(self, hidden: Tensor, groups: RowGroups, attend: Callable[..., Tensor]) -> Tensor:
        """Rows (T, width) through all layers; ``attend(cache of the layer, query, key, value)`` is the self-attention."""
        for index, layer in enumerate(self.layers):
            module = layer.attention.self
            query, key, value = (
                self.linear(part, hidden, False).unflatten(-1, (module.heads, -1))
                for part in (module.query, module.key, module.value)
            )
            attended = attend(self.cache[index], query, key, value)
            hidden = self.add_norm(layer.attention.output, attended, hidden)
            hidden = self.look_and_think(index, hidden, groups)
        return hidden

    def project(self, module: AttentionCore, states: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (B, L, H, D) of states (B, L, state_width)."""
        key, value = (self.linear(part, states.flatten(0, 1), False) for part in (module.key, module.value))
        shape = (*states.shape[:2], module.heads, -1)
        return key.view(shape), value.view(shape)

    def add_norm(self, module: ResidualOutput, hidden: Tensor, residual: Tensor) -> Tensor:
        """The end of a sub-layer, see `ResidualOutput`."""
        return module.LayerNorm(self.linear(module.dense, hidden, False) + residual)

    def look_and_think(self, index: int, hidden: Tensor, groups: RowGroups) -> Tensor:
        """Cross-attention and MLP of layer ``index`` for rows (R, width)."""
        layer = self.layers[index]
        module = layer.crossattention.self
        query = self.linear(module.query, hidden, False).unflatten(-1, (module.heads, -1))
        tile = tile_rows(hidden.shape[0], self.images)
        scale = query.shape[-1] ** -0.5
        attended, _ = self.look(query, *self.projected[index], list(groups), None, None, None, 0.0, scale, tile)
        hidden = self.add_norm(layer.crossattention.output, attended.flatten(1), hidden)
        return self.add_norm(layer.output, self.linear(layer.intermediate.dense, hidden, True), hidden)

    def predict(self, hidden: Tensor) -> Tensor:
        """Logits (R, V) of rows (R, width)."""
        head = self.decoder.cls.predictions
        transformed = head.transform.LayerNorm(self.linear(head.transform.dense, hidden, True))
        return self.linear(head.decoder, transformed, False)


def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
    """Attention from query (R, n, H, D) to key and value (R, N, H, D): (R, n, H * D)."""
    query, key, value = (tensor.transpose(1, 2) for tensor in (query, key, value))
    attended = F.scaled_dot_product_attention(query, key, value, mask, is_causal=causal)
    return attended.transpose(1, 2).flatten(2)


def bounds(texts: int, length: int, device: torch.device) -> Tensor:
    """(S + 1,) int32 first rows of texts of one length."""
    return torch.arange(0, texts * length + 1, length, dtype=torch.int32, device=device)

"""The text encoder: BERT (arXiv 1810.04805) with a cross-attention to image states in every layer.

One encoder serves two purposes. In mode "text" the cross-attention is skipped and the state of ``[CLS]`` summarises
the text; in mode "multimodal" the text starts with ``[ENC]``, whose state tells whether text and image match.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blip_fast.config import BlipConfig
from blip_fast.reference.attention import attention, cross_mask, merge_heads, padding_mask, split_heads
from blip_fast.reference.recompute import Recompute, recomputed, set_recompute

Mode = Literal["text", "multimodal"]


@dataclass
class KeyValueCache:
    """Self-attention keys and values (R, H, N, D) of the tokens decoded so far, for one layer."""

    key: Tensor | None = None
    value: Tensor | None = None

    def append(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Add the keys and values of new tokens and return all of them."""
        if self.key is not None and self.value is not None:
            key = torch.cat([self.key, key], dim=2)
            value = torch.cat([self.value, value], dim=2)
        self.key, self.value = key, value
        return key, value

    def reorder(self, rows: Tensor) -> None:
        """Keep the given rows, in their order; beam search calls this when beams change places."""
        if self.key is not None and self.value is not None:
            self.key = self.key.index_select(0, rows)
            self.value = self.value.index_select(0, rows)


class TextEmbeddings(nn.Module):
    """Word plus position embeddings, normalised: ids (B, N) -> (B, N, width). There are no token types."""

    position_ids: Tensor

    def __init__(self, config: BlipConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.text_width)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.text_width)
        self.LayerNorm = nn.LayerNorm(config.text_width, eps=config.text_layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout)
        self.register_buffer("position_ids", torch.arange(config.max_position_embeddings)[None])

    def forward(self, input_ids: Tensor, first_position: int = 0) -> Tensor:
        last_position = first_position + input_ids.shape[1]
        if last_position > self.position_ids.shape[1]:
            raise ValueError(
                f"input_ids reach position {last_position}; max_position_embeddings={self.position_ids.shape[1]}"
            )
        positions = self.position_embeddings(self.position_ids[:, first_position:last_position])
        return self.dropout(self.LayerNorm(self.word_embeddings(input_ids) + positions))


class AttentionCore(nn.Module):
    """Query from the text, key and value from the text itself or from other states, then attention."""

    def __init__(self, config: BlipConfig, state_width: int) -> None:
        super().__init__()
        self.heads = config.text_heads
        self.dropout_p = config.attention_dropout
        self.query = nn.Linear(config.text_width, config.text_width)
        self.key = nn.Linear(state_width, config.text_width)
        self.value = nn.Linear(state_width, config.text_width)

    def forward(
        self, hidden: Tensor, states: Tensor, mask: Tensor | None, cache: KeyValueCache | None = None
    ) -> Tensor:
        query = split_heads(self.query(hidden), self.heads)
        key = split_heads(self.key(states), self.heads)
        value = split_heads(self.value(states), self.heads)
        if cache is not None:
            key, value = cache.append(key, value)
        return merge_heads(attention(query, key, value, mask, self.dropout_p if self.training else 0.0))


class ResidualOutput(nn.Module):
    """The end of every sub-layer: linear, dropout, residual sum, LayerNorm (post-norm)."""

    def __init__(self, config: BlipConfig, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, config.text_width)
        self.LayerNorm = nn.LayerNorm(config.text_width, eps=config.text_layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(self, hidden: Tensor, residual: Tensor) -> Tensor:
        return self.LayerNorm(self.dropout(self.dense(hidden)) + residual)


class TextAttention(nn.Module):
    """Self-attention, or cross-attention to ``states`` of width ``state_width``, with its residual."""

    def __init__(self, config: BlipConfig, state_width: int) -> None:
        super().__init__()
        self.self = AttentionCore(config, state_width)
        self.output = ResidualOutput(config, config.text_width)

    def forward(
        self, hidden: Tensor, states: Tensor, mask: Tensor | None, cache: KeyValueCache | None = None
    ) -> Tensor:
        return self.output(self.self(hidden, states, mask, cache), hidden)


class Intermediate(nn.Module):
    """The first half of the MLP: linear and exact GELU."""

    def __init__(self, config: BlipConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.text_width, config.text_intermediate)

    def forward(self, hidden: Tensor) -> Tensor:
        return F.gelu(self.dense(hidden))


class TextLayer(nn.Module):
    """Self-attention, cross-attention (skipped without ``states``), MLP.

    Attributes:
        recompute: what is not kept of the layer for the backward pass; see `blip_fast.reference.recompute`.
    """

    recompute: Recompute | None = None

    def __init__(self, config: BlipConfig, state_width: int) -> None:
        super().__init__()
        self.draws_in_training = config.hidden_dropout > 0.0 or config.attention_dropout > 0.0
        self.attention = TextAttention(config, config.text_width)
        self.crossattention = TextAttention(config, state_width)
        self.intermediate = Intermediate(config)
        self.output = ResidualOutput(config, config.text_intermediate)

    def forward(
        self,
        hidden: Tensor,
        mask: Tensor,
        states: Tensor | None = None,
        state_mask: Tensor | None = None,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        hidden = self.attention(hidden, hidden, mask, cache)
        if states is not None:
            hidden = self.crossattention(hidden, states, state_mask)
        return self.output(self.intermediate(hidden), hidden)

    @property
    def draws(self) -> bool:
        """Whether a forward pass draws random numbers."""
        return self.training and self.draws_in_training


class TextLayers(nn.Module):
    """The stack of layers."""

    def __init__(self, config: BlipConfig, state_width: int) -> None:
        super().__init__()
        self.layer = nn.ModuleList(TextLayer(config, state_width) for _ in range(config.text_layers))

    def forward(
        self,
        hidden: Tensor,
        mask: Tensor,
        states: Tensor | None = None,
        state_mask: Tensor | None = None,
        caches: list[KeyValueCache] | None = None,
    ) -> Tensor:
        for index, layer in enumerate(self.layer):
            cache, mode = (None, layer.recompute) if caches is None else (caches[index], None)
            hidden = recomputed(layer, hidden, mask, states, state_mask, cache, mode=mode, draws=layer.draws)
        return hidden

    def set_grad_checkpointing(self, enable: bool = True, layers: int | None = None, mode: Recompute = "full") -> None:
        """Keep less of the last ``layers`` layers (None: all) for the backward pass, which computes it again.

        Args:
            enable: False keeps everything in all layers.
            layers: how many layers, counted from the last.
            mode: "full" keeps nothing inside of a layer; "selective" keeps the results of linear layers and fused
                attention, and computes norms, activations and dropout again.
        """
        set_recompute(self.layer, enable, layers, mode)


class TextEncoder(nn.Module):
    """Bidirectional text encoder. ``state_width`` is the width of what the cross-attention looks at."""

    def __init__(self, config: BlipConfig, state_width: int | None = None) -> None:
        super().__init__()
        self.embeddings = TextEmbeddings(config)
        self.encoder = TextLayers(config, config.vit_width if state_width is None else state_width)
        self.apply(init_text_weights)

    def set_grad_checkpointing(self, enable: bool = True, layers: int | None = None, mode: Recompute = "full") -> None:
        """As :meth:`TextLayers.set_grad_checkpointing`."""
        self.encoder.set_grad_checkpointing(enable, layers, mode)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        states: Tensor | None = None,
        state_mask: Tensor | None = None,
        mode: Mode = "multimodal",
    ) -> Tensor:
        """ids and mask (B, N), states (B, L, state_width) -> last hidden states (B, N, width).

        ``state_mask`` (B, L) marks real states; None means all. Mode "text" takes no states.
        """
        if (mode == "multimodal") != (states is not None):
            given = "without states" if states is None else "with states"
            raise ValueError(f"mode={mode!r} {given}; only 'multimodal' takes states, and it needs them")
        hidden = self.embeddings(input_ids)
        mask = padding_mask(attention_mask, hidden.dtype)
        return self.encoder(hidden, mask, states, cross_mask(state_mask, hidden.dtype))


def init_text_weights(module: nn.Module) -> None:
    """BERT's initialisation: normal of deviation 0.02 for linear and embedding weights, zero for biases."""
    if isinstance(module, (nn.Linear, nn.Embedding)):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)


def with_first_token(input_ids: Tensor, token_id: int) -> Tensor:
    """A copy of ids (B, N) whose first token is ``token_id``: the task's [ENC] or [DEC] in place of [CLS]."""
    input_ids = input_ids.clone()
    input_ids[:, 0] = token_id
    return input_ids

"""Packed texts through the text transformer, as functions of the reference's modules (which hold the parameters).

Texts run in streams. Streams that share cross-attention and MLP (text encoder and decoder do, paper section 3.1) go through
them together, in one matrix product per weight; each has a self-attention of its own. Image keys and values are projected
once per layer, however many texts look at an image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from blip_fast.checkpoints.pretrained import PretrainedModel
from blip_fast.data.packing import PackedTexts
from blip_fast.ops import (
    cross_attention,
    dropout_add_layer_norm,
    group_rows,
    linear_cross_entropy,
    packed_self_attention,
)
from blip_fast.ops.linear import linear, linear_layer
from blip_fast.reference.decoder import TextDecoder
from blip_fast.reference.linear import is_plain
from blip_fast.reference.recompute import recomputed
from blip_fast.reference.row_groups import RowGroups
from blip_fast.reference.text import (
    AttentionCore,
    ResidualOutput,
    TextAttention,
    TextEmbeddings,
    TextEncoder,
    TextLayer,
)

NO_IMAGE = -1
OFFSETS_PER_LAYER = 16  # more than a layer draws


class AttentionDropout:
    """Dropout of attention probabilities in one forward pass: a Philox seed, and an offset for every attention.

    Dropout of hidden states takes its offsets from it too.
    """

    def __init__(self, probability: float, device: torch.device, seed: Tensor | None = None, offset: int = 0) -> None:
        self.probability, self.device, self.seed, self.offset = probability, device, seed, offset
        if seed is None and probability > 0:
            self.seed = torch.randint(2**62, (1,), device=device)

    @classmethod
    def of(cls, model: PretrainedModel, device: torch.device) -> AttentionDropout:
        """That of a model's next forward pass; none outside of training."""
        return cls(model.config.attention_dropout if model.training else 0.0, device)

    def take(self, layers: int) -> int:
        """First offset of so many layers, which no later call hands out again."""
        first = self.offset
        self.offset += layers * OFFSETS_PER_LAYER
        return first

    def at(self, offset: int) -> AttentionDropout:
        """The same seed from this offset on: a layer that is computed again drops the same."""
        return AttentionDropout(self.probability, self.device, self.seed, offset)

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of the next attention."""
        return {} if self.seed is None else {"dropout_p": self.probability, **self.draw()}

    def draw(self) -> dict[str, Any]:
        """Seed and offset of the next operation that drops; none where attention drops nothing: it draws a seed itself."""
        if self.seed is None:
            return {}
        self.offset += 1
        return {"seed": self.seed, "offset": self.offset}


@dataclass
class Stream:
    """S texts that go through the layers.

    Attributes:
        texts: their layout.
        attention: the self-attention of each layer.
        hidden: (T, width) states before the first layer.
        image_of_text: (S,) index of the image that each text looks at; None where no text looks at one.
        causal: tokens see themselves and earlier ones only.
        first_only: only the first token's state is wanted, so that the last layer computes nothing else.
    """

    texts: PackedTexts
    attention: Sequence[TextAttention]
    hidden: Tensor
    image_of_text: Tensor | None = None
    causal: bool = False
    first_only: bool = False

    def pad(self, states: Tensor) -> Tensor:
        """(T, H, D) -> (S, H, N, D), with anything behind the end of a text."""
        rows = self.texts.padded_rows()
        return states.index_select(0, rows.flatten()).unflatten(0, rows.shape).transpose(1, 2)


def encoder_stream(
    encoder: TextEncoder, texts: PackedTexts, image_of_text: Tensor | None = None, first_only: bool = True
) -> Stream:
    """Texts through the text encoder."""
    attention = [layer.attention for layer in encoder.encoder.layer]
    return Stream(texts, attention, embed(encoder.embeddings, texts), image_of_text, first_only=first_only)


def decoder_stream(decoder: TextDecoder, texts: PackedTexts, image_of_text: Tensor) -> Stream:
    """Texts through the decoder's causal self-attention."""
    attention = [layer.attention for layer in decoder.bert.encoder.layer]
    return Stream(texts, attention, embed(decoder.bert.embeddings, texts), image_of_text, causal=True)


def token_losses(decoder: TextDecoder, hidden: Tensor, labels: Tensor, smoothing: float, reduction: str) -> Tensor:
    """Label-smoothed cross-entropy of the decoder's final states (T, width) against labels (T,), -100 for none."""
    head = decoder.cls.predictions
    transformed = head.transform.LayerNorm(linear_layer(head.transform.dense, hidden, gelu=True))
    if not is_plain(head.decoder):
        return F.cross_entropy(head.decoder(transformed), labels, label_smoothing=smoothing, reduction=reduction)
    weight, bias = head.decoder.weight, head.bias
    return linear_cross_entropy(transformed, weight, bias, labels, smoothing, reduction=reduction)


def look_up(module: TextEmbeddings, texts: PackedTexts, *first_tokens: int) -> list[PackedTexts]:
    """The texts, and once more with each of these first tokens, with the embeddings of their words.

    For texts that go through the layers several times: each look-up in the vocabulary has a gradient of its size (94 MB).
    """
    rows = texts.input_ids.shape[0]
    ids = torch.cat([texts.input_ids, *(texts.input_ids.new_full((1,), token) for token in first_tokens)])
    words = F.embedding(ids, module.word_embeddings.weight)
    own = replace(texts, input_ids=torch.arange(rows, device=ids.device), words=words)
    return [own, *(own.with_first_token(rows + index) for index in range(len(first_tokens)))]


def embed(module: TextEmbeddings, texts: PackedTexts) -> Tensor:
    """Word plus position embeddings, normalised: (T, width)."""
    if texts.max_length > module.position_embeddings.num_embeddings:
        raise ValueError(
            f"texts have up to {texts.max_length} tokens; max_position_embeddings={module.position_embeddings.num_embeddings}"
        )
    words = F.embedding(texts.input_ids, module.word_embeddings.weight if texts.words is None else texts.words)
    positions = F.embedding(texts.positions, module.position_embeddings.weight)
    return module.dropout(module.LayerNorm(words + positions))


class Look(Protocol):
    """What a layer does between self-attention and MLP: a cross-attention to the states of ``images`` images."""

    @property
    def images(self) -> int:
        """How many images there are."""

    def __call__(self, layer: TextLayer, hidden: Tensor, layout: Layout, dropout: AttentionDropout) -> Tensor:
        """Hidden rows (R, width) -> the same, with what they saw."""


def run_layers(
    layers: Sequence[TextLayer], streams: list[Stream], dropout: AttentionDropout, look: Look | None = None
) -> list[Tensor]:
    """Final states of each stream: (T, width), or (S, width) with ``first_only``.

    ``layers`` give the cross-attention, which ``look`` applies, and the MLP; without ``look`` texts see no image.
    """
    layouts = [join(streams, look.images, last) for last in (False, True)] if look is not None else [None, None]
    hidden, offset = [stream.hidden for stream in streams], dropout.take(len(layers))
    for index, layer in enumerate(layers):
        last = index == len(layers) - 1
        layout = layouts[int(last)]  # an index of type bool cannot be traced by torch 2.11
        step = LayerStep(streams, index, last, dropout, offset + index * OFFSETS_PER_LAYER, look, layout)
        hidden = recomputed(step, layer, *hidden, mode=layer.recompute, draws=layer.draws)
    return hidden


@dataclass(frozen=True, eq=False)  # torch 2.11 traces no call of an object that is hashed by its fields
class LayerStep:
    """What one layer needs beside its weights and the hidden states of each stream."""

    streams: list[Stream]
    index: int
    last: bool
    dropout: AttentionDropout
    offset: int
    look: Look | None
    layout: Layout | None

    def __call__(self, layer: TextLayer, *hidden: Tensor) -> list[Tensor]:
        dropout = self.dropout.at(self.offset)
        parts = []
        for stream, states in zip(self.streams, hidden, strict=True):
            attend = self_attention_first if self.last and stream.first_only else self_attention
            parts.append(attend(stream.attention[self.index], stream, states, dropout))
        sizes = [part.shape[0] for part in parts]
        joined = parts[0] if len(parts) == 1 else torch.cat(parts)
        if self.look is not None and self.layout is not None:
            joined = self.look(layer, joined, self.layout, dropout)
        thought = linear_layer(layer.intermediate.dense, joined, gelu=True)
        return list(residual_output(layer.output, thought, joined, dropout).split(sizes))


def self_attention(module: TextAttention, stream: Stream, hidden: Tensor, dropout: AttentionDropout) -> Tensor:
    """Self-attention sub-layer for all tokens, hidden (T, width) -> (T, width)."""
    query, key, value = (
        split_heads(linear_layer(part, hidden), module.self.heads)
        for part in (module.self.query, module.self.key, module.self.value)
    )
    texts = stream.texts
    attended = packed_self_attention(
        query, key, value, texts.cu_seqlens, texts.max_length, stream.causal, **dropout.arguments()
    )
    return residual_output(module.output, attended.flatten(1), hidden, dropout)


def self_attention_first(module: TextAttention, stream: Stream, hidden: Tensor, dropout: AttentionDropout) -> Tensor:
    """Self-attention sub-layer for the first token of each text, which sees all of it: hidden (T, width) -> (S, width).

    One query a text: keys and values are padded for torch's dense attention.
    """
    first = hidden.index_select(0, stream.texts.first_rows)
    query = split_heads(linear_layer(module.self.query, first), module.self.heads)[:, :, None]
    key, value = (
        stream.pad(split_heads(linear_layer(part, hidden), module.self.heads))
        for part in (module.self.key, module.self.value)
    )
    mask = stream.texts.padded_mask()[:, None, None]
    attended = F.scaled_dot_product_attention(query, key, value, mask, dropout.probability)
    return residual_output(module.output, attended.flatten(1), first, dropout)


def residual_output(module: ResidualOutput, hidden: Tensor, residual: Tensor, dropout: AttentionDropout) -> Tensor:
    """The end of a sub-layer for rows (R, width): linear, dropout, residual sum, LayerNorm."""
    norm, probability = module.LayerNorm, module.dropout.p if module.training else 0.0
    numbers = dropout.draw() if probability > 0 else {}
    return dropout_add_layer_norm(
        linear_layer(module.dense, hidden), residual, norm.weight, norm.bias, norm.eps, probability, **numbers
    )


@dataclass(frozen=True)
class Layout:
    """Which rows look at which image, over all streams: cu_seqlens (S + 1,), image_of_text (S,), and rows by image."""

    cu_seqlens: Tensor
    image_of_text: Tensor
    groups: RowGroups


def join(streams: list[Stream], images: int, last: bool) -> Layout:
    """The texts of all streams in one layout. Fill between two streams becomes a text that looks at no image."""
    bounds_of, images_of, start = [], [], 0
    for stream in streams:
        texts, image_of_text = stream.texts, stream.image_of_text
        if image_of_text is None:
            raise ValueError("a stream has no image_of_text; expected the image that each of its texts looks at")
        only_first = last and stream.first_only
        bounds = torch.arange(texts.count + 1, device=texts.cu_seqlens.device) if only_first else texts.cu_seqlens
        has_fill = not (only_first or texts.exact)
        bounds_of.append((bounds if has_fill or stream is streams[-1] else bounds[:-1]).to(torch.int32) + start)
        images_of.append(image_of_text)
        if has_fill and stream is not streams[-1]:
            images_of.append(torch.full_like(image_of_text[:1], NO_IMAGE))
        start += texts.count if only_first else texts.input_ids.shape[0]
    cu_seqlens, image_of_text = torch.cat(bounds_of), torch.cat(images_of)
    return Layout(cu_seqlens, image_of_text, group_rows(cu_seqlens, image_of_text, start, images))


@dataclass
class LookAt:
    """Cross-attention to states (B, L, state_width), of which the first ``lengths`` (B,) are real (None: all)."""

    states: Tensor
    lengths: Tensor | None = None

    @property
    def images(self) -> int:
        """B."""
        return self.states.shape[0]

    def __call__(self, layer: TextLayer, hidden: Tensor, layout: Layout, dropout: AttentionDropout) -> Tensor:
        module = layer.crossattention
        attended = attend_states(module.self, hidden, self.states, layout, dropout, self.lengths)
        return residual_output(module.output, attended, hidden, dropout)


def attend_states(
    module: AttentionCore,
    hidden: Tensor,
    states: Tensor,
    layout: Layout,
    dropout: AttentionDropout,
    lengths: Tensor | None = None,
) -> Tensor:
    """Attention of rows (R, width) to states (B, L, state_width), whose keys and values are projected once: (R, width)."""
    attended = cross_attention(
        split_heads(linear_layer(module.query, hidden), module.heads),
        *key_value(module, states),
        layout.cu_seqlens,
        layout.image_of_text,
        image_lengths=lengths,
        groups=layout.groups,
        **dropout.arguments(),
    )
    return attended.flatten(1)


def key_value(module: AttentionCore, states: Tensor) -> tuple[Tensor, Tensor | None]:
    """Keys and values of states (B, L, state_width), (B, L, H, D) each; with gradient as one tensor (B, L, 2, H, D).

    One product with joined weights has one gradient; without gradient the copies of the weights would be for nothing.
    """
    if not torch.is_grad_enabled() or not (is_plain(module.key) and is_plain(module.value)):
        key, value = (split_heads(linear_layer(part, states), module.heads) for part in (module.key, module.value))
        return key, value
    weight = torch.cat([module.key.weight, module.value.weight])
    bias = torch.cat([module.key.bias, module.value.bias])
    return linear(states, weight, bias).unflatten(-1, (2, module.heads, -1)), None


def split_heads(states: Tensor, heads: int) -> Tensor:
    """(..., H * D) -> (..., H, D)."""
    return states.unflatten(-1, (heads, -1))

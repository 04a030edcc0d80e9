"""Packed texts through the text transformer, as functions of the reference's modules (which hold the parameters).

Texts run in streams. Streams that share cross-attention and MLP (text encoder and decoder do, paper section 3.1) go through
them together, in one matrix product per weight; each has a self-attention of its own. Image keys and values are projected
once per layer, however many texts look at an image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from blip_fast.models.packing import PackedTexts
from blip_fast.ops import cross_attention, linear_cross_entropy, packed_self_attention
from blip_fast.reference.decoder import TextDecoder
from blip_fast.reference.text import AttentionCore, TextAttention, TextEmbeddings, TextEncoder, TextLayer


class AttentionDropout:
    """Dropout of attention probabilities in one forward pass: a Philox seed, and an offset for every attention."""

    def __init__(self, probability: float, device: torch.device) -> None:
        self.probability = probability
        self.seed = torch.randint(2**62, (1,), device=device) if probability > 0 else None
        self.offset = 0

    def arguments(self) -> dict[str, object]:
        """Keyword arguments of the next attention."""
        if self.seed is None:
            return {}
        self.offset += 1
        return {"dropout_p": self.probability, "seed": self.seed, "offset": self.offset}


@dataclass
class Stream:
    """S texts on their way through the layers.

    Attributes:
        texts: their layout.
        attention: the self-attention of each layer.
        hidden: (T, width) states.
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
    weight, bias = head.decoder.weight, head.bias
    return linear_cross_entropy(head.transform(hidden), weight, bias, labels, smoothing, reduction=reduction)


def embed(module: TextEmbeddings, texts: PackedTexts) -> Tensor:
    """Word plus position embeddings, normalised: (T, width)."""
    words = F.embedding(texts.input_ids, module.word_embeddings.weight)
    positions = F.embedding(texts.positions, module.position_embeddings.weight)
    return module.dropout(module.LayerNorm(words + positions))


# What a layer does between self-attention and MLP: (layer, hidden (T, width), which rows look at which image) -> hidden.
Look = Callable[[TextLayer, Tensor, "Layout"], Tensor]


def run_layers(
    layers: Sequence[TextLayer], streams: list[Stream], dropout: AttentionDropout, look: Look | None = None
) -> list[Tensor]:
    """Final states of each stream: (T, width), or (S, width) with ``first_only``.

    ``layers`` give the cross-attention, which ``look`` applies, and the MLP; without ``look`` texts see no image.
    """
    layouts = (join(streams, last=False), join(streams, last=True)) if look is not None else None
    for index, layer in enumerate(layers):
        last = index == len(layers) - 1
        for stream in streams:
            attend = self_attention_first if last and stream.first_only else self_attention
            stream.hidden = attend(stream.attention[index], stream, dropout)
        sizes = [stream.hidden.shape[0] for stream in streams]
        hidden = streams[0].hidden if len(streams) == 1 else torch.cat([stream.hidden for stream in streams])
        if look is not None and layouts is not None:
            hidden = look(layer, hidden, layouts[last])
        hidden = layer.output(layer.intermediate(hidden), hidden)
        for stream, part in zip(streams, hidden.split(sizes), strict=True):
            stream.hidden = part
    return [stream.hidden for stream in streams]


def self_attention(module: TextAttention, stream: Stream, dropout: AttentionDropout) -> Tensor:
    """Self-attention sub-layer for all tokens, (T, width)."""
    query, key, value = (
        split_heads(linear(stream.hidden), module.self.heads)
        for linear in (module.self.query, module.self.key, module.self.value)
    )
    texts = stream.texts
    attended = packed_self_attention(
        query, key, value, texts.cu_seqlens, texts.max_length, causal=stream.causal, **dropout.arguments()
    )
    return module.output(attended.flatten(1), stream.hidden)


def self_attention_first(module: TextAttention, stream: Stream, dropout: AttentionDropout) -> Tensor:
    """Self-attention sub-layer for the first token of each text, which sees the whole text: (S, width)."""
    heads, texts = module.self.heads, stream.texts
    first = stream.hidden.index_select(0, texts.first_rows)
    query = split_heads(module.self.query(first), heads)
    key = split_heads(module.self.key(stream.hidden), heads)
    value = split_heads(module.self.value(stream.hidden), heads)
    # one query per text: padding the keys costs little, and the dense kernel is fast
    columns = torch.arange(texts.max_length, device=key.device)
    rows = (texts.first_rows[:, None] + columns).clamp(max=key.shape[0] - 1)
    mask = columns < texts.cu_seqlens.diff()[:, None]
    key, value = (
        states.index_select(0, rows.flatten()).unflatten(0, rows.shape).transpose(1, 2) for states in (key, value)
    )
    attended = F.scaled_dot_product_attention(
        query[:, :, None], key, value, attn_mask=mask[:, None, None], dropout_p=dropout.probability
    )
    return module.output(attended.flatten(1), first)


@dataclass(frozen=True)
class Layout:
    """Which rows look at which image: cu_seqlens (S + 1,) and image_of_text (S,) over all streams."""

    cu_seqlens: Tensor
    image_of_text: Tensor


def join(streams: list[Stream], last: bool) -> Layout:
    """The texts of all streams in one layout. Fill between two streams becomes a text of its own that nobody reads."""
    cu_seqlens, images, start = [], [], 0
    for stream in streams:
        assert stream.image_of_text is not None
        texts = stream.texts
        only_first = last and stream.first_only
        bounds = torch.arange(len(texts) + 1, device=texts.cu_seqlens.device) if only_first else texts.cu_seqlens
        has_fill = not (only_first or texts.exact)
        keep_end = has_fill or stream is streams[-1]
        cu_seqlens.append((bounds if keep_end else bounds[:-1]).to(torch.int32) + start)
        images.append(stream.image_of_text)
        if has_fill and stream is not streams[-1]:
            images.append(torch.zeros_like(stream.image_of_text[:1]))
        start += len(texts) if only_first else texts.input_ids.shape[0]
    return Layout(torch.cat(cu_seqlens), torch.cat(images))


def look_at(states: Tensor, dropout: AttentionDropout, lengths: Tensor | None = None) -> Look:
    """Cross-attention to states (B, L, state_width), of which the first ``lengths`` (B,) are real (None: all)."""

    def look(layer: TextLayer, hidden: Tensor, layout: Layout) -> Tensor:
        module = layer.crossattention
        return module.output(attend_states(module.self, hidden, states, layout, dropout, lengths), hidden)

    return look


def attend_states(
    module: AttentionCore,
    hidden: Tensor,
    states: Tensor,
    layout: Layout,
    dropout: AttentionDropout,
    lengths: Tensor | None = None,
) -> Tensor:
    """Attention of rows (T, width) to states (B, L, state_width), whose keys and values are projected once: (T, width)."""
    attended = cross_attention(
        split_heads(module.query(hidden), module.heads),
        split_heads(module.key(states), module.heads),
        split_heads(module.value(states), module.heads),
        layout.cu_seqlens,
        layout.image_of_text,
        image_lengths=lengths,
        **dropout.arguments(),
    )
    return attended.flatten(1)


def split_heads(states: Tensor, heads: int) -> Tensor:
    """(..., H * D) -> (..., H, D)."""
    return states.unflatten(-1, (heads, -1))

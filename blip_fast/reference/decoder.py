"""The text decoder: the text transformer with causal self-attention and a language-modelling head."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blip_fast.config import BlipConfig
from blip_fast.reference.attention import causal_mask, cross_mask
from blip_fast.reference.recompute import Recompute
from blip_fast.reference.text import KeyValueCache, TextEmbeddings, TextEncoder, TextLayers, init_text_weights

IGNORED = -100  # label of a position without a target


class HeadTransform(nn.Module):
    """Linear, exact GELU, LayerNorm before the vocabulary projection."""

    def __init__(self, config: BlipConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.text_width, config.text_width)
        self.LayerNorm = nn.LayerNorm(config.text_width, eps=config.text_layer_norm_eps)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.LayerNorm(F.gelu(self.dense(hidden)))


class Predictions(nn.Module):
    """Hidden states (..., width) -> logits (..., vocabulary). The bias exists under two names, as published."""

    def __init__(self, config: BlipConfig) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))
        self.transform = HeadTransform(config)
        self.decoder = nn.Linear(config.text_width, config.vocab_size)
        self.decoder.bias = self.bias

    def forward(self, hidden: Tensor) -> Tensor:
        return self.decoder(self.transform(hidden))


class LanguageHead(nn.Module):
    """Holds the predictions under their published name, ``cls.predictions``."""

    def __init__(self, config: BlipConfig) -> None:
        super().__init__()
        self.predictions = Predictions(config)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.predictions(hidden)


class DecoderBody(nn.Module):
    """Embeddings and layers under their published name, ``bert``."""

    def __init__(self, config: BlipConfig, state_width: int) -> None:
        super().__init__()
        self.embeddings = TextEmbeddings(config)
        self.encoder = TextLayers(config, state_width)


class TextDecoder(nn.Module):
    """Causal decoder that looks at states of width ``state_width``; output weights are the word embeddings."""

    def __init__(self, config: BlipConfig, state_width: int | None = None) -> None:
        super().__init__()
        self.bert = DecoderBody(config, config.vit_width if state_width is None else state_width)
        self.cls = LanguageHead(config)
        self.apply(init_text_weights)
        self.tie_output()

    def set_grad_checkpointing(self, enable: bool = True, layers: int | None = None, mode: Recompute = "full") -> None:
        """As :meth:`blip_fast.reference.text.TextLayers.set_grad_checkpointing`."""
        self.bert.encoder.set_grad_checkpointing(enable, layers, mode)

    def tie_output(self) -> None:
        """Let the vocabulary projection use the word embeddings."""
        self.cls.predictions.decoder.weight = self.bert.embeddings.word_embeddings.weight

    def tie_to_encoder(self, text_encoder: TextEncoder) -> None:
        """Share everything with the encoder except self-attention (paper section 3.1) and its output projection."""
        self.bert.embeddings = text_encoder.embeddings
        for own, shared in zip(self.bert.encoder.layer, text_encoder.encoder.layer, strict=True):
            own.crossattention = shared.crossattention
            own.intermediate = shared.intermediate
            own.output = shared.output
        self.tie_output()

    def hidden_states(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        states: Tensor,
        state_mask: Tensor | None = None,
        caches: list[KeyValueCache] | None = None,
    ) -> Tensor:
        """Hidden states (B, n, width) of the n tokens in ``input_ids``.

        With caches, ``input_ids`` holds the new tokens only and ``attention_mask`` (B, N) covers the old ones too.
        """
        queries, length = input_ids.shape[1], attention_mask.shape[1]
        hidden = self.bert.embeddings(input_ids, first_position=length - queries)
        mask = causal_mask(attention_mask, hidden.dtype, queries)
        return self.bert.encoder(hidden, mask, states, cross_mask(state_mask, hidden.dtype), caches)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, states: Tensor, state_mask: Tensor | None = None
    ) -> Tensor:
        """ids and mask (B, N), states (B, L, state_width), state_mask (B, L) or None -> logits (B, N, vocabulary)."""
        return self.cls(self.hidden_states(input_ids, attention_mask, states, state_mask))


class DecodingSession:
    """Decodes R texts token by token: self-attention states are cached, image states are projected in every step.

    ``states`` (R, L, state_width) hold one copy per text; with beam search one per beam.
    """

    def __init__(self, decoder: TextDecoder, states: Tensor, state_mask: Tensor | None = None) -> None:
        self.decoder = decoder
        self.states = states
        self.state_mask = state_mask
        self.caches = [KeyValueCache() for _ in decoder.bert.encoder.layer]
        self.length = 0

    def step(self, tokens: Tensor) -> Tensor:
        """Append tokens (R, n); returns the logits (R, vocabulary) of the token after them."""
        self.length += tokens.shape[1]
        attention_mask = tokens.new_ones(tokens.shape[0], self.length)
        hidden = self.decoder.hidden_states(tokens, attention_mask, self.states, self.state_mask, self.caches)
        return self.decoder.cls(hidden[:, -1])

    def reorder(self, rows: Tensor) -> None:
        """Let text r continue text ``rows[r]``; both must belong to the same image."""
        for cache in self.caches:
            cache.reorder(rows)


def lm_labels(input_ids: Tensor, pad_token_id: int, prompt_length: int = 0) -> Tensor:
    """Labels (B, N) of a language model: the ids themselves, ignored at padding and in the prompt."""
    labels = input_ids.masked_fill(input_ids == pad_token_id, IGNORED)
    labels[:, :prompt_length] = IGNORED
    return labels


def lm_loss(
    logits: Tensor, labels: Tensor, label_smoothing: float, reduction: Literal["mean", "sequence"] = "mean"
) -> Tensor:
    """Next-token cross-entropy of logits (B, N, V) against labels (B, N), which are shifted here.

    Reduction "mean" is the mean over targets, a scalar; "sequence" the sum over the targets of each text, (B,).
    """
    flat_logits = logits[:, :-1].reshape(-1, logits.shape[-1])
    flat_labels = labels[:, 1:].reshape(-1)
    if reduction == "mean":
        return F.cross_entropy(flat_logits, flat_labels, label_smoothing=label_smoothing)
    losses = F.cross_entropy(flat_logits, flat_labels, label_smoothing=label_smoothing, reduction="none")
    return losses.view(labels.shape[0], -1).sum(1)

"""NLVR2: does a sentence describe a pair of images? Every layer looks at both images, each by its own attention."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blip_fast.checkpoints.pretrained import PretrainedModel
from blip_fast.config import BlipConfig
from blip_fast.outputs import NLVROutput
from blip_fast.reference.text import AttentionCore, TextEncoder, init_text_weights, with_first_token
from blip_fast.reference.vit import VisionTransformer

FIRST_MERGING_LAYER = 6  # from this layer on the two images are merged by a linear layer, before it by their mean


class PairOutput(nn.Module):
    """Joins what was read from the two images and closes the sub-layer: dropout, residual sum, LayerNorm."""

    def __init__(self, config: BlipConfig, merge: bool) -> None:
        super().__init__()
        width = config.text_width
        self.LayerNorm = nn.LayerNorm(width, eps=config.text_layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout)
        self.dense0 = nn.Linear(width, width)
        self.dense1 = nn.Linear(width, width)
        self.merge_layer = nn.Linear(2 * width, width) if merge else None

    def forward(self, first: Tensor, second: Tensor, residual: Tensor) -> Tensor:
        first, second = self.dense0(first), self.dense1(second)
        if self.merge_layer is None:
            joined = (first + second) / 2
        else:
            joined = self.merge_layer(torch.cat([first, second], dim=-1))
        return self.LayerNorm(self.dropout(joined) + residual)


class PairCrossAttention(nn.Module):
    """Cross-attention to the states (B, 2, L, vit_width) of two images."""

    def __init__(self, config: BlipConfig, merge: bool) -> None:
        super().__init__()
        self.self0 = AttentionCore(config, config.vit_width)
        self.self1 = AttentionCore(config, config.vit_width)
        self.output = PairOutput(config, merge)

    def forward(self, hidden: Tensor, states: Tensor, mask: Tensor | None) -> Tensor:
        first, second = states.unbind(1)
        return self.output(self.self0(hidden, first, mask), self.self1(hidden, second, mask), hidden)


class PairTextEncoder(TextEncoder):
    """The text encoder with cross-attention to two images."""

    def __init__(self, config: BlipConfig) -> None:
        super().__init__(config)
        for index, layer in enumerate(self.encoder.layer):
            layer.crossattention = PairCrossAttention(config, merge=index >= FIRST_MERGING_LAYER)
            output = layer.attention.output
            output.dense = output._modules.pop("dense")  # behind the norm, as published: optimizer states go by number
        self.apply(init_text_weights)


class BlipNLVR(PretrainedModel):
    """Image encoder, text encoder for image pairs, classifier of the state of [ENC]."""

    head = "nlvr"

    def __init__(self, config: BlipConfig) -> None:
        super().__init__(config)
        self.visual_encoder = VisionTransformer(config)
        self.text_encoder = PairTextEncoder(config)
        width = config.text_width
        self.cls_head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 2))

    def forward(
        self, image_pairs: Tensor, input_ids: Tensor, attention_mask: Tensor, labels: Tensor | None = None
    ) -> NLVROutput:
        """Loss (with labels) and logits (B, 2) of "false" and "true".

        Args:
            image_pairs: (B, 2, 3, S, S) normalised images, left and right.
            input_ids: (B, N) sentences, [CLS] first, right-padded with 0.
            attention_mask: (B, N), 1 for tokens and 0 for padding.
            labels: (B,) int64, 1 for true.
        """
        if image_pairs.ndim != 5 or image_pairs.shape[1] != 2:
            raise ValueError(f"image_pairs has shape {tuple(image_pairs.shape)}; expected (B, 2, 3, S, S)")
        image_embeds = self.visual_encoder(image_pairs.transpose(0, 1).flatten(0, 1))  # all left, then all right ones
        states = image_embeds.unflatten(0, (2, -1)).transpose(0, 1)
        encoder_ids = with_first_token(input_ids, self.config.enc_token_id)
        logits = self.cls_head(self.text_encoder(encoder_ids, attention_mask, states)[:, 0])
        return NLVROutput(None if labels is None else F.cross_entropy(logits, labels), logits)

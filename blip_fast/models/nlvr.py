"""NLVR2 on the fused operations: packed sentences, one attention per image, both from one projection of its states."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from blip_fast.models.strings import Texts, own_images, pack_texts
from blip_fast.models.text import AttentionDropout, Layout, attend_states, encoder_stream, run_layers
from blip_fast.models.vit import image_states
from blip_fast.outputs import NLVROutput
from blip_fast.reference.nlvr import BlipNLVR as ReferenceNLVR
from blip_fast.reference.text import TextLayer


class BlipNLVR(ReferenceNLVR):
    """Image encoder, text encoder for image pairs, classifier of the state of [ENC]."""

    def forward(
        self,
        image_pairs: Tensor,
        input_ids: Texts,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> NLVROutput:
        """Loss (with labels) and logits (B, 2) of "false" and "true". Arguments are the reference's.

        Sentences may come packed, or as strings.
        """
        if image_pairs.ndim != 5 or image_pairs.shape[1] != 2:
            raise ValueError(f"image_pairs has shape {tuple(image_pairs.shape)}; expected (B, 2, 3, S, S)")
        texts = pack_texts(input_ids, attention_mask, "nlvr", self, image_pairs.device)
        texts = texts.with_first_token(self.config.enc_token_id)
        states = image_states(self.visual_encoder, image_pairs.transpose(0, 1).flatten(0, 1))
        dropout = AttentionDropout.of(self, states.device)
        own = own_images(texts, image_pairs.shape[0], states.device)
        stream = encoder_stream(self.text_encoder, texts, own)
        first, second = states.unflatten(0, (2, -1))
        look = LookAtPair(first, second)
        logits = self.cls_head(run_layers(self.text_encoder.encoder.layer, [stream], dropout, look)[0])
        return NLVROutput(None if labels is None else F.cross_entropy(logits, labels), logits)


@dataclass
class LookAtPair:
    """Cross-attention to the states (B, L, vit_width) of a left and a right image, each by its own weights."""

    first: Tensor
    second: Tensor

    @property
    def images(self) -> int:
        """B."""
        return self.first.shape[0]

    def __call__(self, layer: TextLayer, hidden: Tensor, layout: Layout, dropout: AttentionDropout) -> Tensor:
        module = layer.crossattention
        left = attend_states(module.self0, hidden, self.first, layout, dropout)
        right = attend_states(module.self1, hidden, self.second, layout, dropout)
        return module.output(left, right, hidden)

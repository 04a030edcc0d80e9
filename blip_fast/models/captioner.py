"""Captioning on the fused operations: packed captions in training, image keys projected once per image in decoding."""

from __future__ import annotations

import torch
from torch import Tensor

from blip_fast.models.decoding import DecodingSession
from blip_fast.models.packing import PackedTexts, pack
from blip_fast.models.text import AttentionDropout, LookAt, decoder_stream, run_layers, token_losses
from blip_fast.models.vit import image_states
from blip_fast.outputs import CaptionOutput
from blip_fast.reference.captioner import BlipCaptioner as ReferenceCaptioner


class BlipCaptioner(ReferenceCaptioner):
    """Image encoder and image-grounded text decoder."""

    def forward(
        self,
        image: Tensor,
        input_ids: Tensor | PackedTexts,
        attention_mask: Tensor | None = None,
        prompt_length: int = 4,
    ) -> CaptionOutput:
        """Language-modelling loss of captions. Arguments are the reference's; captions may come packed."""
        texts = pack(input_ids, attention_mask).with_first_token(self.config.dec_token_id)
        states = image_states(self.visual_encoder, image)
        dropout = AttentionDropout(self.config.attention_dropout if self.training else 0.0, states.device)
        own = torch.arange(len(texts), device=states.device)
        stream = decoder_stream(self.text_decoder, texts, own)
        layers = self.text_decoder.bert.encoder.layer
        (decoded,) = run_layers(layers, [stream], dropout, LookAt(states, dropout))
        labels = texts.next_tokens(prompt_length)
        return CaptionOutput(token_losses(self.text_decoder, decoded, labels, self.config.label_smoothing, "mean"))

    def decoding_session(self, images: Tensor, copies: int, max_length: int) -> DecodingSession:
        """Decoding of ``copies`` texts per image."""
        return DecodingSession(self.text_decoder, image_states(self.visual_encoder, images), copies, max_length)

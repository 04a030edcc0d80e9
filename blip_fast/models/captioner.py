"""Captioning on the fused operations: packed captions in training, image keys projected once per image in decoding."""

from __future__ import annotations

import torch
from torch import Tensor

from blip_fast.data.packing import PackedTexts
from blip_fast.data.tokens import PROMPT, cached_tokenizer, strings_of
from blip_fast.models.decoding import DecodingSession
from blip_fast.models.strings import Texts, pack_texts
from blip_fast.models.text import AttentionDropout, LookAt, decoder_stream, run_layers, token_losses
from blip_fast.models.vit import image_states
from blip_fast.outputs import CaptionOutput
from blip_fast.reference.captioner import BlipCaptioner as ReferenceCaptioner


class BlipCaptioner(ReferenceCaptioner):
    """Image encoder and image-grounded text decoder."""

    def forward(
        self,
        image: Tensor,
        input_ids: Texts,
        attention_mask: Tensor | None = None,
        prompt_length: int = 4,
        prompt: str = PROMPT,
    ) -> CaptionOutput:
        """Language-modelling loss of captions. Arguments are the reference's; captions may come packed.

        They may also be strings without the prompt: ``prompt`` is put in front of each and tells ``prompt_length``.
        """
        if not isinstance(input_ids, (Tensor, PackedTexts)):
            input_ids = [prompt + caption for caption in strings_of(input_ids)]
            prompt_length = len(cached_tokenizer()(prompt).input_ids) - 1
        texts = pack_texts(input_ids, attention_mask, "caption", self.config, image.device)
        texts = texts.with_first_token(self.config.dec_token_id)
        states = image_states(self.visual_encoder, image)
        dropout = AttentionDropout(self.config.attention_dropout if self.training else 0.0, states.device)
        own = torch.arange(len(texts), device=states.device)
        stream = decoder_stream(self.text_decoder, texts, own)
        layers = self.text_decoder.bert.encoder.layer
        (decoded,) = run_layers(layers, [stream], dropout, LookAt(states))
        labels = texts.next_tokens(prompt_length)
        return CaptionOutput(token_losses(self.text_decoder, decoded, labels, self.config.label_smoothing, "mean"))

    def decoding_session(self, images: Tensor, copies: int, max_length: int) -> DecodingSession:
        """Decoding of ``copies`` texts per image."""
        return DecodingSession(self.text_decoder, image_states(self.visual_encoder, images), copies, max_length)

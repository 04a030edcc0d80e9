"""Features of images, texts and both together on the fused image encoder.

The states of all tokens stay padded: the published extractor returns those of padding positions too.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from blip_fast.models.strings import pack_texts, padded_texts
from blip_fast.models.text import AttentionDropout, encoder_stream, run_layers
from blip_fast.models.vit import class_state, image_states
from blip_fast.reference.features import BlipFeatureExtractor as ReferenceFeatureExtractor
from blip_fast.reference.text import with_first_token


class BlipFeatureExtractor(ReferenceFeatureExtractor):
    """Image and text encoder: the states of all tokens, or on request one vector each in the space shared by both.

    Wherever texts (B, N) with a mask are expected, B strings will do. Vectors cost less: the last layers compute the first
    token only, and texts are packed.
    """

    def image_features(self, image: Tensor, projected: bool = False) -> Tensor:
        """Images (B, 3, S, S) -> (B, 1 + patches, vit_width); ``projected``: (B, E), normalised."""
        if projected:
            self.check_projections()
            return F.normalize(self.vision_proj(class_state(self.visual_encoder, image)), dim=-1)
        return image_states(self.visual_encoder, image)

    def text_features(
        self, input_ids: Tensor | Sequence[str], attention_mask: Tensor | None = None, projected: bool = False
    ) -> Tensor:
        """Texts (B, N), [CLS] first -> (B, N, text_width), without an image; ``projected``: (B, E), normalised."""
        if not projected:
            ids, mask = self.padded(input_ids, attention_mask)
            return self.text_encoder(ids, mask, mode="text")
        self.check_projections()
        device = self.text_proj.weight.device
        texts = pack_texts(input_ids, attention_mask, "features", self, device)
        dropout = AttentionDropout.of(self, device)
        layers, stream = self.text_encoder.encoder.layer, encoder_stream(self.text_encoder, texts)
        return F.normalize(self.text_proj(run_layers(layers, [stream], dropout)[0]), dim=-1)

    def multimodal_features(
        self, image: Tensor, input_ids: Tensor | Sequence[str], attention_mask: Tensor | None = None
    ) -> Tensor:
        """Texts (B, N) that look at images (B, 3, S, S) -> (B, N, text_width); [ENC] replaces the first token."""
        ids, mask = self.padded(input_ids, attention_mask)
        encoder_ids = with_first_token(ids, self.config.enc_token_id)
        return self.text_encoder(encoder_ids, mask, image_states(self.visual_encoder, image))

    def padded(self, texts: Tensor | Sequence[str], attention_mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Ids and mask (B, N) on the model's device."""
        device = self.text_encoder.embeddings.word_embeddings.weight.device
        ids, mask = padded_texts(texts, attention_mask, "features", self, device)
        ids = ids.to(device)
        return ids, torch.ones_like(ids) if mask is None else mask.to(device)

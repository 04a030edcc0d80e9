"""Features of images, texts and both together on the fused image encoder.

Texts stay padded here: the published extractor returns the states of padding positions too.
"""

from __future__ import annotations

from torch import Tensor

from blip_fast.models.vit import image_states
from blip_fast.reference.features import BlipFeatureExtractor as ReferenceFeatureExtractor
from blip_fast.reference.text import with_first_token


class BlipFeatureExtractor(ReferenceFeatureExtractor):
    """Image and text encoder; every method returns the states of all tokens, unprojected."""

    def image_features(self, image: Tensor) -> Tensor:
        """Images (B, 3, S, S) -> (B, 1 + patches, vit_width)."""
        return image_states(self.visual_encoder, image)

    def multimodal_features(self, image: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Texts (B, N) that look at images (B, 3, S, S) -> (B, N, text_width); [ENC] replaces the first token."""
        encoder_ids = with_first_token(input_ids, self.config.enc_token_id)
        return self.text_encoder(encoder_ids, attention_mask, self.image_features(image))

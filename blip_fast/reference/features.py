"""Features of images, texts and both together, without heads."""

from __future__ import annotations

from torch import Tensor

from blip_fast.checkpoints.pretrained import PretrainedModel
from blip_fast.config import BlipConfig
from blip_fast.reference.text import TextEncoder, with_first_token
from blip_fast.reference.vit import VisionTransformer


class BlipFeatureExtractor(PretrainedModel):
    """Image and text encoder; every method returns the states of all tokens, unprojected."""

    head = "features"

    def __init__(self, config: BlipConfig) -> None:
        super().__init__(config)
        self.visual_encoder = VisionTransformer(config)
        self.text_encoder = TextEncoder(config)

    def image_features(self, image: Tensor) -> Tensor:
        """Images (B, 3, S, S) -> (B, 1 + patches, vit_width)."""
        return self.visual_encoder(image)

    def text_features(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Texts (B, N), [CLS] first -> (B, N, text_width), without an image."""
        return self.text_encoder(input_ids, attention_mask, mode="text")

    def multimodal_features(self, image: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Texts (B, N) that look at images (B, 3, S, S) -> (B, N, text_width); [ENC] replaces the first token."""
        encoder_ids = with_first_token(input_ids, self.config.enc_token_id)
        return self.text_encoder(encoder_ids, attention_mask, self.visual_encoder(image))

"""Features of images, texts and both together, without heads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from blip_fast.checkpoints.pretrained import PretrainedModel
from blip_fast.config import BlipConfig
from blip_fast.reference.text import TextEncoder, with_first_token
from blip_fast.reference.vit import VisionTransformer


class BlipFeatureExtractor(PretrainedModel):
    """Image and text encoder: the states of all tokens, or on request one vector each in the space shared by both.

    The published extractor has no projections. With ``projections`` the model has those that ITC trains, ``vision_proj``
    and ``text_proj``; ``from_pretrained`` gives them to it where the checkpoint holds them.
    """

    head = "features"

    def __init__(self, config: BlipConfig, projections: bool = False) -> None:
        super().__init__(config)
        self.projections = projections
        self.visual_encoder = VisionTransformer(config)
        self.text_encoder = TextEncoder(config)
        if projections:
            self.vision_proj = nn.Linear(config.vit_width, config.embed_dim)
            self.text_proj = nn.Linear(config.text_width, config.embed_dim)

    @classmethod
    def options(cls, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Projections if a checkpoint holds both of them."""
        return {"projections": "vision_proj.weight" in state and "text_proj.weight" in state}

    def image_features(self, image: Tensor, projected: bool = False) -> Tensor:
        """Images (B, 3, S, S) -> (B, 1 + patches, vit_width); ``projected``: (B, E), normalised."""
        if projected:
            self.check_projections()
            return F.normalize(self.vision_proj(self.visual_encoder(image)[:, 0]), dim=-1)
        return self.visual_encoder(image)

    def text_features(self, input_ids: Tensor, attention_mask: Tensor, projected: bool = False) -> Tensor:
        """Texts (B, N), [CLS] first -> (B, N, text_width), without an image; ``projected``: (B, E), normalised."""
        if projected:
            self.check_projections()
            return F.normalize(self.text_proj(self.text_features(input_ids, attention_mask)[:, 0]), dim=-1)
        return self.text_encoder(input_ids, attention_mask, mode="text")

    def multimodal_features(self, image: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Texts (B, N) that look at images (B, 3, S, S) -> (B, N, text_width); [ENC] replaces the first token."""
        encoder_ids = with_first_token(input_ids, self.config.enc_token_id)
        return self.text_encoder(encoder_ids, attention_mask, self.image_features(image))

    def check_projections(self) -> None:
        """ValueError for a model without projections."""
        if not self.projections:
            raise ValueError("projected=True for a model without projections; expected BlipFeatureExtractor(config, "
                             "projections=True) or a checkpoint with vision_proj and text_proj")  # fmt: skip

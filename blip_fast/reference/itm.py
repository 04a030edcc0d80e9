"""Image-text matching with a trained model: the matching head and the contrastive similarity."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from blip_fast.checkpoints.pretrained import PretrainedModel
from blip_fast.config import BlipConfig
from blip_fast.reference.text import TextEncoder
from blip_fast.reference.vit import VisionTransformer


class BlipITM(PretrainedModel):
    """Scores images against texts. As published, texts keep [CLS] as first token in both heads."""

    head = "itm"

    def __init__(self, config: BlipConfig) -> None:
        super().__init__(config)
        self.visual_encoder = VisionTransformer(config)
        self.text_encoder = TextEncoder(config)
        self.vision_proj = nn.Linear(config.vit_width, config.embed_dim)
        self.text_proj = nn.Linear(config.text_width, config.embed_dim)
        self.itm_head = nn.Linear(config.text_width, 2)

    def itm(self, image: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Logits (B, 2) of "no match" and "match" for image b with text b; images (B, 3, S, S), ids and mask (B, N)."""
        states = self.text_encoder(input_ids, attention_mask, self.visual_encoder(image))
        return self.itm_head(states[:, 0])

    def itc(self, image: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Cosine similarities (B, T) of all images (B, 3, S, S) with all texts, ids and mask (T, N)."""
        image_states = self.visual_encoder(image)
        text_states = self.text_encoder(input_ids, attention_mask, mode="text")
        image_feat = F.normalize(self.vision_proj(image_states[:, 0]), dim=-1)
        text_feat = F.normalize(self.text_proj(text_states[:, 0]), dim=-1)
        return image_feat @ text_feat.t()

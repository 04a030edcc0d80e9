"""What pre-training and retrieval share on the fused path: features, contrastive loss, queues and matching."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from blip_fast.models.packing import PackedTexts
from blip_fast.models.text import AttentionDropout, Stream, embed, run_layers
from blip_fast.models.vit import class_state, image_states
from blip_fast.ops import momentum_update_
from blip_fast.reference.momentum_model import MomentumModel as ReferenceMomentumModel
from blip_fast.reference.text import TextEncoder


class MomentumModel(ReferenceMomentumModel):
    """The reference's parameters, names and initialisation with fused steps."""

    def update_momentum(self) -> None:
        params_m, params = zip(*self.momentum_pairs(), strict=True)
        momentum_update_(params_m, params, self.config.momentum)

    def attention_dropout(self, device: torch.device) -> AttentionDropout:
        """Seeds of one forward pass; no dropout outside of training."""
        return AttentionDropout(self.config.attention_dropout if self.training else 0.0, device)

    def features(self, image: Tensor, texts: PackedTexts) -> tuple[Tensor, Tensor, Tensor]:
        """Image states (B, L, vit_width) and the normalised features of images and texts, (B, E) each."""
        states = image_states(self.visual_encoder, image)
        image_feat = F.normalize(self.vision_proj(states[:, 0]), dim=-1)
        text_feat = F.normalize(self.text_proj(self.text_state(self.text_encoder, texts)), dim=-1)
        return states, image_feat, text_feat

    @torch.no_grad()
    def features_m(self, image: Tensor, texts: PackedTexts) -> tuple[Tensor, Tensor]:
        """Normalised features of the momentum encoders, (B, E) each; the last layers compute one token only."""
        image_feat = F.normalize(self.vision_proj_m(class_state(self.visual_encoder_m, image)), dim=-1)
        text_feat = F.normalize(self.text_proj_m(self.text_state(self.text_encoder_m, texts)), dim=-1)
        return image_feat, text_feat

    def text_state(self, encoder: TextEncoder, texts: PackedTexts) -> Tensor:
        """State of the first token of texts that see no image, (S, text_width)."""
        layers = encoder.encoder.layer
        attention = [layer.attention for layer in layers]
        stream = Stream(texts, attention, embed(encoder.embeddings, texts), first_only=True)
        return run_layers(layers, [stream], None, self.attention_dropout(texts.input_ids.device))[0]

    def matching_stream(self, texts: PackedTexts, image_of_text: Tensor) -> Stream:
        """Texts with [ENC] in front, each looking at an image, of which the first token's state is wanted."""
        texts = texts.with_first_token(self.config.enc_token_id)
        attention = [layer.attention for layer in self.text_encoder.encoder.layer]
        return Stream(texts, attention, embed(self.text_encoder.embeddings, texts), image_of_text, first_only=True)

    def matching_loss_of(self, states: Tensor, pairs: int) -> Tensor:
        """ITM loss from first-token states (3 * pairs, width): the true pairs, then two wrong ones for each."""
        labels = torch.zeros(states.shape[0], dtype=torch.int64, device=states.device)
        labels[:pairs] = 1
        return F.cross_entropy(self.itm_head(states), labels)

"""What pre-training and retrieval share: two encoders with momentum copies, feature queues, and image-text matching."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blip_fast.checkpoints.pretrained import PretrainedModel
from blip_fast.config import BlipConfig
from blip_fast.outputs import Negatives
from blip_fast.reference.gather import gather_rows
from blip_fast.reference.momentum import momentum_update_
from blip_fast.reference.text import TextEncoder, with_first_token
from blip_fast.reference.vit import VisionTransformer

TEMPERATURE_RANGE = (0.001, 0.5)


class MomentumModel(PretrainedModel):
    """Image and text encoder, projections to a common space of E = ``embed_dim`` channels, and a matching head.

    The momentum copies (names ending in ``_m``) follow the train or eval mode of the module, take no gradient and
    change in :meth:`update_momentum` only.
    """

    image_queue: Tensor
    text_queue: Tensor

    def __init__(self, config: BlipConfig) -> None:
        super().__init__(config)
        self.temp = nn.Parameter(torch.tensor(0.07))
        self.register_buffer("image_queue", F.normalize(torch.randn(config.embed_dim, config.queue_size), dim=0))
        self.register_buffer("text_queue", F.normalize(torch.randn(config.embed_dim, config.queue_size), dim=0))
        self.visual_encoder = VisionTransformer(config)
        self.text_encoder = TextEncoder(config)
        self.vision_proj = nn.Linear(config.vit_width, config.embed_dim)
        self.text_proj = nn.Linear(config.text_width, config.embed_dim)
        self.itm_head = nn.Linear(config.text_width, 2)
        self.visual_encoder_m = copy.deepcopy(self.visual_encoder).requires_grad_(False)
        self.vision_proj_m = copy.deepcopy(self.vision_proj).requires_grad_(False)
        self.text_encoder_m = copy.deepcopy(self.text_encoder).requires_grad_(False)
        self.text_proj_m = copy.deepcopy(self.text_proj).requires_grad_(False)

    @torch.no_grad()
    def clamp_temperature(self) -> None:
        """Keep the temperature in its range, in place."""
        self.temp.clamp_(*TEMPERATURE_RANGE)

    def online_features(
        self, image: Tensor, input_ids: Tensor, attention_mask: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Image states (B, L, vit_width) and the normalised features of images and texts, (B, E) each."""
        image_embeds = self.visual_encoder(image)
        image_feat = F.normalize(self.vision_proj(image_embeds[:, 0]), dim=-1)
        text_states = self.text_encoder(input_ids, attention_mask, mode="text")
        text_feat = F.normalize(self.text_proj(text_states[:, 0]), dim=-1)
        return image_embeds, image_feat, text_feat

    def momentum_pairs(self) -> list[tuple[nn.Parameter, nn.Parameter]]:
        """Each momentum parameter with the online parameter that it follows."""
        modules_m = (self.visual_encoder_m, self.vision_proj_m, self.text_encoder_m, self.text_proj_m)
        modules = (self.visual_encoder, self.vision_proj, self.text_encoder, self.text_proj)
        return [
            pair
            for module_m, module in zip(modules_m, modules, strict=True)
            for pair in zip(module_m.parameters(), module.parameters(), strict=True)
        ]

    def update_momentum(self) -> None:
        """Move the momentum copies towards the online parameters."""
        params_m, params = zip(*self.momentum_pairs(), strict=True)
        momentum_update_(params_m, params, self.config.momentum)

    @torch.no_grad()
    def momentum_features(self, image: Tensor, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised features of the momentum encoders, (B, E) each."""
        image_embeds = self.visual_encoder_m(image)
        text_states = self.text_encoder_m(input_ids, attention_mask, mode="text")
        image_feat = F.normalize(self.vision_proj_m(image_embeds[:, 0]), dim=-1)
        text_feat = F.normalize(self.text_proj_m(text_states[:, 0]), dim=-1)
        return image_feat, text_feat

    def matching_logits(self, input_ids: Tensor, attention_mask: Tensor, image_embeds: Tensor) -> Tensor:
        """Logits (B, 2) of "no match" and "match"; texts start with [ENC]."""
        return self.itm_head(self.text_encoder(input_ids, attention_mask, image_embeds)[:, 0])

    def matching_loss(
        self,
        image_embeds: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor,
        negatives: Negatives,
        candidates: tuple[Tensor, Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Image-text matching of B true pairs and 2B pairs with a hard negative, two passes of the text encoder.

        ``candidates`` are the image states, ids (first token [CLS]) and masks that the negatives index; by default the
        batch's own.
        """
        images, ids, masks = (image_embeds, input_ids, attention_mask) if candidates is None else candidates
        enc = self.config.enc_token_id
        text_ids, other_ids = with_first_token(input_ids, enc), with_first_token(ids, enc)
        wrong_image = images.index_select(0, negatives.image_for_text)
        wrong_ids = other_ids.index_select(0, negatives.text_for_image)
        wrong_mask = masks.index_select(0, negatives.text_for_image)

        positive = self.matching_logits(text_ids, attention_mask, image_embeds)
        negative = self.matching_logits(
            torch.cat([text_ids, wrong_ids]),
            torch.cat([attention_mask, wrong_mask]),
            torch.cat([wrong_image, image_embeds]),
        )
        labels = torch.zeros(len(positive) + len(negative), dtype=torch.long, device=positive.device)
        labels[: len(positive)] = 1
        return F.cross_entropy(torch.cat([positive, negative]), labels)

    def gather_features(self, *features: Tensor) -> list[Tensor]:
        """Features of all ranks, which all ranks enqueue alike."""
        return [gather_rows(feature) for feature in features]

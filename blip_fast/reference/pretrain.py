"""Pre-training: image-text contrastive (ITC), image-text matching (ITM) and language-modelling (LM) losses."""

from __future__ import annotations

import torch
from torch import Tensor

from blip_fast.config import BlipConfig
from blip_fast.outputs import Negatives, PretrainOutput
from blip_fast.reference.contrastive import contrastive_loss
from blip_fast.reference.decoder import TextDecoder, lm_labels, lm_loss
from blip_fast.reference.enqueue import enqueue_
from blip_fast.reference.hard_negatives import draw_hard_negatives, hard_negative_weights
from blip_fast.reference.momentum_model import MomentumModel
from blip_fast.reference.text import with_first_token


class BlipPretrain(MomentumModel):
    """BLIP with all of its parts (paper section 3). The decoder shares all but self-attention with the text encoder."""

    head = "pretrain"
    queue_ptr: Tensor

    def __init__(self, config: BlipConfig) -> None:
        super().__init__(config)
        self.register_buffer("queue_ptr", torch.zeros(1, dtype=torch.long))
        self.text_decoder = TextDecoder(config)
        self.text_decoder.tie_to_encoder(self.text_encoder)

    def forward(
        self,
        image: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor,
        alpha: float | Tensor,
        negatives: tuple[Tensor, Tensor] | None = None,
    ) -> PretrainOutput:
        """One training step's losses; momentum encoders and queues move on.

        Args:
            image: (B, 3, S, S) normalised images.
            input_ids: (B, N) ids, [CLS] first, right-padded with 0.
            attention_mask: (B, N), 1 for tokens and 0 for padding.
            alpha: weight of the momentum targets, in [0, 1].
            negatives: (image_for_text, text_for_image), (B,) row indices each; None draws them.
        """
        self.clamp_temperature()
        image_embeds, image_feat, text_feat = self.online_features(image, input_ids, attention_mask)
        self.update_momentum()
        image_feat_m, text_feat_m = self.momentum_features(image, input_ids, attention_mask)
        loss_itc, sim_i2t, sim_t2i = self.contrastive(image_feat, text_feat, image_feat_m, text_feat_m, alpha)
        self.enqueue(image_feat_m, text_feat_m)
        chosen = self.mine_negatives(sim_i2t, sim_t2i) if negatives is None else Negatives(*negatives)
        loss_itm = self.matching_loss(image_embeds, input_ids, attention_mask, chosen)
        loss_lm = self.language_loss(image_embeds, input_ids, attention_mask)
        return PretrainOutput(loss_itc + loss_itm + loss_lm, loss_itc, loss_itm, loss_lm, chosen)

    def contrastive(
        self, image_feat: Tensor, text_feat: Tensor, image_feat_m: Tensor, text_feat_m: Tensor, alpha: float | Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """ITC loss and the similarities within the batch, against the queues as they are before this batch."""
        queues = (self.image_queue, self.text_queue)
        return contrastive_loss(image_feat, text_feat, image_feat_m, text_feat_m, *queues, self.temp, alpha)

    def enqueue(self, image_feat_m: Tensor, text_feat_m: Tensor) -> None:
        """Put the momentum features of all ranks into the queues."""
        image_rows, text_rows = self.gather_features(image_feat_m, text_feat_m)
        enqueue_(self.image_queue, image_rows, self.queue_ptr.clone())
        enqueue_(self.text_queue, text_rows, self.queue_ptr)

    def mine_negatives(self, sim_i2t: Tensor, sim_t2i: Tensor) -> Negatives:
        """Draw hard negatives from the local batch."""
        return draw_hard_negatives(*hard_negative_weights(sim_i2t, sim_t2i))

    def language_loss(self, image_embeds: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """LM loss of the texts given their images; texts start with [DEC]."""
        decoder_ids = with_first_token(input_ids, self.config.dec_token_id)
        logits = self.text_decoder(decoder_ids, attention_mask, image_embeds)
        labels = lm_labels(decoder_ids, self.config.pad_token_id)
        return lm_loss(logits, labels, self.config.label_smoothing)

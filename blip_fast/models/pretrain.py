"""Pre-training on the fused operations: the reference's losses with image keys projected once and no padding."""

from __future__ import annotations

import torch
from torch import Tensor

from blip_fast.data.packing import PackedTexts
from blip_fast.models.momentum_model import MomentumModel
from blip_fast.models.strings import Texts, pack_texts
from blip_fast.models.text import (
    AttentionDropout,
    LookAt,
    decoder_stream,
    encoder_stream,
    look_up,
    run_layers,
    token_losses,
)
from blip_fast.ops import contrastive_loss
from blip_fast.outputs import Negatives, PretrainOutput
from blip_fast.reference.pretrain import BlipPretrain as ReferencePretrain


class BlipPretrain(MomentumModel, ReferencePretrain):
    """BLIP with all of its parts (paper section 3), names and results as published."""

    def forward(
        self,
        image: Tensor,
        input_ids: Texts,
        attention_mask: Tensor | None = None,
        alpha: float | Tensor = 0.0,
        negatives: tuple[Tensor, Tensor] | None = None,
    ) -> PretrainOutput:
        """One training step's losses; momentum encoders and queues move on.

        Args:
            image: (B, 3, S, S) normalised images.
            input_ids: (B, N) ids, [CLS] first, right-padded with 0; or packed texts, or strings.
            attention_mask: (B, N), 1 for tokens and 0 for padding; best left on the CPU, see `blip_fast.data.packing`.
            alpha: weight of the momentum targets, in [0, 1].
            negatives: (image_for_text, text_for_image), (B,) row indices each; None draws them.
        """
        texts = pack_texts(input_ids, attention_mask, "pretrain", self, image.device)
        self.clamp_temperature()
        first_tokens = self.config.enc_token_id, self.config.dec_token_id
        for_features, for_matching, for_decoding = look_up(self.text_encoder.embeddings, texts, *first_tokens)
        states, image_feat, text_feat = self.features(image, for_features)
        self.update_momentum()
        image_feat_m, text_feat_m = self.features_m(image, texts, image_feat.dtype)
        loss_itc, sim_i2t, sim_t2i = self.contrastive(image_feat, text_feat, image_feat_m, text_feat_m, alpha)
        self.enqueue_rows(self.queue_ptr, image_queue=image_feat_m, text_queue=text_feat_m)
        if negatives is None:
            chosen = self.draw_negatives(sim_i2t, sim_t2i)
        else:
            chosen = self.given_negatives(negatives, len(image))
        loss_itm, loss_lm = self.grounded_losses(states, for_matching, for_decoding, texts.next_tokens(), chosen)
        return PretrainOutput(loss_itc + loss_itm + loss_lm, loss_itc, loss_itm, loss_lm, chosen)

    def contrastive(
        self, image_feat: Tensor, text_feat: Tensor, image_feat_m: Tensor, text_feat_m: Tensor, alpha: float | Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """ITC loss and the similarities within the batch, against the queues as they are before this batch."""
        queues = (self.image_queue, self.text_queue)
        return contrastive_loss(image_feat, text_feat, image_feat_m, text_feat_m, *queues, self.temp, alpha)

    def grounded_losses(
        self, states: Tensor, for_matching: PackedTexts, for_decoding: PackedTexts, labels: Tensor, negatives: Negatives
    ) -> tuple[Tensor, Tensor]:
        """ITM and LM losses: true pairs, both kinds of wrong pairs and the decoder go through the layers together."""
        pairs = len(for_matching)
        own = torch.arange(pairs, device=states.device)
        capacity = 2 * labels.shape[0] + pairs * for_matching.max_length
        matching = encoder_stream(
            self.text_encoder,
            for_matching.select(torch.cat([own, own, negatives.text_for_image]), capacity),
            torch.cat([own, negatives.image_for_text, own]),
        )
        decoding = decoder_stream(self.text_decoder, for_decoding, own)
        dropout = AttentionDropout.of(self, states.device)
        look = LookAt(states)
        decoded, matched = run_layers(self.text_encoder.encoder.layer, [decoding, matching], dropout, look)
        loss_lm = token_losses(self.text_decoder, decoded, labels, self.config.label_smoothing, "mean")
        return self.matching_loss_of(matched, pairs), loss_lm

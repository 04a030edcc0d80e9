"""Pre-training on the fused operations: the reference's losses with image keys projected once and no padding."""

from __future__ import annotations

import torch
from torch import Tensor

from blip_fast.models.momentum_model import MomentumModel
from blip_fast.models.packing import PackedTexts, pack
from blip_fast.models.text import Stream, embed, run_layers
from blip_fast.ops import contrastive_loss, enqueue_, linear_cross_entropy, mine_hard_negatives
from blip_fast.outputs import Negatives, PretrainOutput
from blip_fast.reference.pretrain import BlipPretrain as ReferencePretrain


class BlipPretrain(MomentumModel, ReferencePretrain):
    """BLIP with all of its parts (paper section 3), names and results as published."""

    def forward(
        self,
        image: Tensor,
        input_ids: Tensor | PackedTexts,
        attention_mask: Tensor | None = None,
        alpha: float | Tensor = 0.0,
        negatives: tuple[Tensor, Tensor] | None = None,
    ) -> PretrainOutput:
        """One training step's losses; momentum encoders and queues move on.

        Args:
            image: (B, 3, S, S) normalised images.
            input_ids: (B, N) ids, [CLS] first, right-padded with 0; or packed texts.
            attention_mask: (B, N), 1 for tokens and 0 for padding; best left on the CPU, see `blip_fast.models.packing`.
            alpha: weight of the momentum targets, in [0, 1].
            negatives: (image_for_text, text_for_image), (B,) row indices each; None draws them.
        """
        texts = pack(input_ids, attention_mask)
        self.clamp_temperature()
        states, image_feat, text_feat = self.features(image, texts)
        self.update_momentum()
        image_feat_m, text_feat_m = self.features_m(image, texts)
        loss_itc, sim_i2t, sim_t2i = self.contrastive(image_feat, text_feat, image_feat_m, text_feat_m, alpha)
        self.enqueue(image_feat_m, text_feat_m)
        chosen = self.mine_negatives(sim_i2t, sim_t2i) if negatives is None else Negatives(*negatives)
        loss_itm, loss_lm = self.grounded_losses(states, texts, chosen)
        return PretrainOutput(loss_itc + loss_itm + loss_lm, loss_itc, loss_itm, loss_lm, chosen)

    def contrastive(
        self, image_feat: Tensor, text_feat: Tensor, image_feat_m: Tensor, text_feat_m: Tensor, alpha: float | Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        queues = (self.image_queue, self.text_queue)
        return contrastive_loss(image_feat, text_feat, image_feat_m, text_feat_m, *queues, self.temp, alpha)

    def enqueue(self, image_feat_m: Tensor, text_feat_m: Tensor) -> None:
        image_rows, text_rows = self.gather_features(image_feat_m, text_feat_m)
        enqueue_(self.image_queue, image_rows, self.queue_ptr.clone())
        enqueue_(self.text_queue, text_rows, self.queue_ptr)

    def mine_negatives(self, sim_i2t: Tensor, sim_t2i: Tensor) -> Negatives:
        seed = torch.randint(2**62, (1,), device=sim_i2t.device)
        return Negatives(*mine_hard_negatives(sim_i2t, sim_t2i, seed=seed))

    def grounded_losses(self, states: Tensor, texts: PackedTexts, negatives: Negatives) -> tuple[Tensor, Tensor]:
        """ITM and LM losses: true pairs, both kinds of wrong pairs and the decoder go through the layers together."""
        pairs = len(texts)
        own = torch.arange(pairs, device=states.device)
        capacity = 2 * texts.input_ids.shape[0] + pairs * texts.max_length
        matching = self.matching_stream(
            texts.select(torch.cat([own, own, negatives.text_for_image]), capacity),
            torch.cat([own, negatives.image_for_text, own]),
        )
        decoding = self.decoding_stream(texts, own)
        dropout = self.attention_dropout(states.device)
        decoded, matched = run_layers(self.text_encoder.encoder.layer, [decoding, matching], states, dropout)
        head = self.text_decoder.cls.predictions
        loss_lm = linear_cross_entropy(
            head.transform(decoded),
            head.decoder.weight,
            head.bias,
            decoding.texts.next_tokens(),
            label_smoothing=self.config.label_smoothing,
        )
        return self.matching_loss_of(matched, pairs), loss_lm

    def decoding_stream(self, texts: PackedTexts, image_of_text: Tensor) -> Stream:
        """Texts with [DEC] in front through the decoder's causal self-attention."""
        texts = texts.with_first_token(self.config.dec_token_id)
        body = self.text_decoder.bert
        attention = [layer.attention for layer in body.encoder.layer]
        return Stream(texts, attention, embed(body.embeddings, texts), image_of_text, causal=True)

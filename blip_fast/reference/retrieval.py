"""Fine-tuning for image-text retrieval: ITC and ITM losses where several texts belong to one image, and re-ranking."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from blip_fast.config import BlipConfig
from blip_fast.outputs import Negatives, RetrievalOutput
from blip_fast.reference.contrastive import contrastive_loss
from blip_fast.reference.enqueue import enqueue_
from blip_fast.reference.gather import gather_rows, gather_rows_with_gradient, rank
from blip_fast.reference.hard_negatives import draw_hard_negatives, hard_negative_weights
from blip_fast.reference.momentum_model import MomentumModel

NO_IMAGE = -100  # id of a queue column that has not been written yet
NOT_RANKED = -100.0  # score of a pair outside the k_test most similar


class BlipRetrieval(MomentumModel):
    """Both encoders with momentum copies; texts of equal image id are positives of each other.

    With ``negative_all_rank`` hard negatives come from the batches of all ranks, else from the own one.
    """

    head = "retrieval"
    idx_queue: Tensor
    ptr_queue: Tensor

    def __init__(self, config: BlipConfig, negative_all_rank: bool = False) -> None:
        super().__init__(config)
        self.negative_all_rank = negative_all_rank
        self.register_buffer("idx_queue", torch.full((1, config.queue_size), NO_IMAGE))
        self.register_buffer("ptr_queue", torch.zeros(1, dtype=torch.long))

    def forward(
        self,
        image: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor,
        ids: Tensor,
        alpha: float | Tensor,
        negatives: tuple[Tensor, Tensor] | None = None,
    ) -> RetrievalOutput:
        """One training step's losses; momentum encoders and queues move on.

        Args:
            image: (B, 3, S, S) normalised images.
            input_ids: (B, N) ids, [CLS] first, right-padded with 0.
            attention_mask: (B, N), 1 for tokens and 0 for padding.
            ids: (B,) int64 image ids, not negative.
            alpha: weight of the momentum targets, in [0, 1].
            negatives: (image_for_text, text_for_image), (B,) row indices each into the candidates (the batches of all
                ranks with ``negative_all_rank``); None draws them.
        """
        self.clamp_temperature()
        image_embeds, image_feat, text_feat = self.online_features(image, input_ids, attention_mask)
        self.update_momentum()
        image_feat_m, text_feat_m = self.momentum_features(image, input_ids, attention_mask)
        loss_itc = self.contrastive(image_feat, text_feat, image_feat_m, text_feat_m, alpha, ids)
        self.enqueue(image_feat_m, text_feat_m, ids)
        chosen = self.mine_negatives(image_feat, text_feat, ids) if negatives is None else Negatives(*negatives)
        candidates = self.candidates(image_embeds, input_ids, attention_mask)
        loss_itm = self.matching_loss(image_embeds, input_ids, attention_mask, chosen, candidates)
        return RetrievalOutput(loss_itc + loss_itm, loss_itc, loss_itm, chosen)

    def contrastive(
        self,
        image_feat: Tensor,
        text_feat: Tensor,
        image_feat_m: Tensor,
        text_feat_m: Tensor,
        alpha: float | Tensor,
        ids: Tensor,
    ) -> Tensor:
        """ITC loss against the queues as they are before this batch; keys of equal id are positives."""
        features = (image_feat, text_feat, image_feat_m, text_feat_m)
        queues = (self.image_queue, self.text_queue)
        loss, _, _ = contrastive_loss(*features, *queues, self.temp, alpha, ids=ids, queue_ids=self.idx_queue)
        return loss

    def enqueue(self, image_feat_m: Tensor, text_feat_m: Tensor, ids: Tensor) -> None:
        """Put the momentum features and image ids of all ranks into the queues."""
        image_rows, text_rows, id_rows = self.gather_features(image_feat_m, text_feat_m, ids.view(-1, 1))
        enqueue_(self.image_queue, image_rows, self.ptr_queue.clone())
        enqueue_(self.text_queue, text_rows, self.ptr_queue.clone())
        enqueue_(self.idx_queue, id_rows, self.ptr_queue)

    @torch.no_grad()
    def negative_weights(self, image_feat: Tensor, text_feat: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Sampling weights (B, candidates) from online against online similarities; equal ids are excluded."""
        images, texts, candidate_ids = image_feat, text_feat, ids
        if self.negative_all_rank:
            images, texts, candidate_ids = self.gather_features(image_feat, text_feat, ids)
        sim_i2t = image_feat @ texts.t() / self.temp
        sim_t2i = text_feat @ images.t() / self.temp
        return hard_negative_weights(sim_i2t, sim_t2i, ids, candidate_ids, epsilon=0.0)

    def mine_negatives(self, image_feat: Tensor, text_feat: Tensor, ids: Tensor) -> Negatives:
        """Draw hard negatives from the candidates."""
        first_row = rank() * len(ids) if self.negative_all_rank else 0
        weights_i2t, weights_t2i = self.negative_weights(image_feat, text_feat, ids)
        return draw_hard_negatives(weights_i2t, weights_t2i, first_row)

    def candidates(
        self, image_embeds: Tensor, input_ids: Tensor, attention_mask: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What negatives are chosen from; image states of other ranks pass their gradient back there."""
        if not self.negative_all_rank:
            return image_embeds, input_ids, attention_mask
        return gather_rows_with_gradient(image_embeds), gather_rows(input_ids), gather_rows(attention_mask)

    @torch.no_grad()
    def encode_images(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """States (I, L, vit_width) and normalised features (I, E) of images."""
        image_embeds = self.visual_encoder(image)
        return image_embeds, F.normalize(self.vision_proj(image_embeds[:, 0]), dim=-1)

    @torch.no_grad()
    def encode_texts(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Normalised features (T, E) of texts that start with [CLS]."""
        text_states = self.text_encoder(input_ids, attention_mask, mode="text")
        return F.normalize(self.text_proj(text_states[:, 0]), dim=-1)


@torch.no_grad()
def rerank_texts(
    model: BlipRetrieval, sims: Tensor, image_embeds: Tensor, enc_ids: Tensor, attention_mask: Tensor, k_test: int
) -> Tensor:
    """Scores (I, T) of texts for each image: matching logit plus cosine for the ``k_test`` most similar texts.

    Args:
        model: the model, in eval mode.
        sims: (I, T) cosine similarities.
        image_embeds: (I, L, vit_width) image states.
        enc_ids, attention_mask: (T, N) texts, [ENC] first.
        k_test: pairs scored per row; all others get -100.
    """
    scores = torch.full_like(sims, NOT_RANKED)
    for row, row_sims in enumerate(sims):
        best = row_sims.topk(min(k_test, len(row_sims)))
        states = image_embeds[row].expand(len(best.indices), -1, -1)
        logits = model.matching_logits(enc_ids[best.indices], attention_mask[best.indices], states)
        scores[row, best.indices] = logits[:, 1] + best.values
    return scores


@torch.no_grad()
def rerank_images(
    model: BlipRetrieval, sims: Tensor, image_embeds: Tensor, enc_ids: Tensor, attention_mask: Tensor, k_test: int
) -> Tensor:
    """Scores (T, I) of images for each text; arguments as in :func:`rerank_texts`, but ``sims`` is (T, I)."""
    scores = torch.full_like(sims, NOT_RANKED)
    for row, row_sims in enumerate(sims):
        best = row_sims.topk(min(k_test, len(row_sims)))
        ids = enc_ids[row].expand(len(best.indices), -1)
        mask = attention_mask[row].expand(len(best.indices), -1)
        logits = model.matching_logits(ids, mask, image_embeds[best.indices])
        scores[row, best.indices] = logits[:, 1] + best.values
    return scores

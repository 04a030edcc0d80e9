"""Retrieval fine-tuning and re-ranking on the fused operations."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from blip_fast.data.packing import PackedTexts, pack
from blip_fast.models.momentum_model import MomentumModel
from blip_fast.models.strings import Texts, pack_texts, padded_texts
from blip_fast.models.text import AttentionDropout, LookAt, run_layers
from blip_fast.models.vit import image_states
from blip_fast.ops import contrastive_loss
from blip_fast.outputs import Negatives, RetrievalOutput
from blip_fast.reference.gather import gather_rows, gather_rows_with_gradient, rank, world_size
from blip_fast.reference.retrieval import NOT_RANKED
from blip_fast.reference.retrieval import BlipRetrieval as ReferenceRetrieval


class BlipRetrieval(MomentumModel, ReferenceRetrieval):
    """Both encoders with momentum copies; texts of equal image id are positives of each other."""

    def forward(
        self,
        image: Tensor,
        input_ids: Tensor | Sequence[str],
        attention_mask: Tensor | None,
        ids: Tensor,
        alpha: float | Tensor,
        negatives: tuple[Tensor, Tensor] | None = None,
    ) -> RetrievalOutput:
        """One training step's losses; momentum encoders and queues move on. Arguments are the reference's.

        Texts may come as strings, without a mask.
        """
        input_ids, attention_mask = padded_texts(input_ids, attention_mask, "retrieval", self, image.device)
        texts = pack(input_ids, attention_mask)
        self.clamp_temperature()
        states, image_feat, text_feat = self.features(image, texts)
        self.update_momentum()
        image_feat_m, text_feat_m = self.features_m(image, texts, image_feat.dtype)
        loss_itc, _, _ = contrastive_loss(
            image_feat,
            text_feat,
            image_feat_m,
            text_feat_m,
            self.image_queue,
            self.text_queue,
            self.temp,
            alpha,
            ids,
            self.idx_queue,
        )
        ids_m = ids.view(-1, 1)
        self.enqueue_rows(self.ptr_queue, image_queue=image_feat_m, text_queue=text_feat_m, idx_queue=ids_m)
        if negatives is None:
            chosen = self.mine_negatives(image_feat, text_feat, ids)
        else:
            chosen = self.given_negatives(negatives, len(image) * (world_size() if self.negative_all_rank else 1))
        loss_itm = self.pair_loss(states, texts, input_ids, attention_mask, chosen)
        return RetrievalOutput(loss_itc + loss_itm, loss_itc, loss_itm, chosen)

    @torch.no_grad()
    def mine_negatives(self, image_feat: Tensor, text_feat: Tensor, ids: Tensor) -> Negatives:
        """Draw hard negatives from the candidates by online similarity; equal ids are excluded."""
        images, texts, candidate_ids, first = image_feat, text_feat, ids, 0
        if self.negative_all_rank:
            images, texts, candidate_ids = self.gather_features(image_feat, text_feat, ids)
            first = rank() * len(ids)
        sim_i2t, sim_t2i = image_feat @ texts.t() / self.temp, text_feat @ images.t() / self.temp
        return self.draw_negatives(sim_i2t, sim_t2i, candidate_ids, epsilon=0.0, row_offset=first)

    def pair_loss(
        self,
        states: Tensor,
        texts: PackedTexts,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        negatives: Negatives,
    ) -> Tensor:
        """ITM loss; wrong images of other ranks are appended to the own ones, and their gradient goes back there."""
        pairs = len(texts)
        own = torch.arange(pairs, device=states.device)
        wrong_image, own_text, candidates = negatives.image_for_text, own, texts
        if self.negative_all_rank:
            states = torch.cat([states, gather_rows_with_gradient(states).index_select(0, wrong_image)])
            wrong_image, own_text = own + pairs, own + rank() * pairs
            mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
            candidates = pack(gather_rows(input_ids), gather_rows(mask.to(input_ids.device)))
        capacity = 2 * texts.input_ids.shape[0] + pairs * candidates.max_length
        stream = self.matching_stream(
            candidates.select(torch.cat([own_text, own_text, negatives.text_for_image]), capacity),
            torch.cat([own, wrong_image, own]),
        )
        dropout = AttentionDropout.of(self, states.device)
        (matched,) = run_layers(self.text_encoder.encoder.layer, [stream], dropout, LookAt(states))
        return self.matching_loss_of(matched, pairs)

    @torch.no_grad()
    def encode_images(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """States (I, L, vit_width) and normalised features (I, E) of images."""
        states = image_states(self.visual_encoder, image)
        return states, F.normalize(self.vision_proj(states[:, 0]), dim=-1)

    @torch.no_grad()
    def encode_texts(self, input_ids: Texts, attention_mask: Tensor | None = None) -> Tensor:
        """Normalised features (T, E) of texts that start with [CLS], or of strings."""
        texts = pack_texts(input_ids, attention_mask, "retrieval", self, self.temp.device)
        return F.normalize(self.text_proj(self.text_state(self.text_encoder, texts)), dim=-1)

    @torch.no_grad()
    def match_probe(self, states: Tensor, texts: PackedTexts) -> Tensor:
        """Logit of "match" of one image, states (1, L, vit_width), with each of S texts: (S,)."""
        image_of_text = torch.zeros(len(texts), dtype=torch.int64, device=states.device)
        dropout = AttentionDropout.of(self, states.device)
        stream = self.matching_stream(texts, image_of_text)
        (matched,) = run_layers(self.text_encoder.encoder.layer, [stream], dropout, LookAt(states))
        return self.itm_head(matched)[:, 1]


@torch.no_grad()
def rerank(
    model: BlipRetrieval,
    sims: Tensor,
    states: Tensor | Sequence[Tensor],
    input_ids: Tensor,
    attention_mask: Tensor,
    k_test: int,
    texts_per_pass: int = 256,
    first_image: int = 0,
) -> tuple[Tensor, Tensor]:
    """Scores of texts for each image (i, T) and of images for each text (T, i): matching logit plus cosine.

    Only the ``k_test`` most similar candidates of a row are scored; all others get -100. The images are visited once: the texts
    that either direction wants of an image share its keys and values, and a pair that both want is computed once.

    Args:
        model: the model, in eval mode.
        sims: (I, T) cosine similarities.
        states: states (L, vit_width) of i images, of all or of those from ``first_image`` on; may be on another device.
        input_ids, attention_mask: (T, N) texts, mask on the CPU.
        k_test: candidates scored per row.
        texts_per_pass: texts that go through the layers together.
        first_image: which of the I images ``states`` begins with: ranks can divide the images among them.
    """
    device, own = sims.device, slice(first_image, first_image + len(states))
    texts_of_image = torch.zeros_like(sims[own], dtype=torch.bool)
    texts_of_image.scatter_(1, sims[own].topk(min(k_test, sims.shape[1]), dim=1).indices, True)
    images_of_text = torch.zeros_like(sims, dtype=torch.bool)
    images_of_text.scatter_(0, sims.topk(min(k_test, sims.shape[0]), dim=0).indices, True)
    images_of_text = images_of_text[own]
    logits = torch.full_like(sims[own], NOT_RANKED)
    for image, wanted in enumerate((texts_of_image | images_of_text).cpu()):
        image_state = states[image][None].to(device)
        for texts in wanted.nonzero()[:, 0].split(texts_per_pass):
            packed = pack(input_ids[texts.to(input_ids.device)], attention_mask[texts.to(attention_mask.device)])
            logits[image, texts.to(device)] = model.match_probe(image_state, packed).to(logits.dtype)
    scores = logits + sims[own]
    return scores.where(texts_of_image, NOT_RANKED), scores.where(images_of_text, NOT_RANKED).t()

"""The filter: how well texts fit their images, by cosine (ITC) and by the matching head (ITM)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from blip_fast.data.packing import PackedTexts, pack
from blip_fast.models import BlipITM
from blip_fast.models.text import AttentionDropout, LookAt, encoder_stream, run_layers

MAX_TOKENS = 35  # published for retrieval


def pack_strings(model: BlipITM, texts: list[str]) -> PackedTexts:
    """Texts as the filter reads them, [CLS] first, cut at 35 tokens."""
    limit = min(MAX_TOKENS, model.config.max_position_embeddings)
    tokens = model.tokenizer(texts, padding="longest", truncation=True, max_length=limit, return_tensors="pt")
    device = model.itm_head.weight.device
    return pack(tokens.input_ids.to(device), tokens.attention_mask)  # the mask stays where lengths are read


@torch.no_grad()
def cosines(model: BlipITM, states: Tensor, texts: PackedTexts, image_of_text: Tensor) -> Tensor:
    """Cosine (S,) of each text's feature and its image's, states (B, L, vit_width)."""
    stream = encoder_stream(model.text_encoder, texts)
    (first,) = run_layers(model.text_encoder.encoder.layer, [stream], AttentionDropout(0.0, states.device))
    text_feat = F.normalize(model.text_proj(first), dim=-1)
    image_feat = F.normalize(model.vision_proj(states[:, 0]), dim=-1)
    return (text_feat * image_feat.index_select(0, image_of_text)).sum(-1)


@torch.no_grad()
def match_probabilities(model: BlipITM, states: Tensor, texts: PackedTexts, image_of_text: Tensor) -> Tensor:
    """Probability (S,) that each text matches its image; an image's keys and values serve all of its texts.

    Texts begin with [ENC], as the head was trained, not with the [CLS] of the published ``BLIP_ITM``.
    """
    texts = texts.with_first_token(model.config.enc_token_id)
    dropout = AttentionDropout(0.0, states.device)
    stream = encoder_stream(model.text_encoder, texts, image_of_text)
    (first,) = run_layers(model.text_encoder.encoder.layer, [stream], dropout, LookAt(states))
    return model.itm_head(first).float().softmax(dim=-1)[:, 1]

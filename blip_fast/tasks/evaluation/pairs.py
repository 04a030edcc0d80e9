"""What a pre-trained BLIP can do on pairs it has not seen: retrieval, matching, captions."""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from blip_fast.data.packing import pad_lists
from blip_fast.data.pretrain import PretrainData
from blip_fast.models import BlipCaptioner, BlipPretrain
from blip_fast.reference.text import with_first_token
from blip_fast.tasks.metrics.recalls import image_ranks


@dataclasses.dataclass(frozen=True)
class EncodedPairs:
    """N pairs as the model sees them.

    images (N, 3, S, S), image_states (N, L, width), image_features and text_features (N, E) of length 1, input_ids and
    attention_mask (N, T).
    """

    images: Tensor
    image_states: Tensor
    image_features: Tensor
    text_features: Tensor
    input_ids: Tensor
    attention_mask: Tensor


@torch.no_grad()
def encode_pairs(
    model: torch.nn.Module, pairs: PretrainData, device: torch.device, batch_size: int = 64
) -> EncodedPairs:
    """Encode all pairs with ``model``, a ``BlipPretrain`` in evaluation mode."""
    parts = []
    for start in range(0, len(pairs), batch_size):
        batch = [pairs[index] for index in range(start, min(start + batch_size, len(pairs)))]
        images = torch.stack([pair.image for pair in batch]).to(device)
        texts = pad_lists([pair.tokens for pair in batch], pairs.encoder.width)
        input_ids, attention_mask = (tensor.to(device) for tensor in texts)
        states = model.visual_encoder(images)
        hidden = model.text_encoder(input_ids, attention_mask, mode="text")
        image_features = F.normalize(model.vision_proj(states[:, 0]), dim=-1)
        text_features = F.normalize(model.text_proj(hidden[:, 0]), dim=-1)
        parts.append((images, states, image_features, text_features, input_ids, attention_mask))
    return EncodedPairs(*(torch.cat(columns) for columns in zip(*parts, strict=True)))


@torch.no_grad()
def matching_logits(model: torch.nn.Module, pairs: EncodedPairs, enc_token_id: int) -> Tensor:
    """ITM logits (N images, N texts, 2) of every image with every text; entry 1 of the last axis says "they match"."""
    input_ids = with_first_token(pairs.input_ids, enc_token_id)
    rows = []
    for states in pairs.image_states:
        repeated = states.expand(len(input_ids), -1, -1)
        hidden = model.text_encoder(input_ids, pairs.attention_mask, repeated)
        rows.append(model.itm_head(hidden[:, 0]))
    return torch.stack(rows)


def retrieval_scores(pairs: EncodedPairs, logits: Tensor) -> Tensor:
    """Published score (N images, N texts) of the second stage: ITM logit of "match" plus cosine of the features."""
    return logits[..., 1] + pairs.image_features @ pairs.text_features.T


def target_ranks(scores: Tensor) -> Tensor:
    """Rank (N), 0 = best, of the right candidate in each row of scores (N, N), where candidate n is right for row n."""
    if scores.ndim != 2 or scores.shape[0] != scores.shape[1] or not len(scores):
        raise ValueError(f"scores has shape {tuple(scores.shape)}; expected (N, N) with N >= 1")
    return image_ranks(scores, torch.arange(len(scores)))


def recall_at(scores: Tensor, k: int) -> float:
    """Share of the rows of scores (N, N) whose right candidate, on the diagonal, is among the best ``k``."""
    return float((target_ranks(scores) < k).double().mean())


def recalls(scores: Tensor) -> dict[str, float]:
    """Recall at 1 and 5 of scores (N images, N texts) in both directions, under the published names."""
    return {
        "txt_r1": recall_at(scores, 1),
        "txt_r5": recall_at(scores, 5),
        "img_r1": recall_at(scores.T, 1),
        "img_r5": recall_at(scores.T, 5),
    }


def caption_ids(model: BlipPretrain, images: Tensor, max_tokens: int) -> Tensor:
    """Captions (N, <= max_tokens) of images, [DEC] first, by the decoder of a pre-trained model (beam search)."""
    captioner = BlipCaptioner(model.config).to(images.device).eval()
    # not the state_dict: that of a sharded model is sharded even where its weights are whole
    state = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    captioner.load_state_dict({name: state[name] for name in captioner.state_dict()})
    start = torch.tensor([model.config.dec_token_id])
    return captioner.generate_ids(images, start, num_beams=3, max_length=max_tokens, min_length=2)


def decode_caption(tokenizer: PreTrainedTokenizerBase, ids: Tensor) -> str:
    """Text of ids (n) without special tokens; hyphens stand between their words as they do in the captions."""
    return tokenizer.decode(ids, skip_special_tokens=True).replace(" - ", "-")

"""What a pre-trained BLIP can do on pairs it has not seen: retrieval, matching, captions."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from blip_fast.data.pairs import Pair, PairDataset


@dataclasses.dataclass(frozen=True)
class EncodedPairs:
    """N pairs as the model sees them.

    image_states (N, L, width), image_features and text_features (N, E) of length 1, input_ids and attention_mask (N, T).
    """

    image_states: Tensor
    image_features: Tensor
    text_features: Tensor
    input_ids: Tensor
    attention_mask: Tensor


@torch.no_grad()
def encode_pairs(
    model: torch.nn.Module,
    pairs: PairDataset,
    tokenizer: PreTrainedTokenizerFast,
    max_tokens: int,
    device: torch.device,
    batch_size: int = 64,
) -> EncodedPairs:
    """Encode all pairs with ``model``, a ``BlipPretrain`` in evaluation mode."""
    parts: list[tuple[Tensor, ...]] = []
    for batch in _batches(pairs, batch_size):
        images = torch.stack([pair.image for pair in batch]).to(device)
        texts = tokenizer(
            [pair.caption for pair in batch],
            padding="max_length",
            truncation=True,
            max_length=max_tokens,
            return_tensors="pt",
        ).to(device)
        states = model.visual_encoder(images)
        hidden = model.text_encoder(texts.input_ids, texts.attention_mask, mode="text")
        image_features = F.normalize(model.vision_proj(states[:, 0]), dim=-1)
        text_features = F.normalize(model.text_proj(hidden[:, 0]), dim=-1)
        parts.append((states, image_features, text_features, texts.input_ids, texts.attention_mask))
    return EncodedPairs(*(torch.cat(columns) for columns in zip(*parts, strict=True)))


@torch.no_grad()
def matching_logits(model: torch.nn.Module, pairs: EncodedPairs, enc_token_id: int) -> Tensor:
    """ITM logits (N images, N texts, 2) of every image with every text; entry 1 of the last axis says "they match"."""
    input_ids = pairs.input_ids.clone()
    input_ids[:, 0] = enc_token_id
    rows = []
    for states in pairs.image_states:
        repeated = states.expand(len(input_ids), -1, -1)
        hidden = model.text_encoder(input_ids, pairs.attention_mask, repeated, mode="multimodal")
        rows.append(model.itm_head(hidden[:, 0]))
    return torch.stack(rows)


def target_ranks(scores: Tensor) -> Tensor:
    """Rank (N), 0 = best, of the right candidate in each row of scores (N, N), where candidate n is right for row n.

    A tie or a NaN counts against the right candidate: a model that answers the same to everything gets no credit.
    """
    worse = (scores < scores.diagonal()[:, None]).sum(1)
    return scores.shape[1] - 1 - worse


def recall_at(scores: Tensor, k: int) -> float:
    """Share of the rows of scores (N, N) whose right candidate, on the diagonal, is among the best ``k``."""
    if scores.ndim != 2 or scores.shape[0] != scores.shape[1] or not len(scores):
        raise ValueError(f"scores has shape {tuple(scores.shape)}; expected (N, N) with N >= 1")
    return float((target_ranks(scores) < k).double().mean())


def _batches(pairs: PairDataset, batch_size: int) -> Iterator[Sequence[Pair]]:
    for start in range(0, len(pairs), batch_size):
        yield [pairs[index] for index in range(start, min(start + batch_size, len(pairs)))]

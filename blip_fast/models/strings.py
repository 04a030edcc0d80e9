"""Texts in every form that the fused heads take: packed, padded ids with a mask, or strings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from blip_fast.checkpoints.pretrained import PretrainedModel
from blip_fast.data.packing import PackedTexts, pack
from blip_fast.data.tokens import Use, tokenize

Texts: TypeAlias = Tensor | PackedTexts | Sequence[str]


def pack_texts(
    texts: Texts, attention_mask: Tensor | None, use: Use, model: PretrainedModel, device: torch.device
) -> PackedTexts:
    """Packed texts on ``device``; see :func:`pack` for ids and mask, and :func:`padded_texts` for strings.

    Raises ValueError where texts that are tensors lie elsewhere; the mask may.
    """
    if not isinstance(texts, PackedTexts):
        texts = pack(*padded_texts(texts, attention_mask, use, model, device))
    found = texts.input_ids.device
    if found != device:
        raise ValueError(f"texts are on {found}; expected {device}, where images and model are")
    return texts


def own_images(texts: PackedTexts, images: int, device: torch.device) -> Tensor:
    """(S,) the image of each text where text b belongs to image b. ValueError where there are not as many of both."""
    if texts.count != images:
        raise ValueError(f"image has {images} images for {texts.count} texts; expected as many")
    return torch.arange(images, device=device)


def padded_texts(
    texts: Tensor | Sequence[str],
    attention_mask: Tensor | None,
    use: Use,
    model: PretrainedModel,
    device: torch.device,
) -> tuple[Tensor, Tensor | None]:
    """Ids (S, N) and mask as they are, or those of strings, tokenised for this model as published for this use.

    The ids of strings lie on ``device``; their mask stays on the CPU, so that packing knows the lengths.

    Raises ValueError where strings come with a mask, or where the model has no tokenizer.
    """
    if isinstance(texts, Tensor):
        return texts, attention_mask
    if attention_mask is not None:
        raise ValueError("attention_mask is given for texts that are strings; expected None, it follows from them")
    ids, mask = tokenize(texts, use, model.tokenizer)
    return ids.to(device), mask

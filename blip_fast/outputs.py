"""What the models return: small immutable records, the same for the reference and the fused path."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import torch.export
from torch import Tensor

Record = TypeVar("Record", bound=type)


def registered(record: Record) -> Record:
    """A dataclass that torch looks into: in others FSDP2 of torch 2.11 sees no tensors, and leaves weights as they are."""
    torch.export.register_dataclass(record)
    return record


class Negatives(NamedTuple):
    """Hard negatives of a batch of B pairs, as row indices into the candidates (int64).

    ``image_for_text[b]`` is the image that text b is wrongly paired with, ``text_for_image[b]`` the text for image b.
    """

    image_for_text: Tensor
    text_for_image: Tensor


@registered
@dataclass(frozen=True)
class PretrainOutput:
    """Losses of a pre-training step (scalars); ``loss = loss_itc + loss_itm + loss_lm``."""

    loss: Tensor
    loss_itc: Tensor
    loss_itm: Tensor
    loss_lm: Tensor
    negatives: Negatives


@registered
@dataclass(frozen=True)
class RetrievalOutput:
    """Losses of a retrieval fine-tuning step (scalars); ``loss = loss_itc + loss_itm``."""

    loss: Tensor
    loss_itc: Tensor
    loss_itm: Tensor
    negatives: Negatives


@registered
@dataclass(frozen=True)
class CaptionOutput:
    """Language-modelling loss of a batch of captions (scalar, mean over target tokens)."""

    loss: Tensor


@registered
@dataclass(frozen=True)
class VQAOutput:
    """Weighted answer loss of a batch of questions (scalar)."""

    loss: Tensor


class NLVROutput(NamedTuple):
    """Loss (scalar; None without labels) and logits (B, 2) of image pairs with a sentence each."""

    loss: Tensor | None
    logits: Tensor


@registered
@dataclass(frozen=True)
class VisDialOutput:
    """Matching loss (scalar; None without labels) and logits (B, C, 2) of C answers to each of B dialogues."""

    loss: Tensor | None
    logits: Tensor

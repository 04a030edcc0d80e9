"""What the files of sweeps share."""

from __future__ import annotations

import dataclasses

import torch

from ..job import Case, Setting
from ..ops.cross_attention import Job, attention_case

IMAGES = 8
TOKENS_224, TOKENS_384 = 197, 577  # of an image of that many pixels


def point(case: Case, quantity: str, value: float) -> Case:
    """The case as a point of a sweep over ``quantity``; aims belong to the sizes that users have."""
    return dataclasses.replace(case, size=(quantity, value), aims=())


def training_attention(setting: Setting, *, keys: int, texts: int, tokens: int) -> Case:
    """Cross-attention, forward and backward, of 8 images of ``keys`` tokens with ``texts`` texts of ``tokens`` tokens each."""
    dtype = torch.bfloat16 if setting.device.type == "cuda" else torch.float32
    name = f"{IMAGES} images of {keys} tokens, {texts} texts of {tokens} tokens each"
    lengths = torch.full((IMAGES * texts,), tokens)
    return attention_case(Job(name, IMAGES, keys, lengths, tokens, dtype), setting.device)

"""A small captioner and helpers for texts."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from blip_fast import models
from tests.models.common import pair

PROMPTS = torch.tensor([[101, 120, 130, 102, 0, 0], [101, 140, 102, 0, 0, 0], [101, 150, 160, 170, 180, 102]])
IMAGES = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(3))


@functools.cache
def captioner() -> models.BlipCaptioner:
    """Random weights under which texts differ, and some end early; shared between tests."""
    model = pair(models.BlipCaptioner, models.BlipCaptioner)[0].eval()
    with torch.no_grad():
        model.text_decoder.cls.predictions.bias[102] = 0.3
    return model


def teacher_forced(model: models.BlipCaptioner, images: Tensor, ids: Tensor) -> Tensor:
    """Log-probability of each token of texts (B, n) that the model gives when it reads them, 0 for the first."""
    states = model.visual_encoder(images)
    logits = model.text_decoder(ids, torch.ones_like(ids), states)
    logprobs = logits[:, :-1].log_softmax(dim=-1).gather(2, ids[:, 1:, None])[..., 0]
    return torch.nn.functional.pad(logprobs, (1, 0))

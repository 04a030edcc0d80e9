"""Negatives of retrieval are drawn from the similarities alone, without the constant of pre-training."""

from __future__ import annotations

import torch

from blip_fast.models import BlipRetrieval
from tests.models.heads import HEADS


def test_a_dominant_positive_hides_no_negative_of_retrieval():
    model = HEADS["retrieval"].build(BlipRetrieval)
    model.temp.data.fill_(0.001)
    features = torch.tensor([[1.0, 0.0, 0.0], [0.9, 0.19**0.5, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, -1.0]])
    for _ in range(5):
        picks = model.mine_negatives(features, features, torch.arange(4))
        assert [indices[:2].tolist() for indices in picks] == [[1, 0], [1, 0]]

"""Two-stage retrieval against the original implementation's scores, and what it asks of its input."""

from __future__ import annotations

import pytest
import torch

from blip_fast.models import BlipRetrieval
from blip_fast.tasks.evaluation.retrieval import retrieval_scores
from tests import golden


def test_scores_of_the_original_implementation() -> None:
    tensors, sidecar = golden.load("retrieval_eval")
    model = golden.build(BlipRetrieval, "retrieval")
    images = tensors["images"]
    found = retrieval_scores(
        model, images.split(2), len(images), (tensors["ids"], tensors["mask"]), k_test=sidecar["k_test"]
    )
    torch.testing.assert_close(found[0], tensors["score_i2t"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found[1], tensors["score_t2i"], rtol=1e-5, atol=1e-5)


def test_images_of_another_share_are_an_error() -> None:
    tensors, _ = golden.load("retrieval_eval")
    model = golden.build(BlipRetrieval, "retrieval")
    with pytest.raises(ValueError, match="own_images holds 1 images; expected 2, the share of rank 0 of 2"):
        retrieval_scores(model, [tensors["images"][:1]], 4, (tensors["ids"], tensors["mask"]), 2, rank=0, ranks=2)

"""The reference NLVR2 model against the original implementation."""

from __future__ import annotations

import pytest
import torch

from blip_fast.reference import BlipNLVR
from tests import golden

CASE = "nlvr"


def pairs() -> torch.Tensor:
    """Images as (B, 2, 3, S, S); the file has all first, then all second images."""
    return golden.load(CASE)[0]["image"].unflatten(0, (2, -1)).transpose(0, 1)


def test_loss_logits_and_gradients() -> None:
    tensors, _ = golden.load(CASE)
    model = golden.build(BlipNLVR, CASE).train()
    loss, logits = model(pairs(), tensors["ids"], tensors["mask"], tensors["targets"])
    torch.testing.assert_close(loss, tensors["loss"], rtol=1e-5, atol=0)
    torch.testing.assert_close(logits, tensors["prediction"], rtol=1e-5, atol=1e-6)
    loss.backward()
    golden.assert_gradients(model, CASE, "grad.", "gradient_check")


def test_without_labels_there_is_no_loss() -> None:
    tensors, _ = golden.load(CASE)
    out = golden.build(BlipNLVR, CASE)(pairs(), tensors["ids"], tensors["mask"])
    assert out.loss is None
    torch.testing.assert_close(out.logits, tensors["prediction"], rtol=1e-5, atol=1e-6)


def test_single_images_are_refused() -> None:
    tensors, _ = golden.load(CASE)
    with pytest.raises(ValueError, match=r"image_pairs .* expected \(B, 2, 3, S, S\)"):
        golden.build(BlipNLVR, CASE)(tensors["image"], tensors["ids"], tensors["mask"])

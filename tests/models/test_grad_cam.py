"""Heat maps of a match, against autograd through the whole reference model."""

from __future__ import annotations

import pytest
import torch

from blip_fast import reference
from blip_fast.config import BlipConfig
from blip_fast.models.grad_cam import match_heat_maps
from blip_fast.reference import text

IDS = torch.tensor([[101, 1037, 4937, 102], [101, 3899, 102, 0]])
MASK = (IDS != 0).long()


def build() -> reference.BlipITM:
    torch.manual_seed(0)
    model = reference.BlipITM(BlipConfig.tiny(image_size=24, vit_patch=8, text_layers=3, vocab_size=5000)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return model.eval()


@pytest.mark.parametrize("layer", [None, 0, 1, 2])
def test_against_autograd_through_everything(layer: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    model, image = build(), torch.randn(2, 3, 24, 24, dtype=torch.float64)
    attended = []

    def record(query, key, value, mask=None, dropout_p=0.0):
        scores = query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5
        attended.append((scores if mask is None else scores + mask).softmax(-1))
        return attended[-1] @ value

    monkeypatch.setattr(text, "attention", record)
    logits = model.itm(image, IDS, MASK)
    probabilities = attended[2 * (1 if layer is None else layer) + 1]  # self- and cross-attention take turns
    (gradient,) = torch.autograd.grad(logits[:, 1].sum(), probabilities)
    monkeypatch.undo()
    expected = (probabilities * gradient.relu()).mean(1)[:, :, 1:].reshape(2, 4, 3, 3) * MASK[:, :, None, None]
    found = match_heat_maps(model, image, IDS, MASK, layer)
    torch.testing.assert_close(found, expected.float())
    assert found.amax() > 0
    assert not found[1, 3].any()
    assert bool(found[0, 1:].any()) == (layer != 2)  # in the last layer only the first token is read
    assert all(parameter.grad is None for parameter in model.parameters())


def test_one_image_for_all_texts() -> None:
    model, image = build(), torch.randn(1, 3, 24, 24, dtype=torch.float64)
    with torch.inference_mode():
        once = match_heat_maps(model, image.clone(), IDS, MASK)
    torch.testing.assert_close(once, match_heat_maps(model, image.expand(2, -1, -1, -1), IDS, MASK))


def test_a_layer_that_is_not_there() -> None:
    with pytest.raises(ValueError, match=r"layer=3; expected a number from 0 to 2"):
        match_heat_maps(build(), torch.zeros(1, 3, 24, 24, dtype=torch.float64), IDS, MASK, 3)

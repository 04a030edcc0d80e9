"""Projected features: the fused extractor against the reference, against ITC, and where a checkpoint has none."""

from __future__ import annotations

import pytest
import torch

from blip_fast import models, reference
from tests.models.common import SIZES, pair, texts

IMAGES, TEXTS = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1)), texts(3, 9)


def test_projected_features_are_those_of_itc(plan, tmp_path):
    itm = pair(models.BlipITM, reference.BlipITM, text_heads=1, vit_heads=1)[1].eval()
    itm.save_pretrained(tmp_path / "itm.pth", "published")
    fused, plain = (m.BlipFeatureExtractor.from_pretrained(tmp_path / "itm.pth") for m in (models, reference))
    assert fused.load_report.initial == []
    features = [
        (m.image_features(IMAGES, projected=True), m.text_features(*TEXTS, projected=True)) for m in (fused, plain)
    ]
    torch.testing.assert_close(*features, rtol=1e-5, atol=1e-6)
    assert features[0][0].shape == features[0][1].shape == (3, SIZES["embed_dim"])
    torch.testing.assert_close(features[0][0] @ features[0][1].t(), itm.itc(IMAGES, *TEXTS), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("format", ["published", "safetensors"])
@pytest.mark.parametrize("projections", [False, True])
def test_projections_are_saved_with_the_model(format, projections, tmp_path):
    config = models.BlipConfig(**(SIZES | dict(text_heads=1, vit_heads=1)))
    model = models.BlipFeatureExtractor(config, projections=projections)
    model.save_pretrained(tmp_path, format)
    again = models.BlipFeatureExtractor.from_pretrained(tmp_path)
    assert again.projections == projections
    assert list(again.state_dict()) == list(model.state_dict())
    assert ("vision_proj.weight" in model.state_dict()) == projections


@pytest.mark.parametrize("module", [models, reference])
def test_without_projections(module):
    model = pair(module.BlipFeatureExtractor, module.BlipFeatureExtractor)[0]
    for call in (
        lambda: model.image_features(IMAGES, projected=True),
        lambda: model.text_features(*TEXTS, projected=True),
    ):
        with pytest.raises(ValueError, match="projected=True for a model without projections; expected"):
            call()


def test_one_image_is_that_of_all_texts():
    itm = pair(models.BlipITM, models.BlipITM)[0].eval()
    once, often = itm.itm(IMAGES[:1], *TEXTS), itm.itm(IMAGES[:1].expand(3, -1, -1, -1), *TEXTS)
    torch.testing.assert_close(once, often)
    assert not torch.allclose(once, itm.itm(IMAGES, *TEXTS))
    with pytest.raises(ValueError, match="image has 2 images for 3 texts; expected one, as many, or image_of_text"):
        itm.itm(IMAGES[:2], *TEXTS)

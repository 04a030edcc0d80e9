"""The reference matching model and feature extractor against the original implementation."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from blip_fast.reference import BlipFeatureExtractor, BlipITM
from tests import golden

CASE = "itm_features"


def test_matching_head() -> None:
    tensors, _ = golden.load(CASE)
    model = golden.build(BlipITM, CASE)
    logits = model.itm(tensors["image"], tensors["ids"], tensors["mask"])
    torch.testing.assert_close(logits, tensors["itm_logits"], rtol=1e-5, atol=2e-6)
    loss = F.cross_entropy(logits, tensors["itm_labels"])
    torch.testing.assert_close(loss, tensors["itm_loss"], rtol=1e-5, atol=0)
    loss.backward()
    parameters = dict(model.named_parameters())
    for name, expected in golden.with_prefix(CASE, "itm_grad.").items():
        if not name.endswith("key.bias"):  # their true gradient is zero
            assert golden.relative_error(parameters[name].grad, expected) < 1e-4, name


def test_contrastive_head() -> None:
    tensors, _ = golden.load(CASE)
    sims = golden.build(BlipITM, CASE).itc(tensors["image"], tensors["ids"], tensors["mask"])
    torch.testing.assert_close(sims, tensors["itc_sim"], rtol=1e-5, atol=2e-6)


def test_features() -> None:
    tensors, _ = golden.load(CASE)
    model = BlipFeatureExtractor(golden.config(CASE)).eval()
    state = golden.initial_state(CASE)
    model.load_state_dict({name: state[name] for name in model.state_dict()})
    image, ids, mask, short = (tensors[name] for name in ("image", "ids", "mask", "ids_nopad"))
    features = {
        "image": model.image_features(image),
        "text_pad": model.text_features(ids, mask),
        "text_nopad": model.text_features(short, torch.ones_like(short)),
        "multimodal_pad": model.multimodal_features(image, ids, mask),
        "multimodal_nopad": model.multimodal_features(image, short, torch.ones_like(short)),
    }
    for name, actual in features.items():
        torch.testing.assert_close(actual, tensors[f"feat.{name}"], rtol=0, atol=2e-5, msg=name)

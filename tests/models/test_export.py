"""What is served: programs that `torch.export` makes of the heads take batches of any size."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.export import Dim, export

from blip_fast import models
from tests.models.common import SIZES, texts

CALLS = {
    "image features": (models.BlipFeatureExtractor, lambda model, images, ids, mask: model.image_features(images)),
    "text features": (models.BlipFeatureExtractor, lambda model, images, ids, mask: model.text_features(ids, mask)),
    "multimodal features": (models.BlipFeatureExtractor, models.BlipFeatureExtractor.multimodal_features),
    "matching": (models.BlipITM, models.BlipITM.itm),
    "similarities": (models.BlipITM, models.BlipITM.itc),
    "caption loss": (models.BlipCaptioner, lambda model, *args: model(*args).loss),
    "nlvr": (models.BlipNLVR, lambda model, images, *args: model(torch.stack([images, -images], 1), *args).logits),
}


class Call(nn.Module):
    """One call of a model as a module, which is what can be exported."""

    def __init__(self, name):
        super().__init__()
        self.name = name
        self.model = CALLS[name][0](models.BlipConfig(**SIZES)).eval()

    def forward(self, images, ids, mask):
        return CALLS[self.name][1](self.model, images, ids, mask)


def inputs(batch):
    size = SIZES["image_size"]
    return torch.randn(batch, 3, size, size), *texts(batch, 9)


@pytest.mark.parametrize("name", CALLS)
@torch.no_grad()
def test_an_exported_head_takes_any_batch(name):
    torch.manual_seed(0)
    call, batch = Call(name), Dim("batch", min=2, max=64)
    program = export(call, inputs(3), dynamic_shapes=({0: batch},) * 3).module()
    for size in (2, 5, 64):
        given = inputs(size)
        torch.testing.assert_close(program(*given), call(*given), rtol=1e-5, atol=1e-6)

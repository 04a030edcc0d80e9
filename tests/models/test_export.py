"""What is served: programs that `torch.export` and ONNX make of the heads take batches of any size."""

from __future__ import annotations

import pytest
import torch
from onnx.reference import ReferenceEvaluator
from torch import nn
from torch.export import Dim, export

from blip_fast import models, reference
from tests.models.common import SIZES, texts

CALLS = {
    "image features": ("BlipFeatureExtractor", lambda model, images, ids, mask: model.image_features(images)),
    "text features": ("BlipFeatureExtractor", lambda model, images, ids, mask: model.text_features(ids, mask)),
    "multimodal features": ("BlipFeatureExtractor", lambda model, *args: model.multimodal_features(*args)),
    "matching": ("BlipITM", lambda model, *args: model.itm(*args)),
    "similarities": ("BlipITM", lambda model, *args: model.itc(*args)),
    "caption loss": ("BlipCaptioner", lambda model, *args: model(*args).loss),
    "nlvr": ("BlipNLVR", lambda model, images, *args: model(torch.stack([images, -images], 1), *args).logits),
}
NAMES = ("images", "ids", "mask")


class Call(nn.Module):
    """One call of a model as a module, which is what can be exported."""

    def __init__(self, package, name):
        super().__init__()
        model, self.call = CALLS[name]
        self.model = getattr(package, model)(models.BlipConfig(**SIZES)).eval()

    def forward(self, images, ids, mask):
        return self.call(self.model, images, ids, mask)


def inputs(batch):
    size = SIZES["image_size"]
    return torch.randn(batch, 3, size, size), *texts(batch, 9)


@pytest.mark.parametrize("name", CALLS)
@torch.no_grad()
def test_an_exported_head_takes_any_batch(name):
    torch.manual_seed(0)
    call, batch = Call(models, name), Dim("batch", min=2, max=64)
    program = export(call, inputs(3), dynamic_shapes=({0: batch},) * 3).module()
    for size in (2, 5, 64):
        given = inputs(size)
        torch.testing.assert_close(program(*given), call(*given), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["image features", "multimodal features", "matching"])
@torch.no_grad()
def test_onnx_takes_the_reference(name):
    torch.manual_seed(0)
    call, batch = Call(reference, name), Dim("batch", min=2, max=64)
    options = dict(dynamo=True, dynamic_shapes=({0: batch},) * 3, input_names=NAMES, verbose=False)
    program = ReferenceEvaluator(torch.onnx.export(call, inputs(3), **options).model_proto)
    given = inputs(5)
    feeds = {key: part.numpy() for key, part in zip(NAMES, given, strict=True) if key in program.input_names}
    torch.testing.assert_close(torch.from_numpy(program.run(None, feeds)[0]), call(*given), rtol=1e-5, atol=1e-5)

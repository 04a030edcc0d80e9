"""Layers that somebody has wrapped, as for LoRA, work in every path: they are called, not read."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from blip_fast import models, reference
from tests.models.common import pair, texts

IMAGES = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))


class Wrapped(nn.Module):
    """A linear layer, and a low-rank one beside it."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(base.out_features)
        self.base = base
        self.down = nn.Parameter(torch.randn(2, base.in_features, generator=generator) * 0.3)
        self.up = nn.Parameter(torch.randn(base.out_features, 2, generator=generator) * 0.3)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + x @ self.down.t() @ self.up.t()


def wrap(model: nn.Module, name: str) -> Wrapped:
    parent, _, child = name.rpartition(".")
    wrapped = Wrapped(model.get_submodule(name))
    setattr(model.get_submodule(parent), child, wrapped)
    return wrapped


def test_the_last_block_of_the_image_encoder():
    fused, plain = pair(models.BlipITM, reference.BlipITM)
    for model in (fused, plain):
        wrapped = wrap(model.eval(), "visual_encoder.blocks.1.attn.qkv")
    actual, expected = (model.itc(IMAGES, *texts(3, 6)) for model in (fused, plain))
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
    actual.sum().backward()
    assert fused.visual_encoder.blocks[1].attn.qkv.up.grad.any()
    assert wrapped.up.grad is None


@pytest.mark.parametrize("name", ["cls.predictions.decoder", "bert.encoder.layer.0.crossattention.self.key"])
def test_the_decoder_in_training(name):
    fused, plain = pair(models.BlipCaptioner, reference.BlipCaptioner)
    for model in (fused, plain):
        wrap(model.eval(), f"text_decoder.{name}")
    ids, mask = texts(3, 9)
    actual, expected = (model(IMAGES, ids, mask).loss for model in (fused, plain))
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
    actual.backward()
    assert fused.get_submodule(f"text_decoder.{name}").up.grad.any()


def test_the_decoder_in_generation():
    fused, plain = pair(models.BlipCaptioner, reference.BlipCaptioner)
    for model in (fused, plain):
        for part in ("query", "key"):
            wrap(model.eval(), f"text_decoder.bert.encoder.layer.0.attention.self.{part}")
    prompt = torch.tensor([101, 120, 102])
    assert torch.equal(*(model.generate_ids(IMAGES, prompt, num_beams=2, max_length=9) for model in (fused, plain)))

"""No shape and no value is read back from the device: whole steps on `meta`, forward on fake `cuda`, and a counter."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from blip_fast.benchmarks.models.counts import CountReads
from blip_fast.config import BlipConfig
from blip_fast.models import BlipCaptioner, BlipNLVR, BlipPretrain, BlipRetrieval, BlipVideoQA, BlipVisDial, BlipVQA

CONFIG = BlipConfig.tiny(vocab_size=300, text_layers=2, vit_depth=2, queue_size=64)


def losses(device: str):
    """Each head with inputs on ``device``: name -> a function that builds the loss."""
    with torch.device(device):
        batch = 3
        image = torch.randn(batch, 3, CONFIG.image_size, CONFIG.image_size)
        ids = torch.zeros(batch, 9, dtype=torch.int64)
        mask = torch.ones(batch, 9, dtype=torch.int64)
        pairs, weights = torch.stack([image, image], 1), torch.ones(batch)
        counts = torch.ones(batch, dtype=torch.int64)
        rows = torch.zeros(batch, dtype=torch.int64)
        frames, pool = pairs, torch.stack([ids, ids], 1)
        dialogues = (image, ids, mask, ids, mask, pool, torch.ones_like(pool))
        return {
            "pretrain": (BlipPretrain, lambda m: m(image, ids, mask, alpha=0.4).loss),
            "retrieval": (BlipRetrieval, lambda m: m(image, ids, mask, ids=rows, alpha=0.4).loss),
            "caption": (BlipCaptioner, lambda m: m(image, ids, mask).loss),
            "vqa": (BlipVQA, lambda m: m(image, ids, mask, ids, mask, counts, weights).loss),
            "nlvr": (BlipNLVR, lambda m: m(pairs, ids, mask, rows).loss),
            "videoqa": (BlipVideoQA, lambda m: m(frames, ids, mask, ids, mask, counts, weights).loss),
            "visdial": (BlipVisDial, lambda m: m(*dialogues, labels=torch.zeros_like(pool[..., 0])).loss),
        }


def on_fake_cuda(model: torch.nn.Module) -> torch.nn.Module:
    """The model with empty parameters and buffers on "cuda"; inside FakeTensorMode no memory is taken."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                empty = torch.empty(parameter.shape, device="cuda")
                module._parameters[name] = torch.nn.Parameter(empty, requires_grad=parameter.requires_grad)
        for name, buffer in module._buffers.items():
            module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device="cuda")
    return model


HEADS = ["pretrain", "retrieval", "caption", "vqa", "nlvr", "videoqa", "visdial"]


@pytest.mark.parametrize("head", HEADS)
def test_whole_step_on_meta(head):
    make, loss_of = losses("meta")[head]
    with torch.device("meta"):
        model = make(CONFIG)
    optimizer = torch.optim.AdamW(model.parameters())
    with CountReads() as reads:
        loss = loss_of(model)
        loss.backward()
    optimizer.step()  # torch's own reads its step counters, which lie on the host
    assert loss.device.type == "meta"
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    assert reads.found == []


@pytest.mark.parametrize("head", HEADS)
def test_forward_on_fake_cuda(head):
    with FakeTensorMode():
        make, loss_of = losses("cuda")[head]
        with torch.device("meta"):
            model = make(CONFIG)
        with torch.no_grad():
            loss = loss_of(on_fake_cuda(model))
    assert loss.device.type == "cuda"


def test_the_counter_counts():
    with CountReads() as reads:
        x = torch.ones(3)
        x.sum().item()
        x.nonzero()
        x[x > 0]
    assert len(reads.found) >= 3

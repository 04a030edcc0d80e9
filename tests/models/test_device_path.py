"""No shape and no value is read back from the device: whole steps on `meta`, forward on fake `cuda`, and a counter."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from blip_fast import models
from blip_fast.benchmarks.models.counts import CountReads
from blip_fast.generation import GeneratedIds
from blip_fast.optim import AdamWMomentum
from tests.models.heads import HEADS

DROPOUTS = dict(hidden_dropout=0.1, attention_dropout=0.1, drop_path=0.1)


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


@pytest.mark.parametrize("momentum_in_forward", [True, False])
@pytest.mark.parametrize("name", HEADS)
def test_whole_step_on_meta(name, momentum_in_forward):
    head = HEADS[name]
    with torch.device("meta"):
        model = head.build(getattr(models, head.name), **DROPOUTS)
    inputs = tuple(tensor.to("meta") for tensor in head.inputs())
    pairs = ()
    if hasattr(model, "momentum_pairs"):
        model.momentum_in_forward = momentum_in_forward
        pairs = () if momentum_in_forward else model.momentum_pairs()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = AdamWMomentum(trained, pairs)
    with CountReads() as reads:
        loss = head.loss(model, inputs)
        loss.backward()
        optimizer.step()
    assert loss.device.type == "meta"
    assert all(parameter.grad is not None for parameter in trained)
    assert reads.found == []


@pytest.mark.parametrize("name", HEADS)
def test_forward_on_fake_cuda(name):
    head = HEADS[name]
    with torch.device("meta"):
        model = head.build(getattr(models, head.name), **DROPOUTS)
    with FakeTensorMode(), torch.no_grad():
        inputs = tuple(torch.empty(t.shape, dtype=t.dtype, device="cuda") for t in head.inputs())
        loss = head.loss(on_fake_cuda(model), inputs)
    assert loss.device.type == "cuda"


def test_answers_are_generated_with_masks_on_the_cpu(monkeypatch):
    """Where data loaders leave them, so that lengths can be read. What reads tokens is left out: fakes have no values."""
    with torch.device("meta"):
        model = HEADS["vqa"].build(models.BlipVQA).eval()
    monkeypatch.setattr(
        "blip_fast.models.vqa.generate", lambda decoder, states, *rest: GeneratedIds(states, states, states)
    )
    monkeypatch.setattr("blip_fast.models.vqa.prompts_of", lambda *arguments: None)
    with FakeTensorMode():
        images, ids = torch.empty(2, 3, 16, 16, device="cuda"), torch.ones(2, 5, dtype=torch.int64, device="cuda")
        states = on_fake_cuda(model).generate_ids(images, ids, torch.ones(2, 5, dtype=torch.int64))
    assert states.device.type == "cuda"


def test_the_counter_counts():
    with CountReads() as reads:
        x = torch.ones(3)
        x.sum().item()
        x.nonzero()
        x[x > 0]
    assert len(reads.found) >= 3

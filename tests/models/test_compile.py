"""`torch.compile(fullgraph=True)` of forward and loss of every head: no graph break, same losses and gradients."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from blip_fast import models
from blip_fast.data.packing import pack
from tests.models.common import texts
from tests.models.heads import HEADS

# aot_eager traces forward and backward as inductor's default does, and compiles no code: quick.
OPTIONS = dict(fullgraph=True, dynamic=False, backend="aot_eager")


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def loss_and_gradients(head, model, loss_of):
    torch.manual_seed(1)
    model.zero_grad()
    loss = loss_of(model, head.inputs())
    loss.backward()
    return {"loss": loss} | {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    ("name", "mode"), [*((name, None) for name in HEADS), ("caption", "full"), ("caption", "selective")]
)
def test_fullgraph(name, mode):
    head = HEADS[name]
    model = head.build(getattr(models, head.name))
    model.momentum_in_forward = False  # the optimizer's business
    for encoder in ("visual_encoder", "text_encoder", "text_decoder") if mode else ():
        if hasattr(model, encoder):
            getattr(model, encoder).set_grad_checkpointing(mode=mode)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    negatives = (torch.tensor([1, 2, 0]), torch.tensor([2, 0, 1]))
    loss_of = head.loss
    if name in ("pretrain", "retrieval"):  # draws differ between the two
        loss_of = lambda m, args: head.loss(lambda *a, **o: m(*a, **o, negatives=negatives), args)  # noqa: E731
    expected = loss_and_gradients(head, model, loss_of)
    model.load_state_dict(state)
    actual = loss_and_gradients(head, model, torch.compile(loss_of, **OPTIONS))
    assert actual.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(actual[key], value, rtol=1e-4, atol=1e-6, msg=key)


def test_fullgraph_with_drawn_negatives_and_dropout():
    head = HEADS["pretrain"]
    one_layer = dict(text_layers=1, vit_depth=1)  # it has everything that drops, and traces in half the time
    model = head.build(models.BlipPretrain, hidden_dropout=0.1, attention_dropout=0.1, **one_layer)
    loss = torch.compile(head.loss, **OPTIONS)(model, head.inputs())
    loss.backward()
    assert torch.isfinite(loss)


def test_texts_of_other_lengths_do_not_compile_anew():
    head = HEADS["caption"]
    model, (images, *_) = head.build(models.BlipCaptioner), head.inputs()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(head.loss, fullgraph=True, backend=counter)
    for width in (15, 16, 22, 30, 18):
        packed = pack(*texts(len(images), width, generator=width))
        loss = compiled(model, (images, packed))
        loss.backward()
        torch.testing.assert_close(loss, head.loss(model, (images, packed)))
    assert counter.frame_count <= 2  # the first lengths, and then any

"""Mixed precision: whole steps under autocast with float32 masters, for every head."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from blip_fast import models
from blip_fast.models.strings import pack_texts
from blip_fast.optim import AdamWMomentum
from tests.models.heads import HEADS, Head

# relative error of the loss; smallest cosine between the gradient and that of float32, all parameters together
TOLERANCE = {torch.bfloat16: (0.005, 0.999), torch.float16: (0.0005, 0.9999)}
NEGATIVES = (torch.tensor([1, 2, 0]), torch.tensor([2, 0, 1]))


def loss_of(head: Head, model: torch.nn.Module) -> torch.Tensor:
    """With given negatives: at another precision, others might be drawn."""
    if hasattr(model, "draw_negatives"):
        return head.loss(lambda *args, **options: model(*args, **options, negatives=NEGATIVES), head.inputs())
    return head.loss(model, head.inputs())


def gradient(model: torch.nn.Module) -> torch.Tensor:
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert all(grad.dtype == torch.float32 for grad in gradients)
    return torch.cat([grad.flatten() for grad in gradients])


@pytest.mark.parametrize("dtype", TOLERANCE, ids=["bfloat16", "float16"])
@pytest.mark.parametrize("name", HEADS)
def test_whole_step(name, dtype, plan):
    head, (error, cosine) = HEADS[name], TOLERANCE[dtype]
    model = head.build(getattr(models, head.name))
    pairs = model.momentum_pairs() if hasattr(model, "momentum_pairs") else ()
    model.momentum_in_forward = False
    state = {key: value.clone() for key, value in model.state_dict().items()}
    expected = loss_of(head, model)
    expected.backward()
    expected_gradient = gradient(model)

    model.load_state_dict(state)
    optimizer = AdamWMomentum([p for p in model.parameters() if p.requires_grad], pairs, lr=1e-3)
    optimizer.zero_grad()
    with torch.autocast("cpu", dtype):
        loss = loss_of(head, model)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, enabled=dtype == torch.float16)
    scaler.scale(loss).backward()
    torch.testing.assert_close(loss.float(), expected, rtol=error, atol=0)
    assert F.cosine_similarity(gradient(model), expected_gradient, dim=0) > cosine
    scaler.step(optimizer)
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, state[key])}
    assert {key for key, p in model.named_parameters() if p.grad is not None} <= changed
    assert all(value.dtype == state[key].dtype for key, value in model.state_dict().items())
    assert all(value.isfinite().all() for value in model.state_dict().values())


@pytest.mark.parametrize("name", ["pretrain", "retrieval"])
def test_momentum_encoders_alone_in_bfloat16(name):
    """Asked for, the momentum features are those of autocast; everything else stays float32."""
    head = HEADS[name]
    model = head.build(getattr(models, head.name))
    image, ids, mask = head.inputs()[:3]
    texts = pack_texts(ids, mask, name, model.config, image.device)
    exact = model.features_m(image, texts, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model.features_m(image, texts, torch.float32)
    model.momentum_dtype = torch.bfloat16
    for ours, want, other in zip(model.features_m(image, texts, torch.float32), rounded, exact, strict=True):
        assert torch.equal(ours, want)
        assert not torch.equal(ours, other)
        torch.testing.assert_close(ours, other, rtol=0, atol=0.02)
    loss = head.loss(model, head.inputs())
    loss.backward()
    assert loss.dtype == torch.float32
    assert all(copy.dtype == torch.float32 for copy, _ in model.momentum_pairs())

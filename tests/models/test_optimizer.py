"""The momentum update in the forward pass, as published, and in the optimizer's step give the same model."""

from __future__ import annotations

import torch

from blip_fast.models import BlipPretrain
from blip_fast.optim import AdamWMomentum
from tests import golden

CASE = "pretrain"


def train(in_optimizer: bool, steps: int = 3) -> BlipPretrain:
    tensors, sidecar = golden.load(CASE)
    hyper = sidecar["hyper"]
    model = golden.build(BlipPretrain, CASE).train()
    model.momentum_in_forward = not in_optimizer
    options = dict(lr=hyper["lr"], weight_decay=hyper["weight_decay"])
    if in_optimizer:
        optimizer = AdamWMomentum(model.parameters(), model.momentum_pairs(), hyper["momentum"], **options)
        optimizer.update_copies()  # what the first forward pass would have done
    else:
        optimizer = torch.optim.AdamW(model.parameters(), **options)
    for step in range(1, steps + 1):
        batch = [tensors[f"step{step}.{name}"] for name in ("image", "ids", "mask")]
        negatives = (tensors[f"step{step}.neg_image_idx"], tensors[f"step{step}.neg_text_idx"])
        out = model(*batch, alpha=hyper["step_alphas"][step - 1], negatives=negatives)
        losses = torch.stack([out.loss_itc, out.loss_itm, out.loss_lm])
        torch.testing.assert_close(losses, tensors[f"step{step}.loss"], rtol=1e-5, atol=0)
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
    if not in_optimizer:
        model.update_momentum()  # the optimizer's step has done this one already
    return model


def test_both_places_give_the_same_model():
    in_forward, in_optimizer = train(False), train(True)
    noise = golden.load(CASE)[1]["final_state_float32_vs_float64_max_abs"]
    others = dict(in_optimizer.named_parameters())  # tied ones once, under the names that the noise is listed by
    for name, value in in_forward.named_parameters():
        slack = 2 * max(noise.get(name, 0.0), noise.get(name.replace("_m.", ".", 1), 0.0))
        torch.testing.assert_close(others[name], value, rtol=0, atol=2e-6 + slack, msg=name)


def test_it_is_never_done_twice():
    model = golden.build(BlipPretrain, CASE).train()
    model.momentum_in_forward = False
    before = [copy.clone() for copy, _ in model.momentum_pairs()]
    with torch.no_grad():
        for _, param in model.momentum_pairs():
            param.add_(1.0)
    tensors, _ = golden.load(CASE)
    model(tensors["image"], tensors["ids"], tensors["mask"], alpha=0.4)
    assert all(torch.equal(copy, old) for (copy, _), old in zip(model.momentum_pairs(), before, strict=True))

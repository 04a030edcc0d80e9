from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from blip_fast import reference
from blip_fast.models import BlipConfig, BlipPretrain
from blip_fast.training.settings import PretrainSettings
from blip_fast.training.trainer import Trainer, grouped
from tests.models.common import SIZES, texts


class Line(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
        self.unused = torch.nn.Parameter(torch.ones(1))


def line_losses(model: torch.nn.Module, batch: float, alpha: float) -> dict[str, Tensor]:
    return {"square": ((model.weight - batch) ** 2).sum(), "linear": alpha * model.weight.sum()}


def line_trainer(**settings: Any) -> Trainer[float]:
    return Trainer(Line(), line_losses, PretrainSettings(**settings))


def test_steps_equal_plain_adamw_on_the_sum_of_losses() -> None:
    trainer = line_trainer()
    weight = torch.tensor([1.0, -2.0], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.AdamW([weight], lr=1.0, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.05)
    for batch, rate in zip([0.5, 1.5, -1.0], [0.1, 0.01, 0.2], strict=True):
        losses = trainer.step((batch,), rate, alpha=0.5)
        assert not losses["square"].requires_grad
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        (((weight - batch) ** 2).sum() + 0.5 * weight.sum()).backward()
        optimizer.step()
    torch.testing.assert_close(trainer.model.weight.detach().double(), weight.detach(), rtol=1e-5, atol=1e-6)
    assert trainer.model.unused.item() == 1.0  # without a gradient there is no weight decay, as published


def test_batches_of_one_step_are_averaged() -> None:
    trainer, expected = line_trainer(), line_trainer()
    losses = trainer.step((1.0, 3.0), 0.1, 0.5)
    assert losses["square"].item() == pytest.approx((0 + 9 + 4 + 25) / 2)
    # the gradient of the average is that at the average target
    expected.step((2.0,), 0.1, 0.5)
    torch.testing.assert_close(trainer.model.weight, expected.model.weight)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_gradients_are_clipped_to_the_norm(precision: str) -> None:
    trainer = line_trainer(clip_norm=0.5, precision=precision)
    trainer.step((1.0,), 0.1, 0.0)
    moment = trainer.optimizer.state[trainer.model.weight]["exp_avg"]
    assert (moment.norm() / 0.1).item() == pytest.approx(0.5, rel=1e-4)  # beta1 is 0.9


def test_fp16_skips_a_step_that_overflows_and_halves_the_scale() -> None:
    trainer = line_trainer(precision="fp16")
    scale = trainer.precision.scaler.get_scale()
    before = trainer.model.weight.detach().clone()
    trainer.step((1e38,), 0.1, 0.0)
    assert torch.equal(trainer.model.weight, before)
    assert trainer.precision.scaler.get_scale() == scale / 2
    trainer.step((1.0,), 0.1, 0.0)
    assert not torch.equal(trainer.model.weight, before)


def pretrain_losses(model: torch.nn.Module, batch: int, alpha: float) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(batch)
    ids, mask = texts(4, 8, generator=batch)
    rows = torch.arange(4)
    images = torch.randn(4, 3, 16, 16, generator=generator)
    out = model(images, ids, mask, alpha=alpha, negatives=(rows.roll(1), rows.roll(-1)))
    return {"loss_ita": out.loss_itc, "loss_itm": out.loss_itm, "loss_lm": out.loss_lm}


def test_pretraining_steps_are_the_published_ones() -> None:
    """Learning rate, zero_grad, forward (which moves the copies), backward, step: the reference with plain AdamW."""
    config = BlipConfig(**SIZES | {"momentum": 0.9})
    torch.manual_seed(0)
    published = reference.BlipPretrain(config).train()
    with torch.no_grad():  # a checkpoint's copies are not those of its weights
        for parameter in published.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    ours = BlipPretrain(config).train()
    ours.load_state_dict(published.state_dict())
    trainer = Trainer(ours, pretrain_losses, PretrainSettings())
    optimizer = torch.optim.AdamW(published.parameters(), lr=1.0, weight_decay=0.05)
    for step in range(4):
        lr, alpha = 1e-3 / (step + 1), 0.1 * step
        optimizer.param_groups[0]["lr"] = lr
        optimizer.zero_grad()
        expected = pretrain_losses(published, step, alpha)
        sum(expected.values()).backward()
        optimizer.step()
        found = trainer.step((step,), lr, alpha)
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value.detach(), rtol=1e-4, atol=1e-5, msg=f"{name}, step {step}")
    assert ours.momentum_in_forward is False
    published.update_momentum()  # in the published order, the next forward pass does it
    for name, tensor in published.state_dict().items():
        if not name.endswith(("qkv.bias", "key.bias")):  # the true gradient of keys' biases is zero
            torch.testing.assert_close(ours.state_dict()[name], tensor, rtol=1e-3, atol=1e-4, msg=name)


def test_bf16_is_close_to_fp32() -> None:
    results = []
    for precision in ("fp32", "bf16"):
        torch.manual_seed(0)
        model = BlipPretrain(BlipConfig(**SIZES)).train()
        trainer = Trainer(model, pretrain_losses, PretrainSettings(precision=precision))
        results.append(trainer.step((0,), 1e-3, 0.4))
        assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    for name in results[0]:
        assert results[1][name].item() == pytest.approx(results[0][name].item(), rel=0.03)
        assert results[1][name].item() != results[0][name].item()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(precision="fp16", strategy="fsdp"), "precision='fp16' cannot scale"),
        (dict(cuda_graph=True, clip_norm=1.0), "cuda_graph=True does not go with clip_norm"),
        (dict(cuda_graph=True, accumulate=2), "cuda_graph=True does not go with accumulate"),
    ],
)
def test_settings_that_exclude_each_other(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        line_trainer(**settings)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_graphs_need_a_gpu() -> None:
    with pytest.raises(RuntimeError, match="a CUDA graph needs all parameters on one GPU"):
        line_trainer(cuda_graph=True).step((1.0,), 0.1, 0.0)


def test_groups_leave_out_what_does_not_fill_one() -> None:
    assert list(grouped(range(7), 3)) == [(0, 1, 2), (3, 4, 5)]
    assert list(grouped([], 2)) == []

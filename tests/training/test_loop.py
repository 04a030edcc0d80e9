from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from blip_fast.training.loop import StepReport, adamw, train


class Line(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
        self.unused = torch.nn.Parameter(torch.ones(1))


def run(model: Line, batches: list[float], steps: int, **schedules: Any) -> list[StepReport]:
    reports: list[StepReport] = []

    def losses(batch: float, alpha: float) -> dict[str, Tensor]:
        return {"square": ((model.weight - batch) ** 2).sum(), "linear": alpha * model.weight.sum()}

    train(
        losses,
        batches,
        adamw(model, lr=1.0, weight_decay=0.05),
        total_steps=steps,
        lr_at=schedules.get("lr_at", lambda epoch, step: 0.1),
        alpha_at=schedules.get("alpha_at", lambda epoch, step: 0.5),
        on_step=reports.append,
    )
    return reports


def test_steps_equal_plain_adamw_on_the_sum_of_losses() -> None:
    model = Line()
    rates = [0.1, 0.01, 0.2]
    run(model, [0.5, 1.5, -1.0], 3, lr_at=lambda epoch, step: rates[step])

    weight = torch.tensor([1.0, -2.0], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.AdamW([weight], lr=1.0, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.05)
    for batch, rate in zip([0.5, 1.5, -1.0], rates, strict=True):
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        (((weight - batch) ** 2).sum() + 0.5 * weight.sum()).backward()
        optimizer.step()
    torch.testing.assert_close(model.weight.detach().double(), weight.detach(), rtol=1e-5, atol=1e-6)
    assert model.unused.item() == 1.0  # without a gradient there is no weight decay, as published


def test_batches_are_repeated_until_the_last_step_and_schedules_count_within_the_epoch() -> None:
    places: list[tuple[int, int]] = []

    def lr_at(epoch: int, step: int) -> float:
        places.append((epoch, step))
        return 0.1

    reports = run(Line(), [1.0, 2.0, 3.0], 7, lr_at=lr_at)
    assert places == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (2, 0)]
    assert [(report.step, report.epoch) for report in reports] == list(enumerate([0, 0, 0, 1, 1, 1, 2]))


def test_reports_hold_rate_alpha_and_losses_without_graph() -> None:
    report = run(Line(), [1.0], 1, lr_at=lambda epoch, step: 0.25, alpha_at=lambda epoch, step: 0.75)[0]
    assert (report.lr, report.alpha) == (0.25, 0.75)
    assert report.losses["square"].item() == 9.0
    assert report.losses["linear"].item() == -0.75
    assert not report.losses["linear"].requires_grad


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="total_steps=0"):
        run(Line(), [1.0], 0)
    with pytest.raises(ValueError, match="batches is empty"):
        run(Line(), [], 1)

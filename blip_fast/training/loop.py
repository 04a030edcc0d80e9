"""The training loop: one optimizer step after another, in the published order."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

import torch

Batch = TypeVar("Batch")


@dataclasses.dataclass(frozen=True)
class StepReport:
    """What one step did: its number (from 0), epoch, learning rate, alpha, and losses (scalar tensors, detached)."""

    step: int
    epoch: int
    lr: float
    alpha: float
    losses: Mapping[str, torch.Tensor]


def adamw(model: torch.nn.Module, lr: float, weight_decay: float) -> torch.optim.AdamW:
    """The published optimizer: every parameter in one group, decay on biases and norms too."""
    # fused: the same update in one pass over memory instead of a dozen.
    return torch.optim.AdamW(
        model.parameters(), lr=lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=weight_decay, fused=True
    )


def train(
    compute_losses: Callable[[Batch, float], Mapping[str, torch.Tensor]],
    batches: Iterable[Batch],
    optimizer: torch.optim.Optimizer,
    *,
    total_steps: int,
    lr_at: Callable[[int, int], float],
    alpha_at: Callable[[int, int], float],
    on_step: Callable[[StepReport], None],
) -> None:
    """Run ``total_steps`` optimizer steps over ``batches``, which is iterated anew for every epoch.

    Each step: set the learning rate ``lr_at(epoch, step in epoch)``, clear gradients, compute the losses with
    ``alpha_at(epoch, step in epoch)``, backward through their sum, optimizer step.
    """
    if total_steps < 1:
        raise ValueError(f"total_steps={total_steps} must be at least 1")
    for number, (epoch, step, batch) in enumerate(itertools.islice(_endless(batches), total_steps)):
        lr, alpha = lr_at(epoch, step), alpha_at(epoch, step)
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.zero_grad()
        losses = compute_losses(batch, alpha)
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()
        on_step(StepReport(number, epoch, lr, alpha, {name: loss.detach() for name, loss in losses.items()}))


def _endless(batches: Iterable[Batch]) -> Iterable[tuple[int, int, Batch]]:
    for epoch in itertools.count():
        step = -1
        for step, batch in enumerate(batches):
            yield epoch, step, batch
        if step < 0:
            raise ValueError("batches is empty; expected at least one batch per epoch (fewer pairs than a batch?)")

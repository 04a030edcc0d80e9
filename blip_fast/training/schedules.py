"""Learning-rate and alpha schedules of the published BLIP, as plain functions of epoch and step."""

from __future__ import annotations

import math


def linear_warmup(step: int, warmup_steps: int, warmup_lr: float, init_lr: float) -> float:
    """Linear from ``warmup_lr`` at step 0 to ``init_lr`` at ``warmup_steps``, then constant."""
    return min(init_lr, warmup_lr + (init_lr - warmup_lr) * step / max(warmup_steps, 1))


def step_decay(epoch: int, init_lr: float, min_lr: float, decay_rate: float) -> float:
    """Multiplied by ``decay_rate`` every epoch, down to ``min_lr``."""
    return max(min_lr, init_lr * decay_rate**epoch)


def cosine_decay(epoch: float, max_epoch: float, init_lr: float, min_lr: float) -> float:
    """Half a cosine from ``init_lr`` at epoch 0 to ``min_lr`` at ``max_epoch`` (published for fine-tuning)."""
    return (init_lr - min_lr) * 0.5 * (1.0 + math.cos(math.pi * epoch / max_epoch)) + min_lr


def pretrain_lr(
    epoch: int, step: int, *, init_lr: float, min_lr: float, warmup_lr: float, decay_rate: float, warmup_steps: int
) -> float:
    """Pre-training as published: warm-up by step during epoch 0, then decay by epoch. ``step`` counts in the epoch."""
    if epoch == 0:
        return linear_warmup(step, warmup_steps, warmup_lr, init_lr)
    return step_decay(epoch, init_lr, min_lr, decay_rate)


def alpha_ramp(epoch: int, step: int, steps_per_epoch: int, alpha: float) -> float:
    """Weight of the momentum targets in pre-training: linear from 0 to ``alpha`` over the first two epochs."""
    return alpha * min(1.0, (epoch * steps_per_epoch + step) / (2 * steps_per_epoch))

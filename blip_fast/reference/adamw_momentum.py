"""AdamW step and momentum copies, tensor by tensor: torch.optim.AdamW's arithmetic, then the published copy update."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from blip_fast.reference.momentum import momentum_update_


def adamw_momentum_step_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    steps: Sequence[Tensor],
    params_m: Sequence[Tensor | None],
    *,
    lr: float | Tensor,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.01,
    momentum: float = 0.995,
    grad_factor: Tensor | None = None,
    found_inf: Tensor | None = None,
) -> None:
    """One step of every parameter and of its momentum copy, if it has one; see `blip_fast.ops.adamw_momentum_step_`."""
    for *tensors, copy in zip(params, grads, exp_avgs, exp_avg_sqs, steps, params_m, strict=True):
        rate = torch.as_tensor(lr, dtype=params[0].dtype, device=params[0].device)
        lists = ([tensor] for tensor in tensors)
        copies = [] if copy is None else [copy]
        step_(*lists, copies, rate, *betas, eps, weight_decay, momentum, grad_factor, found_inf)


@torch.no_grad()
def step_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    steps: Sequence[Tensor],
    params_m: Sequence[Tensor],
    lr: Tensor,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    momentum: float,
    grad_factor: Tensor | None = None,
    found_inf: Tensor | None = None,
) -> None:
    """The step of a list of parameters, of which the first ``len(params_m)`` have momentum copies."""
    for param, grad, exp_avg, exp_avg_sq, step in zip(params, grads, exp_avgs, exp_avg_sqs, steps, strict=True):
        grad = grad.to(param.dtype) if grad_factor is None else grad.to(param.dtype) * grad_factor
        count = step.double() + 1
        new_avg = exp_avg + (grad - exp_avg) * (1 - beta1)
        new_avg_sq = exp_avg_sq * beta2 + grad * grad * (1 - beta2)
        step_size = (lr / (1 - beta1**count)).to(param.dtype)
        root = new_avg_sq.sqrt() / (1 - beta2**count).sqrt().to(param.dtype)
        new_param = param * (1 - lr * weight_decay).to(param.dtype) - step_size * new_avg / (root + eps)
        pairs = ((param, new_param), (exp_avg, new_avg), (exp_avg_sq, new_avg_sq), (step, count))
        for old, new in pairs:
            old.copy_(new if found_inf is None else torch.where(found_inf != 0, old, new))
    momentum_update_(params_m, params[: len(params_m)], momentum)

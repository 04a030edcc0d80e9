"""AdamW step and update of the momentum copies in one pass over memory (Loshchilov & Hutter 2019; BLIP section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from blip_fast.ops.registry import Operation
from blip_fast.reference import adamw_momentum as reference


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
    """One AdamW step of a list of parameters, in place, and in the same pass their momentum copies.

    As `torch.optim.AdamW` (decoupled weight decay, bias correction), then ``copy = momentum * copy + (1 - momentum) *
    param`` with the new parameter. One launch (or one threaded pass) for the whole list: 36 bytes of memory traffic
    per fp32 parameter with a copy, 28 without. Gradients are read only. No gradient is recorded.

    Args:
        params: float32 (float64: reference backend), contiguous, any shapes.
        grads: of the parameters' shapes; float32, bfloat16 or float16.
        exp_avgs, exp_avg_sqs: running averages of gradient and square, of the parameters' shapes and dtype.
        steps: float32, one element each: steps taken so far; advanced by one.
        params_m: the momentum copies, of the parameters' shapes and dtype; None where a parameter has none.
        lr: learning rate, a number or a tensor of one element on the device (what a CUDA graph needs to change it).
        betas, eps, weight_decay: as `torch.optim.AdamW`; betas in [0, 1).
        momentum: weight of the copy's old value, in [0, 1].
        grad_factor: float32, one element: gradients are multiplied by it (inverse loss scale, clipping), or None.
        found_inf: float32, one element: where it is not 0, parameters, averages and steps keep their values. The
            copies follow all the same, as the published update, which runs in every forward pass.

    Raises:
        ValueError: lengths, shapes, dtypes, devices, layout or numbers do not fit.
    """
    params = list(params)
    lists: list[list[Tensor]] = [list(tensors) for tensors in (grads, exp_avgs, exp_avg_sqs, steps, params_m)]
    check_numbers(lr, betas, eps, weight_decay, momentum)
    _check_tensors(params, lists)
    if not params:
        return
    device = params[0].device
    dtype = params[0].dtype  # float64 with a rate in float32 would be no better than float32
    rate = lr if isinstance(lr, Tensor) else torch.full((), lr, dtype=dtype, device=device)
    rate = _scalar("lr", rate, device, dtype)
    factors = (_scalar("grad_factor", grad_factor, device), _scalar("found_inf", found_inf, device))
    order = sorted(range(len(params)), key=lambda i: lists[-1][i] is None)  # those with a copy first
    columns = [[tensors[i] for i in order if tensors[i] is not None] for tensors in (params, *lists)]
    with torch.no_grad():
        _operation.call(*columns, rate, *betas, eps, weight_decay, momentum, *factors)


def check_numbers(
    lr: float | Tensor, betas: tuple[float, float], eps: float, weight_decay: float, momentum: float
) -> None:
    """ValueError where a number is out of its range; a learning rate on a device is not read."""
    if not isinstance(lr, Tensor) and not lr >= 0.0:
        raise ValueError(f"lr is {lr}; expected a number >= 0")
    if len(betas) != 2 or not all(0.0 <= beta < 1.0 for beta in betas):
        raise ValueError(f"betas is {betas}; expected two numbers in [0, 1)")
    if not eps >= 0.0:
        raise ValueError(f"eps is {eps}; expected a number >= 0")
    if not weight_decay >= 0.0:
        raise ValueError(f"weight_decay is {weight_decay}; expected a number >= 0")
    if not 0.0 <= momentum <= 1.0:
        raise ValueError(f"momentum is {momentum}; expected a number in [0, 1]")


NAMES = ("grads", "exp_avgs", "exp_avg_sqs", "steps", "params_m")


def _check_tensors(params: list[Tensor], lists: list[list[Tensor]]) -> None:
    for name, tensors in zip(NAMES, lists, strict=True):
        if len(tensors) != len(params):
            raise ValueError(f"{name} has {len(tensors)} tensors; expected {len(params)} as params")
    for i, param in enumerate(params):
        if param.dtype not in (torch.float32, torch.float64) or not param.is_contiguous():
            layout = "contiguous" if param.is_contiguous() else "strided"
            raise ValueError(f"params[{i}] is {layout} {param.dtype}; expected contiguous torch.float32")
    shapes, dtypes = [param.shape for param in params], [param.dtype for param in params]
    for name, tensors in zip(NAMES, lists, strict=True):
        for i, tensor in enumerate(tensors):
            if tensor is None and name == "params_m":
                continue
            if tensor.shape != shapes[i] if name != "steps" else tensor.numel() != 1:
                expected = "one element" if name == "steps" else tuple(shapes[i])
                raise ValueError(f"{name}[{i}] has shape {tuple(tensor.shape)}; expected {expected}")
            dtype = torch.float32 if name == "steps" else dtypes[i]
            if tensor.dtype != dtype and not (name == "grads" and tensor.is_floating_point()):
                raise ValueError(f"{name}[{i}] is {tensor.dtype}; expected {dtype}")
            if not tensor.is_contiguous():
                raise ValueError(f"{name}[{i}] is not contiguous; expected a contiguous tensor")
    devices = {tensor.device for tensors in (params, *lists) for tensor in tensors if tensor is not None}
    if len(devices) > 1:
        raise ValueError(f"the tensors are on {', '.join(sorted(map(str, devices)))}; expected one device")


def _scalar(
    name: str, tensor: Tensor | None, device: torch.device, dtype: torch.dtype = torch.float32
) -> Tensor | None:
    if tensor is None:
        return None
    if tensor.numel() != 1 or not tensor.is_floating_point() or tensor.device != device:
        found = f"{tensor.dtype} of {tensor.numel()} elements on {tensor.device}"
        raise ValueError(f"{name} is {found}; expected one floating-point element on {device}")
    return tensor.detach().to(dtype).reshape(())


def _fake(*args: object) -> None:
    return None


_operation = Operation(
    "adamw_momentum_step_(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] exp_avgs, Tensor(c!)[] exp_avg_sqs, "
    "Tensor(d!)[] steps, Tensor(e!)[] params_m, Tensor lr, float beta1, float beta2, float eps, float weight_decay, "
    "float momentum, Tensor? grad_factor, Tensor? found_inf) -> ()",
    _fake,
    # The table of addresses changes with the gradients' and travels in the launch; Triton has to send it first.
    preference={"cuda": ("cuda", "triton", "reference")},
)
_operation.add_reference(reference.step_)
_operation.add_native("cpu")
_operation.add_triton("adamw_momentum:adamw_momentum_step_")
_operation.add_native("cuda")
_operation.add_flops(lambda *shapes, **options: 0)  # by the counter's convention only matrix products count

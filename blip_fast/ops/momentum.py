"""Momentum (exponential moving average) update of a whole model: ALBEF/BLIP's momentum encoders, section 3.2."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from blip_fast.ops.registry import Operation
from blip_fast.reference import momentum as reference


def momentum_update_(params_m: Sequence[Tensor], params: Sequence[Tensor], momentum: float) -> None:
    """Update momentum copies in place: ``params_m[i] = momentum * params_m[i] + (1 - momentum) * params[i]``.

    One launch (or one threaded pass) for the whole list; 12 bytes of memory traffic per fp32 parameter. Arithmetic is fp32
    (fp64 for fp64 copies) whatever the dtypes; the result is rounded to the dtype of the copy. No gradient is recorded.

    Args:
        params_m: momentum copies, contiguous, any shapes; float32, bfloat16, float16 (float64: reference backend).
        params: the parameters they follow, pairwise of the same shape and device; dtypes may differ from the copies'.
        momentum: weight of the old value, in [0, 1].

    Raises:
        ValueError: lengths, shapes, devices or layout do not fit, or momentum lies outside [0, 1].
    """
    params_m, params = list(params_m), list(params)
    _check(params_m, params, momentum)
    if params_m:
        with torch.no_grad():
            _operation.call(params_m, params, momentum)


def _check(params_m: list[Tensor], params: list[Tensor], momentum: float) -> None:
    if len(params_m) != len(params):
        raise ValueError(f"params_m has {len(params_m)} tensors and params has {len(params)}; expected the same number")
    if not 0.0 <= momentum <= 1.0:
        raise ValueError(f"momentum is {momentum}; expected a number in [0, 1]")
    for i, (copy, param) in enumerate(zip(params_m, params, strict=True)):
        if copy.shape != param.shape:
            raise ValueError(
                f"params[{i}] has shape {tuple(param.shape)}; expected {tuple(copy.shape)} as params_m[{i}]"
            )
        if copy.device != param.device or copy.device != params_m[0].device:
            raise ValueError(f"params[{i}] or its copy is on another device; expected all on {params_m[0].device}")
        if not copy.is_floating_point() or not param.is_floating_point():
            raise ValueError(f"params_m[{i}] is {copy.dtype} and params[{i}] {param.dtype}; expected floating point")
        if not (copy.is_contiguous() and param.is_contiguous()):
            raise ValueError(f"params_m[{i}] or params[{i}] is not contiguous; expected contiguous tensors")


def _fake(params_m: list[Tensor], params: list[Tensor], momentum: float) -> None:
    return None


_operation = Operation("momentum_update_(Tensor(a!)[] params_m, Tensor[] params, float momentum) -> ()", _fake)
_operation.add_reference(reference.momentum_update_)
_operation.add_native("cpu")
_operation.add_triton("momentum:momentum_update_")
_operation.add_native("cuda")

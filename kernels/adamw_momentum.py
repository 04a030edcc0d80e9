"""AdamW step and momentum copies of a list of tensors, in one launch for each kind of gradient, copy and alignment.

``m = beta1 m + (1 - beta1) g``, ``v = beta2 v + (1 - beta2) g^2``, ``p = (1 - lr wd) p - lr m^ / (sqrt(v^) + eps)`` with
bias-corrected m^ and v^, then ``c = momentum c + (1 - momentum) p``. Moves 36 bytes per fp32 parameter with a copy (28
without) for about 15 FLOPs: bound by memory bandwidth. Tensors are addressed by their distances from the first ones, held
in a table on the device, since a kernel that loads pointers cannot run in the interpreter.
"""

from __future__ import annotations

import functools
import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from blip_fast.kernels.aot import Specimen

BLOCK = 2048
NUM_WARPS = 8


@triton.jit
def _one_minus_power(log_beta, step):
    """1 - beta**step in fp32 without cancellation: a series where beta**step is above 1/e."""
    y = log_beta * step
    series = 1.0 / 3628800
    series = 1.0 / 362880 + y * series
    series = 1.0 / 40320 + y * series
    series = 1.0 / 5040 + y * series
    series = 1.0 / 720 + y * series
    series = 1.0 / 120 + y * series
    series = 1.0 / 24 + y * series
    series = 1.0 / 6 + y * series
    series = 0.5 + y * series
    return tl.where(y > -1.0, -y * (1.0 + y * series), 1.0 - tl.exp(y))


@triton.jit
def _update(
    p_param, p_grad, p_avg, p_sq, p_copy, o, mask, decay, step_size, root_factor, factor,
    rest1, beta2, rest2, eps, momentum, rest, HAS_COPY: tl.constexpr, SKIP: tl.constexpr,
):  # fmt: skip
    b_param = tl.load(p_param + o, mask=mask)
    if not SKIP:
        b_grad = tl.load(p_grad + o, mask=mask).to(tl.float32) * factor
        b_avg = tl.load(p_avg + o, mask=mask)
        b_avg += (b_grad - b_avg) * rest1
        b_sq = tl.load(p_sq + o, mask=mask) * beta2 + b_grad * b_grad * rest2
        b_param = b_param * decay - step_size * b_avg / (tl.sqrt_rn(b_sq) * root_factor + eps)
        tl.store(p_avg + o, b_avg, mask=mask)
        tl.store(p_sq + o, b_sq, mask=mask)
        tl.store(p_param + o, b_param, mask=mask)
    if HAS_COPY:
        b_copy = tl.load(p_copy + o, mask=mask)
        tl.store(p_copy + o, b_copy * momentum + b_param * rest, mask=mask)


@triton.jit
def adamw_momentum_kernel(
    p_param, p_grad, p_avg, p_sq, p_copy, p_step,  # of the first tensors; grad of any dtype, the others fp32
    p_tensors,  # (tensors, 7) int64: distances of param, grad, avg, sq, copy, step from these in elements; size
    p_chunks,  # (chunks, 2) int32: tensor, number of the chunk in it
    p_lr, p_factor, p_found_inf,  # one element each
    rest1, log_beta1, beta2, rest2, log_beta2, eps, weight_decay, momentum, rest,
    ALIGN: tl.constexpr,  # all distances are multiples of these
    ALIGN_G: tl.constexpr,
    HAS_COPY: tl.constexpr,
    HAS_FACTOR: tl.constexpr,
    HAS_FOUND_INF: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    p_chunk = p_chunks + tl.program_id(0).to(tl.int64) * 2
    p_tensor = p_tensors + tl.load(p_chunk).to(tl.int64) * 7
    start = tl.load(p_chunk + 1).to(tl.int64) * BLOCK
    p_param += tl.multiple_of(tl.load(p_tensor), ALIGN) + start
    p_grad += tl.multiple_of(tl.load(p_tensor + 1), ALIGN_G) + start
    p_avg += tl.multiple_of(tl.load(p_tensor + 2), ALIGN) + start
    p_sq += tl.multiple_of(tl.load(p_tensor + 3), ALIGN) + start
    p_copy += tl.multiple_of(tl.load(p_tensor + 4), ALIGN) + start
    step = tl.load(p_step + tl.load(p_tensor + 5))
    left = tl.load(p_tensor + 6) - start

    lr = tl.load(p_lr)
    factor = tl.load(p_factor) if HAS_FACTOR else 1.0
    found_inf = tl.load(p_found_inf) if HAS_FOUND_INF else 0.0
    decay = 1.0 - lr * weight_decay
    step_size = lr / _one_minus_power(log_beta1, step)
    root_factor = 1.0 / tl.sqrt_rn(_one_minus_power(log_beta2, step))
    o = tl.arange(0, BLOCK)
    if found_inf != 0.0:
        _update(
            p_param, p_grad, p_avg, p_sq, p_copy, o, o < left, decay, step_size, root_factor, factor,
            rest1, beta2, rest2, eps, momentum, rest, HAS_COPY, True,
        )  # fmt: skip
    elif left >= BLOCK:  # without a mask the accesses are 16 bytes wide
        _update(
            p_param, p_grad, p_avg, p_sq, p_copy, o, None, decay, step_size, root_factor, factor,
            rest1, beta2, rest2, eps, momentum, rest, HAS_COPY, False,
        )  # fmt: skip
    else:
        _update(
            p_param, p_grad, p_avg, p_sq, p_copy, o, o < left, decay, step_size, root_factor, factor,
            rest1, beta2, rest2, eps, momentum, rest, HAS_COPY, False,
        )  # fmt: skip


@triton.jit
def advance_steps_kernel(p_step, p_distances, p_found_inf, N, HAS_FOUND_INF: tl.constexpr, BLOCK: tl.constexpr):
    o = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = o < N
    p = p_step + tl.load(p_distances + o, mask=mask, other=0)
    done = 1.0
    if HAS_FOUND_INF:
        done = tl.where(tl.load(p_found_inf) != 0.0, 0.0, 1.0)
    tl.store(p, tl.load(p, mask=mask) + done, mask=mask)


def adamw_momentum_step_(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    steps: list[Tensor],
    params_m: list[Tensor],
    lr: Tensor,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    momentum: float,
    grad_factor: Tensor | None,
    found_inf: Tensor | None,
) -> None:
    """See `blip_fast.ops.adamw_momentum_step_`; the first ``len(params_m)`` parameters have momentum copies."""
    scalars = lr, lr if grad_factor is None else grad_factor, lr if found_inf is None else found_inf
    flags = grad_factor is not None, found_inf is not None
    log_beta1, log_beta2 = (math.log(beta) if beta else -math.inf for beta in (beta1, beta2))
    numbers = (1.0 - beta1, log_beta1, beta2, 1.0 - beta2, log_beta2, eps, weight_decay, momentum, 1.0 - momentum)
    distances = _to_device(_distances(steps), lr.device)
    grid = (triton.cdiv(len(steps), 128),)
    advance_steps_kernel[grid](steps[0], distances, scalars[2], len(steps), flags[1], BLOCK=128, num_warps=4)

    groups: dict[tuple[torch.dtype, bool, bool], list[tuple[Tensor, ...]]] = {}
    copies = [*params_m, *params[len(params_m) :]]  # where there is none, the parameter stands in
    for i, tensors in enumerate(zip(params, grads, exp_avgs, exp_avg_sqs, copies, steps, strict=True)):
        if tensors[0].numel():
            aligned = all(tensor.data_ptr() % 16 == 0 for tensor in tensors[:5])
            groups.setdefault((tensors[1].dtype, i < len(params_m), aligned), []).append(tensors)
    for (dtype, has_copy, aligned), rows in groups.items():
        chunks = _chunk_table(tuple(tensors[0].numel() for tensors in rows), lr.device)
        columns = [_distances(column) for column in zip(*rows, strict=True)]
        sizes = tuple(tensors[0].numel() for tensors in rows)
        table = _to_device(tuple(zip(*columns, sizes, strict=True)), lr.device)
        align = (4, 16 // dtype.itemsize) if aligned else (1, 1)
        adamw_momentum_kernel[(chunks.shape[0],)](
            *rows[0], table, chunks, *scalars, *numbers, *align, has_copy, *flags, BLOCK=BLOCK, num_warps=NUM_WARPS
        )


def _distances(tensors: list[Tensor] | tuple[Tensor, ...]) -> tuple[int, ...]:
    """Of each tensor from the first, in elements."""
    base, size = tensors[0].data_ptr(), tensors[0].element_size()
    return tuple((tensor.data_ptr() - base) // size for tensor in tensors)


# Addresses repeat from step to step unless gradients are allocated anew; sizes always do.
@functools.lru_cache(maxsize=64)
def _to_device(numbers: tuple[int, ...] | tuple[tuple[int, ...], ...], device: torch.device) -> Tensor:
    table = torch.tensor(numbers, dtype=torch.int64)
    if device.type != "cuda":
        return table
    if torch.cuda.is_current_stream_capturing():  # replays would copy from host memory that others have by then
        raise RuntimeError(
            "a CUDA graph met a tensor of adamw_momentum_step_ at a new address; expected those of an earlier step: "
            "zero_grad(set_to_none=False), or the backend 'cuda'"
        )
    return table.pin_memory().to(device, non_blocking=True)


@functools.lru_cache(maxsize=64)
def _chunk_table(sizes: tuple[int, ...], device: torch.device) -> Tensor:
    rows = [(i, chunk) for i, size in enumerate(sizes) for chunk in range(triton.cdiv(size, BLOCK))]
    return torch.tensor(rows, dtype=torch.int32).to(device)


FLOATS = ("p_param", "p_avg", "p_sq", "p_copy", "p_step", "p_lr", "p_factor", "p_found_inf")
NUMBERS = ("rest1", "log_beta1", "beta2", "rest2", "log_beta2", "eps", "weight_decay", "momentum", "rest")
SPECIMENS = [
    Specimen(
        adamw_momentum_kernel,
        dict.fromkeys(FLOATS, "*fp32")
        | {"p_grad": grad, "p_tensors": "*i64", "p_chunks": "*i32"}
        | dict.fromkeys(NUMBERS, "fp32"),
        {"ALIGN": 4, "ALIGN_G": align, "HAS_COPY": has_copy, "HAS_FACTOR": True, "HAS_FOUND_INF": True, "BLOCK": BLOCK},
        NUM_WARPS,
        label=f"gradient {grad[1:]}, {'with' if has_copy else 'without'} copy",
    )
    for grad, align in (("*fp32", 4), ("*bf16", 8))
    for has_copy in (True, False)
] + [
    Specimen(
        advance_steps_kernel,
        {"p_step": "*fp32", "p_distances": "*i64", "p_found_inf": "*fp32", "N": "i32"},
        {"HAS_FOUND_INF": True, "BLOCK": 128},
        4,
    )
]

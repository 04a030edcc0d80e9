"""What a training step costs: FLOPs, counted, and memory, expected; and how fast the machine multiplies matrices."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from blip_fast.training.precision import PrecisionName

_GEMM_SIZE = {"cpu": 1024, "cuda": 8192}
_GEMM_SECONDS = 0.2


def _attention_flops(query: Any, key: Any, value: Any, *args: Any, **options: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_backward_flops(grad_out: Any, query: Any, key: Any, value: Any, *args: Any, **options: Any) -> int:
    return sdpa_backward_flop_count(grad_out, query, key, value)


# torch counts its fused attention on a GPU, but not that on a CPU.
CPU_ATTENTION: dict[Any, Callable[..., int]] = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flops,
}


def flop_counter() -> FlopCounterMode:
    """Counts the FLOPs of a block; by convention only matrix products and attention count."""
    return FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION)


@functools.cache
def gemm_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a large square matrix product on random data: what "all of the machine's arithmetic" means for MFU."""
    size = _GEMM_SIZE.get(device.type, 1024)
    generator = torch.Generator(device).manual_seed(0)  # a run's own random numbers must not change
    first, second = (torch.randn(size, size, device=device, generator=generator).to(dtype) for _ in range(2))
    best, deadline = float("inf"), time.perf_counter() + _GEMM_SECONDS
    while time.perf_counter() < deadline:
        _finish(device)
        started = time.perf_counter()
        torch.mm(first, second)
        _finish(device)
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@dataclasses.dataclass(frozen=True)
class StepCosts:
    """One rank's training step, without sharding.

    Attributes:
        flops: of forward and backward passes of all batches of a step.
        parameters, trained: numbers of all, and of those that are not momentum copies.
        weights, gradients, optimizer: bytes.
        activations: bytes kept for the backward pass of one batch.
    """

    flops: int
    parameters: int
    trained: int
    weights: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def memory(self) -> int:
        """Bytes at the end of a forward pass, when most are in use; work space of single operations not counted."""
        return self.weights + self.gradients + self.optimizer + self.activations


def step_costs(
    model: nn.Module,
    losses: Callable[[nn.Module], dict[str, Tensor]],
    batches: int = 1,
    precision: PrecisionName = "fp32",
) -> StepCosts:
    """Costs of a step of ``model``, which is on device "meta": nothing is computed, no memory is needed.

    Args:
        model: in training mode.
        losses: of a batch on device "meta".
        batches: per optimizer step.
        precision: of the forward pass; autocast halves what is kept (torch cannot run it on "meta").
    """
    kept: dict[int, int] = {}
    own = {tensor.untyped_storage()._cdata for tensor in [*model.parameters(), *model.buffers()]}
    alive = []  # so that no storage gets the number of an earlier one

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage.nbytes()
            alive.append(storage)
        return tensor

    with flop_counter() as counter:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = torch.stack([value.float() for value in losses(model).values()]).sum()
        loss.backward()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    bytes_trained = sum(parameter.nbytes for parameter in trained)
    return StepCosts(
        flops=counter.get_total_flops() * batches,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        trained=sum(parameter.numel() for parameter in trained),
        weights=sum(tensor.nbytes for tensor in [*model.parameters(), *model.buffers()]),
        gradients=bytes_trained,
        optimizer=2 * bytes_trained,
        activations=sum(kept.values()) // (1 if precision == "fp32" else 2),
    )

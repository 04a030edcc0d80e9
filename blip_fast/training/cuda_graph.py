"""A whole training step - forward, backward, optimizer - as one CUDA graph: the host launches one thing a step.

Nothing in a fused step is read back, so a step is the same kernels on the same addresses each time, as long as the batch has
the same shape. What changes from step to step (batch, alpha, learning rate) is copied into tensors that stay where they are.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from blip_fast.training.devices import map_tensors

WARM_UP_CALLS = 2
MAX_GRAPHS = 16


class WholeStep:
    """One training step: losses, backward through their sum, optimizer step. Gradients stay where they are in memory.

    Args:
        compute_losses: (batch, alpha) -> scalar losses by name, alpha a float32 tensor (). Autocast belongs inside.
        optimizer: takes learning rates as tensors of one element, as `blip_fast.optim.AdamWMomentum` does.
    """

    def __init__(
        self, compute_losses: Callable[[Any, Tensor], Mapping[str, Tensor]], optimizer: torch.optim.Optimizer
    ) -> None:
        self.compute_losses, self.optimizer = compute_losses, optimizer
        device = optimizer.param_groups[0]["params"][0].device
        self.alpha = torch.zeros((), device=device)
        for group in optimizer.param_groups:
            group["lr"] = torch.as_tensor(group["lr"], dtype=torch.float32, device=device).clone()

    def set_rates(self, alpha: float, lr: float | None) -> None:
        """Write alpha, and the learning rate of all groups unless it is None, into their tensors."""
        self.alpha.fill_(alpha)
        for group in self.optimizer.param_groups if lr is not None else ():
            group["lr"].fill_(lr)

    def run(self, batch: Any) -> dict[str, Tensor]:
        """The step; returns the losses, detached."""
        # Zeroed and not dropped: optimizers keep tables of the addresses of gradients, which a graph cannot make anew.
        self.optimizer.zero_grad(set_to_none=False)
        losses = self.compute_losses(batch, self.alpha)
        torch.stack(list(losses.values())).sum().backward()
        self._make_contiguous()
        self.optimizer.step()
        return {name: loss.detach() for name, loss in losses.items()}

    def _make_contiguous(self) -> None:
        for group in self.optimizer.param_groups:
            for param in group["params"]:
                if param.grad is not None and not param.grad.is_contiguous():
                    param.grad = param.grad.contiguous()


@dataclasses.dataclass(frozen=True)
class _Captured:
    graph: torch.cuda.CUDAGraph
    batch: Any
    losses: dict[str, Tensor]


class GraphedStep:
    """`WholeStep` from CUDA graphs, one for each shape of batch.

    The first two steps of a shape run as they are, which is the warm-up that capture needs; the third is captured, and from
    then on graphs are replayed. Every call is one real training step. Random numbers go on from step to step as they do
    without graphs.

    The texts of a batch must be packed, on the device, with few different capacities (`PackedTexts.with_capacity`): each
    capacity is a shape of its own. Graphs share their memory. What reads from the device, such as `torch.amp.GradScaler`, and
    activation checkpointing of layers with dropout, which keeps the state of the generator, cannot be captured.

    Args:
        compute_losses, optimizer: as for `WholeStep`. All parameters must be on one GPU.
        max_graphs: batches of further shapes run as they are, with a warning, as each graph takes host and device memory.

    Raises:
        RuntimeError: the parameters are not on a GPU.
    """

    def __init__(
        self,
        compute_losses: Callable[[Any, Tensor], Mapping[str, Tensor]],
        optimizer: torch.optim.Optimizer,
        max_graphs: int = MAX_GRAPHS,
    ) -> None:
        devices = {param.device for group in optimizer.param_groups for param in group["params"]}
        if {device.type for device in devices} != {"cuda"} or len(devices) != 1:
            found = ", ".join(sorted(map(str, devices)))
            raise RuntimeError(
                f"a CUDA graph needs all parameters on one GPU, they are on {found}; use WholeStep there"
            )
        self.step = WholeStep(compute_losses, optimizer)
        self.device, self.max_graphs = devices.pop(), max_graphs
        self.stream, self.pool = torch.cuda.Stream(self.device), torch.cuda.graph_pool_handle()
        self.calls: dict[str, int] = {}
        self.captured: dict[str, _Captured] = {}

    def __call__(self, batch: Any, alpha: float = 0.0, lr: float | None = None) -> dict[str, Tensor]:
        """One training step; returns the losses, tensors () on the device.

        Args:
            batch: tensors on the GPU, and plain values, in tuples, lists, dictionaries and dataclasses.
            alpha: weight of the momentum targets.
            lr: learning rate of all groups; None leaves them.

        Raises:
            ValueError: a tensor of the batch is elsewhere.
        """
        shape = shape_of(batch, self.device)
        self.step.set_rates(alpha, lr)
        self.calls[shape] = self.calls.get(shape, 0) + 1
        if self.calls[shape] <= WARM_UP_CALLS:
            return self._warm_up(batch)
        if shape not in self.captured:
            if len(self.captured) == self.max_graphs:
                warnings.warn(
                    f"there are graphs of max_graphs={self.max_graphs} shapes; batches of other shapes run without: give "
                    "packed texts few different capacities",
                    stacklevel=2,
                )
                return self._warm_up(batch)
            self.captured[shape] = self._capture(batch)
        captured = self.captured[shape]
        copy_into(captured.batch, batch)
        captured.graph.replay()
        return {name: loss.clone() for name, loss in captured.losses.items()}

    def _warm_up(self, batch: Any) -> dict[str, Tensor]:
        """On the stream of captures: autograd binds gradients to the stream that made them."""
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.stream):
            losses = self.step.run(batch)
        torch.cuda.current_stream(self.device).wait_stream(self.stream)
        return losses

    def _capture(self, batch: Any) -> _Captured:
        static = map_tensors(torch.clone, batch)
        graph = torch.cuda.CUDAGraph()
        # Threads that pin the next batch's memory must not spoil the capture.
        mode = "thread_local"
        with torch.cuda.graph(graph, pool=self.pool, stream=self.stream, capture_error_mode=mode):
            losses = self.step.run(static)
        return _Captured(graph, static, losses)


def shape_of(batch: Any, device: torch.device) -> str:
    """What two batches must have in common to share a graph: structure, shapes, dtypes and plain values, as text.

    Raises ValueError where a tensor is not on ``device``: a graph would copy it once, when it is captured, and never again.
    """

    def describe(tensor: Tensor) -> str:
        if tensor.device != device:
            raise ValueError(
                f"a tensor {tuple(tensor.shape)} of the batch is on {tensor.device}; expected {device}: pack texts, whose "
                "masks are read on the host, before the step"
            )
        return f"{tensor.dtype}{tuple(tensor.shape)}"

    return repr(map_tensors(describe, batch))


def copy_into(static: Any, batch: Any) -> None:
    """Copy all tensors of ``batch`` into those of ``static``, which has the same shape."""
    for target, source in zip(tensors_of(static), tensors_of(batch), strict=True):
        target.copy_(source, non_blocking=True)


def tensors_of(batch: Any) -> list[Tensor]:
    """All tensors of the batch."""
    found: list[Tensor] = []

    def collect(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    map_tensors(collect, batch)
    return found

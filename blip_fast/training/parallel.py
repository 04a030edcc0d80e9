"""How the ranks share a model: each has all of it (DDP), or weights and optimizer state are spread over them (FSDP2)."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from blip_fast.reference.gather import world_size


class Alone:
    """A single process. The other strategies have the same methods.

    Attributes:
        model: the model itself.
        module: what is called in its place.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.module: nn.Module = model

    def accumulate(self) -> AbstractContextManager[None]:
        """Context of forward and backward passes after which more will follow before the optimizer's step."""
        return nullcontext()

    def finish_gradients(self) -> None:
        """Called after the last backward pass of a step."""

    def gradient_norm(self) -> Tensor:
        """Norm (scalar, fp32, on the device) of all gradients together."""
        return torch.nn.utils.get_total_norm(gradients(self.model))

    def whole(self) -> AbstractContextManager[None]:
        """Context in which methods other than ``forward`` may be called, for evaluation."""
        return nullcontext()


class Replicated(Alone):
    """DDP. Buffers are not sent around at every step, as published: all ranks start with equal queues and fill them alike."""

    module: DistributedDataParallel

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        with warnings.catch_warnings():  # newer torch has another name for broadcast_buffers, which older torch lacks
            warnings.simplefilter("ignore", FutureWarning)
            self.module = DistributedDataParallel(
                model,  # without device_ids, so that masks stay on the CPU, where lengths are read
                broadcast_buffers=False,
                gradient_as_bucket_view=True,
            )

    def accumulate(self) -> AbstractContextManager[None]:
        return self.module.no_sync()


class Sharded(Alone):
    """FSDP2. Each rank stores, averages and updates its rows of every parameter; momentum copies are cut like theirs.

    The fused model reaches into its modules instead of calling them, so weights are collected for the whole model at
    once: they are complete during a step, and what is spread over the ranks all the time is the weights between steps,
    the gradients between steps, and the optimizer's state. Parameters without dimensions (the temperature) are
    replicated.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.replicated = {parameter for parameter in model.parameters() if not parameter.dim()}
        device = next(model.parameters()).device
        mesh = dist.init_device_mesh(device.type, (world_size(),))
        fully_shard(model, mesh=mesh, reshard_after_forward=False, ignored_params=self.replicated)

    @contextmanager
    def accumulate(self) -> Iterator[None]:
        self.model.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            self.model.set_requires_gradient_sync(True)

    def finish_gradients(self) -> None:
        for parameter in self.replicated:
            if parameter.grad is not None:
                dist.all_reduce(parameter.grad)
                parameter.grad.div_(world_size())

    def gradient_norm(self) -> Tensor:
        found = gradients(self.model)
        own = [gradient for gradient in found if not isinstance(gradient, DTensor)]
        shards = [gradient.to_local() for gradient in found if isinstance(gradient, DTensor)]
        square = torch.nn.utils.get_total_norm(shards).square()
        dist.all_reduce(square)
        return (square + torch.nn.utils.get_total_norm(own).square()).sqrt()

    @contextmanager
    def whole(self) -> Iterator[None]:
        self.model.unshard()
        try:
            yield
        finally:
            self.model.reshard()


def parallel(model: nn.Module, strategy: str) -> Alone:
    """The model, on its device, as the ranks share it: ``strategy`` "ddp" or "fsdp"; a single process has it alone."""
    if world_size() == 1:
        return Alone(model)
    return Sharded(model) if strategy == "fsdp" else Replicated(model)


def gradients(model: nn.Module) -> list[Tensor]:
    """Of all parameters that have one."""
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


def whole_tensors(state: Any) -> Any:
    """A copy of nested dictionaries, lists and tuples with sharded tensors collected, on the CPU; all ranks call it."""
    if isinstance(state, DTensor):
        return state.full_tensor().cpu()
    if isinstance(state, Mapping):
        return {name: whole_tensors(entry) for name, entry in state.items()}
    if isinstance(state, (list, tuple)):
        return type(state)(whole_tensors(entry) for entry in state)
    return state


def like(tensor: Tensor, target: Tensor) -> Tensor:
    """``tensor``, whole on every rank, cut as ``target`` is."""
    if not isinstance(target, DTensor):
        return tensor
    device = target.to_local().device
    return distribute_tensor(tensor.to(device), target.device_mesh, target.placements, src_data_rank=None)

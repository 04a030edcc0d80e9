"""One optimizer step after another: what changes in a step, and the order in which it does."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from blip_fast.optim import AdamWMomentum
from blip_fast.reference.gather import world_size
from blip_fast.training.cuda_graph import GraphedStep
from blip_fast.training.parallel import Alone, parallel
from blip_fast.training.precision import Precision
from blip_fast.training.settings import Decay

Batch = TypeVar("Batch")
Losses = Callable[[nn.Module, Batch, float], Mapping[str, Tensor]]


@dataclasses.dataclass(frozen=True)
class StepReport:
    """What one optimizer step did.

    Attributes:
        epoch, step: where it was; ``step`` counts optimizer steps in the epoch, from 0.
        lr, alpha: what it ran with.
        losses: scalars on the device, detached, averaged over the step's batches.
        batches: what it ran on, as the data loader gave them.
        data_seconds: how long the host waited for these.
    """

    epoch: int
    step: int
    lr: float
    alpha: float
    losses: Mapping[str, Tensor]
    batches: tuple[Any, ...]
    data_seconds: float = 0.0


class Trainer(Generic[Batch]):
    """A model, its optimizer and the arithmetic of a step.

    Args:
        model: on its device. Its momentum copies, if it has any, are moved by the optimizer from now on.
        losses: named losses (scalars) of a batch on the device; their sum is minimised.
        settings: optimizer, precision, accumulation, clipping, strategy.
        to_device: brings a batch onto the device.
        fixed_shape: gives a batch one of a few shapes, with ``cuda_graph``.

    Raises ValueError for settings that exclude each other.
    """

    def __init__(
        self,
        model: nn.Module,
        losses: Losses[Batch],
        settings: Decay,
        to_device: Callable[[Batch], Batch] = lambda batch: batch,
        fixed_shape: Callable[[Batch], Batch] = lambda batch: batch,
    ) -> None:
        check_settings(settings)
        self.model = model
        self.losses = losses
        self.settings = settings
        self.to_device, self.fixed_shape = to_device, fixed_shape
        self.graphed: GraphedStep | None = None
        self.device = next(model.parameters()).device
        self.precision = Precision(settings.precision, self.device)
        self.parallel: Alone = parallel(model, settings.strategy)
        self.optimizer = build_optimizer(model, settings)
        if settings.compile:
            self.parallel.module.compile(mode=settings.compile)

    def step(self, batches: tuple[Batch, ...], lr: float, alpha: float) -> dict[str, Tensor]:
        """One optimizer step on the average loss of ``batches``; returns the losses, detached and averaged."""
        if self.optimizer.copies_behind:
            self.optimizer.update_copies()
        if self.settings.cuda_graph:
            return self._graphed_step(batches[0], lr, alpha)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad()
        total: dict[str, Tensor] = {}
        for batch in batches[:-1]:
            with self.parallel.accumulate():
                self._backward(batch, alpha, len(batches), total)
        self._backward(batches[-1], alpha, len(batches), total)
        self.parallel.finish_gradients()
        self.precision.scaler.step(self.optimizer, grad_factor=self._clipping())
        self.precision.scaler.update()
        return total

    def _graphed_step(self, batch: Batch, lr: float, alpha: float) -> dict[str, Tensor]:
        """The step as a CUDA graph, which is made at the first one: loading a state replaces the optimizer's tensors."""
        if self.graphed is None:
            self.graphed = GraphedStep(self._autocast_losses, self.optimizer)
        return self.graphed(self.to_device(self.fixed_shape(batch)), alpha, lr)

    def _autocast_losses(self, batch: Batch, alpha: Any) -> Mapping[str, Tensor]:
        with self.precision.autocast():
            return self.losses(self.parallel.module, batch, alpha)

    def _backward(self, batch: Batch, alpha: float, parts: int, total: dict[str, Tensor]) -> None:
        """Forward and backward pass of one of ``parts`` batches; adds its share to ``total``."""
        batch = self.to_device(batch)
        losses = self._autocast_losses(batch, alpha)
        loss = torch.stack([loss.float() for loss in losses.values()]).sum() / parts
        self.precision.scaler.scale(loss).backward()
        for name, value in losses.items():
            share = value.detach() / parts
            total[name] = total[name] + share if name in total else share

    def _clipping(self) -> Tensor | None:
        """Factor (scalar, on the device) that brings the gradients' norm down to ``clip_norm``, if that is set."""
        if not self.settings.clip_norm:
            return None
        norm = self.parallel.gradient_norm()
        if self.precision.scaler.is_enabled():
            norm = norm / self.precision.scaler._get_scale_async()  # its public form waits for the device
        return (self.settings.clip_norm / (norm + 1e-6)).clamp(max=1.0)


def check_settings(settings: Decay) -> None:
    """ValueError for settings that exclude each other."""
    if settings.precision == "fp16" and settings.strategy == "fsdp":
        raise ValueError("precision='fp16' cannot scale the gradients of strategy='fsdp'; expected 'bf16' or 'fp32'")
    if settings.cuda_graph:
        others = {
            "more than one process": world_size() > 1,
            "accumulate": settings.accumulate > 1,
            "clip_norm": settings.clip_norm > 0,
            "compile": bool(settings.compile),
            "precision='fp16'": settings.precision == "fp16",
        }
        for name, given in others.items():
            if given:
                raise ValueError(f"cuda_graph=True does not go with {name}")


def build_optimizer(model: nn.Module, settings: Decay) -> AdamWMomentum:
    """The published AdamW: all parameters in one group, decay on biases and norms too; it moves the momentum copies."""
    pairs, momentum = [], 0.0
    if hasattr(model, "momentum_pairs"):
        pairs, momentum = model.momentum_pairs(), model.config.momentum
        model.momentum_in_forward = False
    return AdamWMomentum(
        model.parameters(),
        pairs,
        momentum,
        lr=settings.init_lr,
        betas=(0.9, 0.999),
        eps=1e-8,
        weight_decay=settings.weight_decay,
    )


def grouped(batches: Iterable[Batch], size: int) -> Iterator[tuple[Batch, ...]]:
    """Groups of ``size`` batches; what is left at the end and does not fill a group is dropped."""
    iterator = iter(batches)
    while len(group := tuple(itertools.islice(iterator, size))) == size:
        yield group

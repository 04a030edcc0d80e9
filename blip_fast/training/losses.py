"""Losses from the device to the host without making training wait, and what happens when one is no number."""

from __future__ import annotations

import collections
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from blip_fast.checkpoints.files import write_atomically
from blip_fast.training.trainer import StepReport

# A device is rarely more than a step behind; when it is so many steps behind, the host waits for it.
_MAX_PENDING = 8


class NonFiniteLossError(FloatingPointError):
    """A loss is NaN or infinite. ``report`` is the step's, ``values`` its losses."""

    def __init__(self, report: StepReport, values: Mapping[str, float]) -> None:
        bad = ", ".join(f"{name} is {value}" for name, value in values.items() if not math.isfinite(value))
        super().__init__(
            f"{bad} in step {report.step} of epoch {report.epoch}; a lower init_lr or clip_norm=1 may help"
        )
        self.report = report
        self.values = dict(values)


class LossReader:
    """Losses of finished steps, in order, as soon as their values have arrived on the host.

    Every value is looked at: NaN and Inf raise `NonFiniteLossError`, a step or two after the step that had them.
    """

    def __init__(self) -> None:
        self._pending: collections.deque[tuple[StepReport, torch.Tensor, Any]] = collections.deque()

    def put(self, report: StepReport) -> None:
        """Start to read the losses of a step."""
        values = torch.stack([loss.double() for loss in report.losses.values()])
        event = None
        if values.is_cuda:
            event, stream = torch.cuda.Event(), torch.cuda.current_stream(values.device)
            values = torch.empty_like(values, device="cpu", pin_memory=True).copy_(values, non_blocking=True)
            event.record(stream)
        self._pending.append((report, values, event))

    def take(self, wait: bool = False) -> list[tuple[StepReport, dict[str, float]]]:
        """Steps whose losses are here; with ``wait`` all that were put in."""
        finished = []
        while self._pending:
            report, values, event = self._pending[0]
            if event is not None and not event.query():
                if not wait and len(self._pending) <= _MAX_PENDING:
                    break
                event.synchronize()
            self._pending.popleft()
            named = dict(zip(report.losses, values.tolist(), strict=True))
            if not all(math.isfinite(value) for value in named.values()):
                raise NonFiniteLossError(report, named)
            finished.append((report, named))
        return finished


def save_bad_step(folder: Path, rank: int, error: NonFiniteLossError) -> Path:
    """Write what the failed step ran on, for `torch.load(..., weights_only=True)`; returns the file."""
    report = error.report
    content = {
        "epoch": report.epoch,
        "step": report.step,
        "lr": report.lr,
        "alpha": report.alpha,
        "losses": error.values,
        "batches": [plain(batch) for batch in report.batches],
    }
    path = folder / f"nonfinite_epoch{report.epoch}_step{report.step}_rank{rank}.pth"
    write_atomically(path, lambda part: torch.save(content, part))
    return path


def plain(value: Any) -> Any:
    """Dataclasses as dictionaries, at any depth: nothing but tensors, containers, numbers and texts."""
    if hasattr(value, "__dataclass_fields__"):
        return {name: plain(getattr(value, name)) for name in value.__dataclass_fields__}
    if isinstance(value, Mapping):
        return {name: plain(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    return value if isinstance(value, (torch.Tensor, int, float, str, bool, type(None))) else repr(value)

"""What training steps report: every value, and averages over the last ones."""

from __future__ import annotations

from collections.abc import Mapping

import torch


class MetricLog:
    """The values of named metrics, one per step.

    Tensors are read from their device only when a value is asked for, so that logging never makes a training step
    wait. All steps must report the same names.
    """

    def __init__(self) -> None:
        self._read: dict[str, list[float]] = {}
        self._pending: list[dict[str, torch.Tensor]] = []

    def append(self, values: Mapping[str, torch.Tensor | float]) -> None:
        """Add one step: scalar tensors (kept without their graph) or numbers."""
        if self._read and values.keys() != self._read.keys():
            raise ValueError(f"metrics {sorted(values)} differ from those of earlier steps, {sorted(self._read)}")
        if not self._read:
            self._read = {name: [] for name in values}
        self._pending.append({name: _detached(value) for name, value in values.items()})

    @property
    def names(self) -> list[str]:
        return list(self._read)

    def series(self, name: str) -> list[float]:
        """All values of a metric, in order of steps."""
        self._flush()
        return self._read[name]

    def average(self, name: str, window: int = 50) -> float:
        """Mean of the last ``window`` values of a metric; NaN before the first step."""
        recent = self.series(name)[-window:] if name in self._read else []
        return sum(recent) / len(recent) if recent else float("nan")

    def _flush(self) -> None:
        if not self._pending:
            return
        for name, values in self._read.items():
            column = [step[name] for step in self._pending]
            device = max((value.device for value in column), key=lambda device: device.type != "cpu")
            values += torch.stack([value.double().to(device) for value in column]).tolist()
        self._pending.clear()


def _detached(value: torch.Tensor | float) -> torch.Tensor:
    return value.detach() if isinstance(value, torch.Tensor) else torch.tensor(value, dtype=torch.float64)

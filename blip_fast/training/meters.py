"""Values of named metrics over the steps of an epoch, and times."""

from __future__ import annotations

import collections
from collections.abc import Mapping

import torch

from blip_fast.training.distributed import sum_over_ranks


class MetricLog:
    """The values of named metrics, one per step. All steps must report the same names."""

    def __init__(self, series: Mapping[str, list[float]] | None = None) -> None:
        self._series = {name: list(values) for name, values in (series or {}).items()}

    def append(self, values: Mapping[str, float]) -> None:
        """Add one step."""
        if self._series and values.keys() != self._series.keys():
            raise ValueError(f"metrics {sorted(values)} differ from those of earlier steps, {sorted(self._series)}")
        for name, value in values.items():
            self._series.setdefault(name, []).append(float(value))

    def __len__(self) -> int:
        return len(next(iter(self._series.values()), []))

    @property
    def names(self) -> list[str]:
        return list(self._series)

    def series(self, name: str) -> list[float]:
        """All values of a metric, in order of steps."""
        return self._series[name]

    def all_series(self) -> dict[str, list[float]]:
        """All values of all metrics."""
        return {name: list(values) for name, values in self._series.items()}

    def average(self, name: str, window: int = 50) -> float:
        """Mean of the last ``window`` values of a metric; NaN before the first step."""
        recent = self._series.get(name, [])[-window:]
        return sum(recent) / len(recent) if recent else float("nan")

    def averages_over_ranks(self) -> dict[str, float]:
        """Mean of each metric over all steps of all ranks, which call it together."""
        sums = [sum(values) for values in self._series.values()]
        *totals, count = sum_over_ranks(torch.tensor([*sums, len(self)], dtype=torch.float64)).tolist()
        return {name: total / max(count, 1) for name, total in zip(self._series, totals, strict=True)}


class Times:
    """Durations of steps, in seconds: the mean of all, and of the last 20 as the published console line shows it."""

    def __init__(self) -> None:
        self.total, self.count = 0.0, 0
        self._recent: collections.deque[float] = collections.deque(maxlen=20)

    def add(self, seconds: float) -> None:
        self.total += seconds
        self.count += 1
        self._recent.append(seconds)

    @property
    def mean(self) -> float:
        return self.total / max(self.count, 1)

    @property
    def recent(self) -> float:
        return sum(self._recent) / max(len(self._recent), 1)

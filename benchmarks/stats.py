"""Medians, quantiles and bootstrap intervals of interleaved timings."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000
CONFIDENCE = 0.95


@dataclasses.dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % bootstrap confidence interval."""

    value: float
    low: float
    high: float

    @property
    def includes_one(self) -> bool:
        """Whether a ratio may as well be 1: the two things compared show no difference."""
        return self.low <= 1 <= self.high


@dataclasses.dataclass(frozen=True)
class Summary:
    """Median and 20 % and 80 % quantiles of a number of runs, in seconds."""

    median_s: float
    q20_s: float
    q80_s: float
    runs: int


def summarize(times: NDArray[np.float64]) -> Summary:
    """Summary of one variant's ``times`` (rounds,) in seconds."""
    q20, median, q80 = np.quantile(times, (0.2, 0.5, 0.8))
    return Summary(float(median), float(q20), float(q80), len(times))


def median_interval(times: NDArray[np.float64]) -> Interval:
    """Median of ``times`` (rounds,) with its bootstrap interval."""
    return _interval(float(np.median(times)), np.median(times[_resampled_rounds(len(times))], axis=1))


def ratio_interval(times: NDArray[np.float64], other: NDArray[np.float64]) -> Interval:
    """``median(times) / median(other)``; both (rounds,), timed in the same rounds.

    Rounds are resampled as pairs, so that a disturbance which slowed a whole round cancels.
    """
    rounds = _resampled_rounds(len(times))
    ratios = np.median(times[rounds], axis=1) / np.median(other[rounds], axis=1)
    return _interval(float(np.median(times) / np.median(other)), ratios)


def _resampled_rounds(rounds: int) -> NDArray[np.int64]:
    return np.random.default_rng(0).integers(0, rounds, (RESAMPLES, rounds))


def _interval(value: float, resampled: NDArray[np.float64]) -> Interval:
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(resampled, (tail, 1 - tail))
    return Interval(value, float(low), float(high))

"""Quantiles, ratios and their bootstrap intervals, on times whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest

from blip_fast.benchmarks.stats import median_interval, ratio_interval, summarize
from blip_fast.benchmarks.table import describe_speedup


def noisy_times(seconds: float, seed: int, rounds: int = 60) -> np.ndarray:
    """Times as machines give them: spread upwards, with outliers."""
    draw = np.random.default_rng(seed)
    outliers = np.where(draw.random(rounds) < 0.1, 5.0, 1.0)
    return seconds * draw.lognormal(0.0, 0.1, rounds) * outliers


def test_summary_is_the_median_and_the_quantiles():
    summary = summarize(np.array([5.0, 1.0, 3.0, 2.0, 4.0, 100.0]))
    assert summary.median_s == 3.5
    assert summary.q20_s == 2.0
    assert summary.q80_s == 5.0
    assert summary.runs == 6


@pytest.mark.parametrize("seed", range(5))
def test_interval_of_a_known_ratio_surrounds_it(seed):
    ratio = ratio_interval(noisy_times(2.0, seed), noisy_times(1.0, seed + 100))
    assert ratio.low < 2.0 < ratio.high
    assert ratio.low <= ratio.value <= ratio.high
    assert ratio.high - ratio.low < 0.5
    assert not ratio.includes_one
    assert describe_speedup(ratio, 60).startswith(f"{ratio.value:.3g}x")


def test_equal_variants_show_no_difference():
    ratio = ratio_interval(noisy_times(1.0, 1), noisy_times(1.0, 2))
    assert ratio.includes_one
    assert "no difference" in describe_speedup(ratio, 60)
    assert describe_speedup(ratio, 3) == f"{ratio.value:.3g}x"  # too few for an interval


def test_a_disturbance_of_whole_rounds_cancels():
    disturbance = np.random.default_rng(0).uniform(1.0, 10.0, 40)
    ratio = ratio_interval(1.1 * disturbance, disturbance)
    assert ratio.low == pytest.approx(1.1)
    assert ratio.high == pytest.approx(1.1)


def test_median_interval_narrows_with_rounds():
    few, many = (median_interval(noisy_times(1.0, 3, rounds)) for rounds in (10, 1000))
    assert many.low < 1.02
    assert many.high > 1.0
    assert many.high - many.low < few.high - few.low


def test_intervals_are_reproducible():
    times, other = noisy_times(1.0, 1), noisy_times(1.0, 2)
    assert ratio_interval(times, other) == ratio_interval(times, other)

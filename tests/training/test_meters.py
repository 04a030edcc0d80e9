from __future__ import annotations

import math

import pytest

from blip_fast.training.meters import MetricLog, Times


def test_series_keep_every_value_in_order() -> None:
    log = MetricLog()
    for step in range(5):
        log.append({"loss": float(step), "lr": 0.1 * step})
    assert log.names == ["loss", "lr"]
    assert log.series("loss") == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert log.series("lr")[1] == 0.1
    again = MetricLog(log.all_series())
    again.append({"loss": 9.0, "lr": 0.0})
    assert (len(log), len(again), again.series("loss")[-1]) == (5, 6, 9.0)
    assert again.averages_over_ranks()["loss"] == pytest.approx(19 / 6)


def test_average_is_over_the_last_values_only() -> None:
    log = MetricLog()
    assert math.isnan(log.average("loss"))
    for value in (100.0, 1.0, 2.0, 3.0):
        log.append({"loss": value})
    assert log.average("loss", window=3) == 2.0
    assert log.average("loss", window=50) == 26.5


def test_a_changing_set_of_metrics_is_an_error() -> None:
    log = MetricLog()
    log.append({"loss": 1.0})
    with pytest.raises(ValueError, match="metrics"):
        log.append({"other": 1.0})


def test_times_know_the_mean_and_the_last_twenty() -> None:
    times = Times()
    assert (times.mean, times.recent) == (0.0, 0.0)
    for seconds in [10.0] + 20 * [1.0]:
        times.add(seconds)
    assert times.recent == 1.0
    assert times.mean == pytest.approx(30 / 21)

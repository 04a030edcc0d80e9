from __future__ import annotations

import math

import pytest
import torch

from blip_fast.training.meters import MetricLog


def test_series_keep_every_value_in_order() -> None:
    log = MetricLog()
    for step in range(5):
        log.append({"loss": torch.tensor(float(step), requires_grad=True), "lr": 0.1 * step})
    assert log.names == ["loss", "lr"]
    assert log.series("loss") == [0.0, 1.0, 2.0, 3.0, 4.0]
    log.append({"loss": torch.tensor(9.0), "lr": 0.0})
    assert log.series("loss")[-1] == 9.0
    assert log.series("lr")[1] == 0.1


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

"""Losses that a device has not finished yet: training goes on without them, and none is lost or out of order."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from blip_fast.training import losses
from blip_fast.training.losses import LossReader, NonFiniteLossError
from blip_fast.training.trainer import StepReport


class Event:
    """A device's event: it has not passed until somebody waits for it, or says so."""

    passed = False

    def query(self) -> bool:
        return self.passed

    def synchronize(self) -> None:
        self.passed = True


def report(step: int, loss: float = 1.0) -> StepReport:
    return StepReport(epoch=0, step=step, losses={"loss": torch.tensor(loss)}, lr=0.1, alpha=0.0, batches=())


def on_device(reader: LossReader, *steps: StepReport) -> list[Any]:
    """Put steps whose losses are on their way."""
    events = []
    for step in steps:
        reader.put(step)
        *rest, _ = reader._pending.pop()
        events.append(Event())
        reader._pending.append((*rest, events[-1]))
    return events


def taken(reader: LossReader, wait: bool = False) -> list[int]:
    return [step.step for step, _ in reader.take(wait)]


def test_finished_steps_come_in_order_and_nobody_waits() -> None:
    reader = LossReader()
    first, second, third = on_device(reader, *map(report, range(3)))
    assert taken(reader) == []
    second.passed = True
    assert taken(reader) == []
    first.passed = True
    assert taken(reader) == [0, 1]
    assert taken(reader) == []
    assert not third.passed
    assert taken(reader, wait=True) == [2]
    assert third.passed


def test_a_device_far_behind_is_waited_for() -> None:
    reader = LossReader()
    events = on_device(reader, *map(report, range(losses._MAX_PENDING + 2)))
    assert taken(reader) == [0, 1]
    assert [event.passed for event in events] == [True, True] + [False] * losses._MAX_PENDING


def test_a_loss_that_is_no_number_is_found_when_it_arrives() -> None:
    reader = LossReader()
    events = on_device(reader, report(0), report(1, float("nan")))
    assert taken(reader) == []
    for event in events:
        event.passed = True
    with pytest.raises(NonFiniteLossError, match="loss is nan in step 1 of epoch 0") as caught:
        reader.take()
    assert caught.value.report.step == 1

from __future__ import annotations

import io
import re

import pytest
import torch
from rich.console import Console

from blip_fast.training.meters import MetricLog
from blip_fast.training.progress import Speed, TrainingProgress, peak_memory
from blip_fast.training.trainer import StepReport


def report(step: int, epoch: int = 0) -> StepReport:
    return StepReport(epoch, step, 2e-5, 0.0, {"loss_ita": torch.tensor(0.0), "loss_lm": torch.tensor(0.0)}, (), 0.25)


def shown(terminal: bool, steps: int = 12) -> str:
    text = io.StringIO()
    console = Console(file=text, force_terminal=terminal, width=200)
    with TrainingProgress(console, steps, samples=8, log_every=5, speed=Speed(1e9, 1e12)) as progress:
        progress.start_epoch(0, steps, 0)
        log = MetricLog()
        for step in range(steps):
            log.append({"lr": 2e-5, "loss_ita": 3.0 + step, "loss_lm": 1.0})
            progress.step(report(step), log)
        progress.end_epoch({"lr": 2e-5, "loss_ita": 8.5})
        assert progress.rates()["images_per_s"] > 8
        assert progress.rates()["mfu"] == pytest.approx(progress.rates()["images_per_s"] / 8 * 1e9 / 1e12)
    return text.getvalue()


def test_lines_are_the_published_ones() -> None:
    lines = shown(terminal=False).splitlines()
    numbers = [line.split("/")[0] for line in lines[:-2]]
    assert numbers == [f"Train Epoch: [0]  [{step:2d}" for step in (0, 5, 10, 11)]
    memory = r"  max mem: \d+" if torch.cuda.is_available() else ""
    pattern = (
        r"Train Epoch: \[0\]  \[ 5/12\]  eta: 0:00:00  lr: 0\.000020  loss_ita: 8\.0000  loss_lm: 1\.0000  "
        r"time: 0\.\d{4}  data: 0\.2500" + memory
    )
    assert re.fullmatch(pattern, lines[1])
    assert re.fullmatch(r"Train Epoch: \[0\] Total time: 0:00:00 \(0\.\d{4} s / it\)", lines[-2])
    assert lines[-1] == "Averaged stats: lr: 0.0000  loss_ita: 8.5000"


def test_a_terminal_gets_a_bar_with_losses_rates_and_memory() -> None:
    text = shown(terminal=True)
    for part in ("epoch 0", "12/12", "ita ", "images/s", "MFU", "GiB"):
        assert part in text


def test_runs_without_an_engine_begin_their_epochs_themselves() -> None:
    text = io.StringIO()
    with TrainingProgress(Console(file=text, width=200), 4, samples=8) as progress:
        log = MetricLog()
        for number in range(4):
            log.append({"loss_ita": 1.0, "loss_lm": 2.0})
            progress.show(report(number % 2, number // 2), 2, log)
    assert [line[:22] for line in text.getvalue().splitlines()] == [
        f"Train Epoch: [{epoch}]  [{step}/2" for epoch in (0, 1) for step in (0, 1)
    ]


def test_memory_is_that_of_this_process() -> None:
    least = 1 if torch.cuda.is_available() else 10 * 2**20  # a GPU's may be a test's few tensors
    assert least <= peak_memory() < 2**40

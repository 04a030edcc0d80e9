"""What the launcher adds to a step: `blip-fast train pretrain` with everything that watches it, against the bare model step.

    python -m blip_fast.benchmarks.models.launcher_overhead --output benchmarks/results/launcher_overhead.json

Both kinds of step take turns in one run, on the same model, optimizer and batches. The launcher's step has all that it does
between two forward passes: waiting for data (made in the same process, decoded and augmented), schedules, momentum, counting of
bad samples, reading of losses, the look for NaN, console, history, TensorBoard, the poll for SIGTERM.
"""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from rich.console import Console
from torch import Tensor, nn

from blip_fast.checkpoints.files import write_json
from blip_fast.data.demo_pairs import demo_root
from blip_fast.tasks.base import RunContext
from blip_fast.tasks.pretrain import PretrainTask
from blip_fast.training.distributed import Rank, find_device
from blip_fast.training.engine import Engine, RunOptions
from blip_fast.training.settings import PretrainSettings

from ..environment import commit, machine, now, versions
from ..stats import ratio_interval, summarize

AIM = 1.03
WARM_UP = 2  # steps of each kind that do not count


class EnoughSteps(Exception):
    """Ends the run before it writes a checkpoint."""


class MeasuredTask(PretrainTask):
    """Pre-training that takes a bare step after each of the launcher's, on the same batch, and times both."""

    engine: Engine
    batch: Any = None
    resumed = 0.0

    def __init__(self, settings: PretrainSettings, context: RunContext, steps: int) -> None:
        super().__init__(settings, context)
        self.steps = steps
        self.launcher: list[float] = []
        self.bare: list[float] = []

    def losses(self, model: nn.Module, batch: Any, alpha: float) -> dict[str, Tensor]:
        self.batch = batch
        return super().losses(model, batch, alpha)

    def learning_rate(self, epoch: int, step: int, steps_per_epoch: int) -> float:
        """Called first in every step: the one before is over."""
        finish(self.context.device)
        now = time.perf_counter()
        if self.batch is not None:
            self.launcher.append(now - self.resumed)
            self.bare.append(self.bare_step())
        if len(self.bare) == self.steps:
            raise EnoughSteps
        self.resumed = time.perf_counter()
        return super().learning_rate(epoch, step, steps_per_epoch)

    def bare_step(self) -> float:
        """Seconds of the plain step that one writes by hand."""
        model, optimizer = self.engine.trainer.model, self.engine.trainer.optimizer
        started = time.perf_counter()
        optimizer.zero_grad()
        with self.engine.trainer.precision.autocast():
            loss = model(self.batch.images, self.batch.texts, alpha=0.4).loss
        loss.backward()
        optimizer.step()
        finish(self.context.device)
        return time.perf_counter() - started


def finish(device: torch.device) -> None:
    """Wait until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure(device: torch.device, steps: int, folder: Path, **settings: Any) -> dict[str, Any]:
    """Seconds of both kinds of step, and their ratio with its 95 % interval."""
    values: dict[str, Any] = dict(
        train_file=[str(demo_root() / "train.json")],
        image_root=str(demo_root()),
        passes_per_epoch=steps + WARM_UP + 1,  # one epoch is enough
        init_vit="",
        init_bert="",
        workers=0,
        log_every=10,
        precision="bf16" if device.type == "cuda" else "fp32",
    )
    context = RunContext(device, output_dir=folder, console=Console())
    task = MeasuredTask(PretrainSettings(**values | settings), context, steps + WARM_UP)
    task.engine = Engine(task, RunOptions())
    with contextlib.suppress(EnoughSteps):
        task.engine.run()
    times = {"launcher": np.array(task.launcher[WARM_UP:]), "bare": np.array(task.bare[WARM_UP:])}
    ratio = ratio_interval(times["launcher"], times["bare"])
    summaries = {name: dataclasses.asdict(summarize(values)) for name, values in times.items()}
    return {"settings": settings, **summaries, "ratio": dataclasses.asdict(ratio)}


@click.command(context_settings={"show_default": True})
@click.option("--device", default="auto", help="torch device; auto is a GPU where there is one.")
@click.option("--steps", type=click.IntRange(min=5), default=20, help="Steps of each kind.")
@click.option("--batch-size", type=click.IntRange(min=2), default=4, help="Pairs a step; BLIP-base at 224 px.")
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="Write the numbers here, as JSON.")
def main(device: str, steps: int, batch_size: int, output: Path | None) -> None:
    """Measure, print, and exit with 1 where the aim is missed."""
    place = find_device(device, Rank())
    with tempfile.TemporaryDirectory() as folder:
        found = measure(place, steps, Path(folder), batch_size=batch_size)
    ratio = found["ratio"]
    for name in ("launcher", "bare"):
        print(f"{name:9} {found[name]['median_s'] * 1e3:9.1f} ms a step, median of {found[name]['runs']}")
    print(f"launcher / bare: {ratio['value']:.4f} ({ratio['low']:.4f} to {ratio['high']:.4f}; aim: at most {AIM})")
    if output is not None:
        head = {"date": now(), "commit": commit()[0], "machine": machine(place), "versions": versions()}
        write_json(output, head | found)
    raise SystemExit(ratio["value"] > AIM)


if __name__ == "__main__":
    main()

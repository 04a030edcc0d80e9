"""A program from settings and options to its end: ranks, device, seed, engine."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from blip_fast.checkpoints.files import write_json
from blip_fast.tasks.base import RunContext, Task
from blip_fast.training.configuration import write_settings
from blip_fast.training.distributed import find_device, find_rank, process_group
from blip_fast.training.engine import Engine, Outcome, RunOptions
from blip_fast.training.environment import environment
from blip_fast.training.seeding import deterministic_algorithms, seed_everything
from blip_fast.training.settings import RunSettings


def run_task(
    task_class: type[Task[Any, Any]],
    settings: RunSettings,
    options: RunOptions,
    output_dir: Path,
    *,
    device: str = "auto",
    seed: int = 42,
    world_size: int = 1,
    dist_url: str = "env://",
    distributed: bool = True,
) -> Outcome:
    """Run a program on this rank; all ranks call it. The arguments are those of the command line.

    Raises ValueError for settings, files and environments that do not fit, and what the run itself raises.
    """
    rank = find_rank(os.environ, world_size, distributed)
    place = find_device(device, rank)
    console = Console(quiet=rank.number != 0, width=None)
    context = RunContext(place, rank.number, rank.world_size, seed, output_dir, console)
    with process_group(rank, place, dist_url), _arithmetic(settings):
        task = task_class(settings, context)
        seed_everything(seed)
        if context.is_main:
            output_dir.mkdir(parents=True, exist_ok=True)
            write_settings(settings, output_dir / "config.yaml")
            about = environment(place) | {"program": task.name, "seed": str(seed), "ranks": str(rank.world_size)}
            write_json(output_dir / "environment.json", about)
        return Engine(task, options).run()


@contextlib.contextmanager
def _arithmetic(settings: RunSettings) -> Iterator[None]:
    """Torch's global switches as the settings want them, for the duration of the block."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = settings.tf32
    try:
        with deterministic_algorithms() if settings.deterministic else contextlib.nullcontext():
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before

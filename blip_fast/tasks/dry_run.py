"""``--dry-run``: what a run would do and need, without doing it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import yaml
from rich.console import Console

from blip_fast.checkpoints.sources import PUBLISHED_NAMES
from blip_fast.tasks.base import RunContext, Task
from blip_fast.training.costs import StepCosts, step_costs
from blip_fast.training.loop import epoch_batches
from blip_fast.training.settings import RunSettings

META = torch.device("meta")


def dry_run(task_class: type[Task[Any, Any]], settings: RunSettings, output_dir: Path, world_size: int = 1) -> int:
    """Print settings, files, sizes and expected costs of one rank; 1 where a file is missing, else 0.

    The model is made on device "meta", without values; of the data one batch is read.
    """
    console = Console(highlight=False, soft_wrap=True)
    task = task_class(settings, RunContext(META, 0, world_size, output_dir=output_dir, console=console))
    console.print(yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False), markup=False)
    missing = [path for path in task.files() if not path.exists()]
    for path in task.files():
        console.print(f"{'MISSING' if path in missing else 'found  '}  {path}", markup=False)
    console.print(f"starts from  {described(settings.pretrained)}", markup=False)
    with META:
        model = task.prepared_model()
    console.print(f"model        {sum(parameter.numel() for parameter in model.parameters()) / 1e6:,.1f} M parameters")
    if task.routine.trains and not missing:
        for line in training_lines(task, model):
            console.print(line, markup=False)
    return int(bool(missing))


def described(source: str) -> str:
    """What a checkpoint's name stands for, as far as it can be told without fetching it."""
    if not source:
        return "nothing (pretrained is empty)"
    if Path(source).exists():
        return f"{source} (found)"
    known = source.startswith(("http://", "https://")) or source.removesuffix(".pth") in PUBLISHED_NAMES
    return (
        f"{source} ({'fetched when the run starts' if known else 'no file of that name; taken for a Hugging Face id'})"
    )


def training_lines(task: Task[Any, Any], model: torch.nn.Module) -> list[str]:
    """What training has to do, and needs."""
    settings: Any = task.settings
    data = task.train_data()
    batches, steps = epoch_batches(task, data, 0)
    per_rank = task.batch_size * settings.accumulate
    samples = per_rank * task.context.world_size
    batch = task.to_device(next(batches))
    costs = step_costs(
        model.train(), lambda model: task.losses(model, batch, 0.0), settings.accumulate, settings.precision
    )
    flops = f"{costs.flops / 1e12:,.3f} T a step, {costs.flops / 1e9 / per_rank:,.1f} G a sample"
    return [
        f"data         {len(data):,} samples, {samples} a step, {steps:,} steps an epoch, {settings.max_epoch} epochs",
        f"trained      {costs.trained / 1e6:,.1f} M parameters",
        f"FLOPs        {flops}",
        f"memory       {gib(costs.memory)}: {memory_parts(costs)}",
    ]


def memory_parts(costs: StepCosts) -> str:
    """What the memory is for."""
    names = ("weights", "gradients", "optimizer", "activations")
    return ", ".join(f"{name} {gib(getattr(costs, name))}" for name in names)


def gib(count: int) -> str:
    return f"{count / 2**30:,.2f} GiB"

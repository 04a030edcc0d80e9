"""`blip-fast train` (the same as `python -m blip_fast.train`): the published programs with their flags."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

PROGRAM_NAMES = ("pretrain", "retrieval", "caption", "vqa", "nlvr", "nocaps", "retrieval_video")


@click.command(name="train", context_settings={"show_default": True})
@click.argument("program", type=click.Choice(PROGRAM_NAMES))
@click.option(
    "--config", type=click.Path(path_type=Path), help="YAML file with settings.  [default: the program's own]"
)
@click.option("--output_dir", type=click.Path(file_okay=False, path_type=Path), help="[default: as published]")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a setting; may be repeated.")
@click.option("--evaluate", is_flag=True, help="Only evaluate.")
@click.option("--checkpoint", default="", help="Training checkpoint to go on from, after its epoch.")
@click.option("--resume", default="", metavar="auto|FILE", help="Go on from the state in the output folder, if any.")
@click.option("--device", default="auto", help="torch device; auto is a GPU where there is one.")
@click.option("--seed", type=click.IntRange(min=0), default=42, help="Seed of all random numbers.")
@click.option("--world_size", type=click.IntRange(min=1), default=1, help="Processes, where SLURM does not say it.")
@click.option("--dist_url", default="env://", help="Where the processes meet.")
@click.option("--distributed", type=bool, default=True, help="False insists on a single process.")
@click.option("--profile", is_flag=True, help="Write a trace of three training steps.")
@click.option(
    "--dry-run", is_flag=True, help="Show settings, sizes, memory and FLOPs, check that files exist, and stop."
)
def command(
    program: str, config: Path | None, output_dir: Path | None, overrides: tuple[str, ...], **flags: Any
) -> None:
    """Run PROGRAM as the published code does.

    Under torchrun and SLURM every process takes its part. SIGTERM saves the state and ends with 0; `--resume auto` goes
    on from there, and from what the last `save_every_steps` left after a crash.
    """
    # Imported here: `blip-fast --help` must not wait for torch.
    from blip_fast.checkpoints.sources import locate
    from blip_fast.tasks.programs import PROGRAMS
    from blip_fast.tasks.run import run_task
    from blip_fast.training.checkpoint import WriteError
    from blip_fast.training.configuration import find_config, load_settings
    from blip_fast.training.engine import NonFiniteStop, RunOptions

    chosen = PROGRAMS[program]
    try:
        file = find_config(config or Path("configs") / chosen.config)
        task_class = chosen.task_class()
        settings = load_settings(task_class.settings_class, file, overrides)
        folder = output_dir or Path(chosen.output_dir)
        if flags.pop("dry_run"):
            from blip_fast.tasks.dry_run import dry_run

            raise SystemExit(dry_run(task_class, settings, folder, flags["world_size"]))
        checkpoint = str(locate(flags.pop("checkpoint"))) if flags["checkpoint"] else flags.pop("checkpoint")
        options = RunOptions(flags.pop("evaluate"), checkpoint, flags.pop("resume"), flags.pop("profile"))
        run_task(task_class, settings, options, folder, **flags)
    except (ValueError, OSError, NonFiniteStop, WriteError) as error:
        raise click.ClickException(str(error)) from error

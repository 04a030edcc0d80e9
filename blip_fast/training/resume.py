"""Resume states: everything that decides how a run goes on, so that it goes on to the same bits."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from blip_fast.training.checkpoint import load_model, load_optimizer, read_training_checkpoint, write_content
from blip_fast.training.distributed import gather_objects
from blip_fast.training.parallel import whole_tensors
from blip_fast.training.seeding import random_state, restore_random_state
from blip_fast.training.trainer import Trainer

FILE = "resume.pth"


@dataclasses.dataclass
class Place:
    """How far a run is.

    Attributes:
        run: name of the run, drawn at its start.
        log_start: size of log.txt at its start, in bytes; what is before is of earlier runs.
        epoch: the present one, from 0.
        step: optimizer steps finished in it.
        steps: optimizer steps finished in all.
        samples: samples that one step takes, on all ranks.
        series: losses of this rank in the steps of this epoch so far, by name.
    """

    run: str
    log_start: int = 0
    epoch: int = 0
    step: int = 0
    steps: int = 0
    samples: int = 0
    series: dict[str, list[float]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Best:
    """The best epoch so far, and up to which step all is evaluated and written (also in ``progress.json``)."""

    run: str
    steps: int = -1
    score: float = -1.0
    best_epoch: int = 0
    test: dict[str, float] = dataclasses.field(default_factory=dict)


def save_state(
    path: Path, trainer: Trainer[Any], place: Place, best: Best, settings: Mapping[str, Any], is_main: bool
) -> None:
    """Write the state of all ranks; all of them call it."""
    ranks, series = gather_objects(random_state()), gather_objects(place.series)
    content = {
        "model": whole_tensors(trainer.model.state_dict()),
        "optimizer": whole_tensors(trainer.optimizer.state_dict()),
        "scaler": trainer.precision.scaler.state_dict(),
        "place": dataclasses.asdict(place),
        "best": dataclasses.asdict(best),
        "series": series,  # losses of each rank's own batches
        "settings": dict(settings),
        "ranks": ranks,
    }
    if is_main:
        write_content(path, content)


def load_state(path: Path, trainer: Trainer[Any], rank: int, world_size: int) -> tuple[Place, Best, bool]:
    """Load a state; returns the place, the best epoch, and whether the run goes on to the bits that it would have had.

    It does not with another number of ranks, whose random numbers are not known: they keep those they have.
    """
    content = read_training_checkpoint(path)
    missing = [name for name in ("optimizer", "scaler", "place", "best", "series", "ranks") if name not in content]
    if missing:
        raise ValueError(f"{path} has no '{missing[0]}': it is no resume state; a checkpoint goes with --checkpoint")
    load_model(trainer.model, content["model"], path)
    load_optimizer(trainer.optimizer, content["optimizer"], path)
    for group in trainer.optimizer.param_groups:
        group["weight_decay"] = trainer.settings.weight_decay  # the state's own has just been put there
    if trainer.precision.scaler.is_enabled() and content["scaler"]:
        trainer.precision.scaler.load_state_dict(content["scaler"])
    same_ranks = len(content["ranks"]) == world_size
    if same_ranks:
        restore_random_state(content["ranks"][rank])
    series = content["series"][rank] if same_ranks else {}
    return Place(**content["place"] | {"series": series}), Best(**content["best"]), same_ranks


def changed_settings(path: Path, settings: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Settings of a state that differ from ``settings``: {name: (then, now)}."""
    then = read_training_checkpoint(path).get("settings", {})
    return {name: (then.get(name), now) for name, now in settings.items() if then.get(name) != now}

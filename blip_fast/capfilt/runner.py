"""Runs a job: alone, as one of the ranks that ``torchrun`` starts, or on a Ray cluster.

Units belong to ranks by number, rank r of W takes r, r + W, ...; the ranks need no connection. Whoever finds all units scored
writes the bootstrapped set.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Literal

import torch

from blip_fast.capfilt.captioning import check_lengths
from blip_fast.capfilt.job import Job
from blip_fast.capfilt.models import CapFiltModels, load_models
from blip_fast.capfilt.scoring import UnitScorer
from blip_fast.capfilt.settings import CapFiltSettings
from blip_fast.capfilt.units import Unit
from blip_fast.training.distributed import find_device, find_rank

Runner = Literal["local", "ray"]
OnUnit = Callable[[Unit, dict[str, Any]], None]


def run_capfilt(
    settings: CapFiltSettings,
    runner: Runner = "local",
    ray_workers: int = 1,
    models: CapFiltModels | None = None,
    on_unit: OnUnit = lambda unit, counts: None,
) -> dict[str, Any] | None:
    """Caption, score and filter; finished units are not repeated.

    Args:
        settings: what to do.
        runner: "local" is this process, or each of the processes that ``torchrun`` starts; "ray" a Ray cluster.
        ray_workers: processes on the cluster, each with the models; a GPU each if ``settings.device`` is "cuda".
        models: models that are loaded already, for "local".
        on_unit: called for each unit that this process has scored, with its counts.

    Returns the manifest, or None where units of other ranks are still missing; the last rank returns it.

    Raises ValueError and FileNotFoundError for bad settings, inputs and checkpoints, or where not one sample could be used.
    """
    place = find_rank(os.environ)
    device = find_device(settings.device, place)
    models = models or load_models(settings.captioner, settings.filter, device)
    check_lengths(models.captioner, settings.score)  # before the job claims its folder for these settings
    job = Job(settings, models.fingerprint())
    if runner == "ray":
        from blip_fast.capfilt.ray_runner import score_on_ray

        score_on_ray(settings, job, ray_workers, on_unit)
    else:
        score_units(job, models, device, job.units[place.number :: place.world_size], on_unit)
    if job.unscored(job.units):
        return None
    manifest = job.finish(lambda unit, counts: None)
    if not manifest["samples"]["scored"]:
        reasons = ", ".join(f"{count} {reason}" for reason, count in manifest["samples"]["rejected"].items())
        raise ValueError(f"images={list(settings.images)}: not one of {manifest['samples']['in']} samples could be used "
                         f"({reasons}); {settings.output / 'records'} tells why")  # fmt: skip
    return manifest


def score_units(job: Job, models: CapFiltModels, device: torch.device, units: list[Unit], on_unit: OnUnit) -> None:
    """Score those of the units that are not finished, and decide on them where that needs no other unit."""
    settings = job.settings
    scorer = UnitScorer(models, settings.score, device, settings.image_root, settings.workers)
    unscored = job.unscored(units)
    if unscored or units == job.units:  # else another rank may be writing the set already
        job.clear_leftovers(units)
    for unit in unscored:
        counts = job.write_scores(unit, scorer.records(unit))
        if settings.select.keep_fraction is None:
            counts = job.select(unit, job.threshold())
        on_unit(unit, counts)

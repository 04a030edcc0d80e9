"""Units of a job over the workers of a Ray cluster, by Ray Data; the job's folder must be in reach of all of them."""

from __future__ import annotations

from typing import Any

import torch

from blip_fast.capfilt.job import Job
from blip_fast.capfilt.models import load_models
from blip_fast.capfilt.runner import score_units
from blip_fast.capfilt.settings import CapFiltSettings


class UnitWorker:
    """A process that loads the models once and scores unit after unit."""

    def __init__(self, settings: dict[str, Any], weights: str) -> None:
        self.settings = CapFiltSettings.model_validate(settings)
        device = torch.device(self.settings.device)
        self.models = load_models(self.settings.captioner, self.settings.filter, device)
        if self.models.fingerprint() != weights:
            raise ValueError(f"captioner={self.settings.captioner!r} or filter={self.settings.filter!r} differ on this "
                             "machine from those of the run")  # fmt: skip
        self.device, self.job = device, Job(self.settings, weights)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        done: list[dict[str, Any]] = []
        unit = self.job.units[row["index"]]
        score_units(self.job, self.models, self.device, [unit], lambda unit, counts: done.append(counts))
        return {"index": row["index"], "counts": done}


def score_on_ray(settings: CapFiltSettings, job: Job, workers: int, on_unit: Any) -> None:
    """Score the unfinished units with ``workers`` processes of the cluster (a local one is started where none is).

    Raises ImportError where Ray is not installed.
    """
    try:
        import ray
    except ImportError as error:
        raise ImportError("runner='ray' needs Ray: pip install 'blip_fast[ray]'") from error
    job.clear_leftovers(job.units)
    units = job.unscored(job.units)
    if not units:
        return
    rows = ray.data.from_items([{"index": unit.index} for unit in units], override_num_blocks=len(units))
    done = rows.map(
        UnitWorker,  # type: ignore[arg-type]  # a class is made into callables, one per process
        fn_constructor_args=(settings.model_dump(mode="json"), job.identity["weights"]),
        concurrency=workers,
        num_cpus=1,
        num_gpus=1 if settings.device == "cuda" else 0,
    )
    for row in done.iter_rows():
        for counts in row["counts"]:
            on_unit(job.units[row["index"]], counts)

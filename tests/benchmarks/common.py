"""Small jobs for the tests of the harness."""

from __future__ import annotations

import dataclasses

import torch

from blip_fast.benchmarks.harness import run_case
from blip_fast.benchmarks.job import Aim, Case, Setting, Variant
from blip_fast.benchmarks.limits import Limits
from blip_fast.benchmarks.results import Document, new_document

CPU = torch.device("cpu")
SETTING = Setting(CPU)


def inputs(seed: int) -> tuple[torch.Tensor]:
    return (torch.rand(1000, generator=torch.Generator().manual_seed(seed)) + 1,)


def double(x: torch.Tensor) -> torch.Tensor:
    return 2 * x


def small_case(*extra: Variant, aims: tuple[Aim, ...] = (), name: str = "1000 numbers", **options) -> Case:
    """Doubling of 1,000 numbers, by a baseline, by ours, and by ``extra`` variants."""
    variants = [Variant("x + x", lambda x: x + x, role="baseline"), Variant("ours", double, role="ours"), *extra]
    settings = dict(tolerance=1e-6, bytes=8000, input_sets=2) | options
    return Case(name=name, inputs=inputs, variants=variants, aims=aims, **settings)


class KnownLimits:
    """A machine whose limits need no measuring."""

    def measure(self, *job) -> Limits:
        return Limits(1e11, 1e10, 1e10)


@dataclasses.dataclass(frozen=True)
class Hurried(Setting):
    """A setting that times for as short as the harness allows."""

    @property
    def seconds(self) -> float:
        return 0.0


def document_of(*extra: Variant, **options) -> Document:
    """The results of one small case of the benchmark ``small``, measured now."""
    document = new_document(CPU, quick=True)
    document.cases.append(run_case("small", small_case(*extra, **options), Hurried(CPU), KnownLimits()))
    return document

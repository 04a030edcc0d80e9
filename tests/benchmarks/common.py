"""Small jobs for the tests of the harness."""

from __future__ import annotations

import torch

from blip_fast.benchmarks.job import Aim, Case, Setting, Variant

CPU = torch.device("cpu")
SETTING = Setting(CPU)


def inputs(seed: int) -> tuple[torch.Tensor]:
    return (torch.rand(1000, generator=torch.Generator().manual_seed(seed)) + 1,)


def double(x: torch.Tensor) -> torch.Tensor:
    return 2 * x


def small_case(*extra: Variant, aims: tuple[Aim, ...] = (), **options) -> Case:
    """Doubling of 1,000 numbers, by a baseline, by ours, and by ``extra`` variants."""
    variants = [Variant("x + x", lambda x: x + x, role="baseline"), Variant("ours", double, role="ours"), *extra]
    settings = dict(tolerance=1e-6, bytes=8000, input_sets=2) | options
    return Case(name="1000 numbers", inputs=inputs, variants=variants, aims=aims, **settings)

"""What the operations could do at best on GPUs that are not here: arithmetic intensity and the time their work needs.

Rates are those of the makers' data sheets, dense matrix products; figures that were measured are in the results files.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from .discovery import discover
from .job import Setting


@dataclasses.dataclass(frozen=True)
class Gpu:
    """A data sheet: FLOP/s in bf16 (tensor cores) and fp32 (CUDA cores), bytes per second."""

    name: str
    arch: int
    bf16: float
    fp32: float
    bandwidth: float

    def rate(self, dtype: torch.dtype) -> float:
        """FLOP/s in ``dtype``."""
        return self.fp32 if dtype == torch.float32 else self.bf16


GPUS = (
    Gpu("A100 SXM 80 GB", 80, 312e12, 19.5e12, 2.039e12),
    Gpu("H100 SXM 80 GB", 90, 989e12, 67e12, 3.35e12),
    Gpu("B200", 100, 2250e12, 75e12, 8e12),
)


@dataclasses.dataclass(frozen=True)
class Roof:
    """One case on one GPU: FLOPs per byte, what binds it, and the least time it needs."""

    benchmark: str
    case: str
    gpu: Gpu
    flops: float
    bytes: float
    bound: str
    seconds: float

    @property
    def intensity(self) -> float:
        """FLOPs per byte that must move."""
        return self.flops / self.bytes if self.bytes else 0.0


class StayOnHost(TorchFunctionMode):
    """Within the block tensors that are meant for a GPU stay where they are, so that cases can be declared without one."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        def host(value: Any) -> Any:
            return torch.device("cpu") if isinstance(value, torch.device) and value.type == "cuda" else value

        return func(*map(host, args), **{name: host(value) for name, value in (kwargs or {}).items()})


def roofs() -> Iterator[Roof]:
    """Every case that the benchmarks of operations have for a GPU, on each GPU."""
    found, *_ = discover()
    for benchmark in (benchmark for benchmark in found if benchmark.folder == "ops"):
        with StayOnHost():
            cases = list(benchmark.cases(Setting(torch.device("cuda"), quick=False)))
        for case in cases:
            for gpu in GPUS:
                arithmetic, memory = case.flops / gpu.rate(case.dtype), case.bytes / gpu.bandwidth
                bound = "arithmetic" if arithmetic > memory else "memory"
                yield Roof(
                    benchmark.name, case.name, gpu, case.flops, case.bytes, bound, seconds=max(arithmetic, memory)
                )

"""The machine's own limits, measured in the run that is held against them.

The best of several runs and ways counts, since a limit is what the machine can do; variants are judged by medians.
"""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from blip_fast.ops.linear import linear

from .environment import last_level_cache_bytes
from .timing import Clock, clock_for

BUFFER_BYTES = {"cpu": 256 << 20, "cuda": 1 << 30}  # at least; more where the caches are large
GEMM_SIZES = {"cpu": (768, 2048), "cuda": (4096, 8192)}
SECONDS_PER_TRIAL = 0.15
MIN_RUNS = 3
GAP = 25_000  # elements, 100 kB


@dataclasses.dataclass(frozen=True)
class Limits:
    """Rates that bound every job on this machine.

    ``gemm_rate``: FLOP/s of the best square matrix product in the dtype of the case. ``copy_bandwidth`` and
    ``update_bandwidth``: bytes read plus bytes written per second of a large copy, and of ``b += a`` in place, which on
    a CPU can be faster because the line to be written is in the cache already.
    """

    gemm_rate: float
    copy_bandwidth: float
    update_bandwidth: float

    @property
    def memory_bandwidth(self) -> float:
        """The higher of the two bandwidths, so that no kernel can look better than the machine."""
        return max(self.copy_bandwidth, self.update_bandwidth)

    def floor_s(self, flops: float, bytes: float) -> float:
        """The least time that a job of ``flops`` operations and ``bytes`` of traffic needs here."""
        return max(flops / self.gemm_rate, bytes / self.memory_bandwidth)

    def best(self, other: Limits) -> Limits:
        """The higher of each rate."""
        pairs = zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)
        return Limits(*(max(pair) for pair in pairs))

    def bound(self, flops: float, bytes: float) -> str:
        """Which of the two sets that time: ``arithmetic`` or ``memory``."""
        return "arithmetic" if flops / self.gemm_rate > bytes / self.memory_bandwidth else "memory"


class MachineLimits:
    """Measures the limits of one device: all when first asked, and again around each case the one that binds it.

    A shared machine's speed changes from minute to minute, so a case is held against the best seen just before and after.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._gemm_rates: dict[torch.dtype, float] = {}
        self._bandwidths: tuple[float, float] | None = None

    def measure(self, dtype: torch.dtype, flops: float, bytes: float) -> Limits:
        """The limits now, for a job of ``flops`` operations in ``dtype`` and ``bytes`` of traffic."""
        new = dtype not in self._gemm_rates
        memory_bound = not new and self._limits(dtype).bound(flops, bytes) == "memory"
        if new or not memory_bound:
            self._gemm_rates[dtype] = gemm_rate(self.device, dtype, GEMM_SIZES[self.device.type])
        if new or memory_bound:
            self._bandwidths = bandwidths(self.device)
        return self._limits(dtype)

    def _limits(self, dtype: torch.dtype) -> Limits:
        assert self._bandwidths is not None  # measured together with the first rate
        return Limits(self._gemm_rates[dtype], *self._bandwidths)


def gemm_rate(device: torch.device, dtype: torch.dtype, sizes: Sequence[int]) -> float:
    """FLOP/s of the best square matrix product in ``dtype`` on random data: torch's or, on a CPU, ours, if that is faster."""
    clock, generator = clock_for(device), _own_generator(device)
    rates = []
    for size in sizes:
        a, b = (torch.randn(size, size, generator=generator, device=device).to(dtype) for _ in range(2))
        out = torch.empty_like(a)
        products: list[Callable[[], Any]] = [functools.partial(torch.mm, a, b, out=out)]
        if device.type == "cpu":
            products.append(functools.partial(linear, a, b))
        rates += [2 * size**3 / _fastest(product, clock) for product in products]
    return max(rates)


def bandwidths(device: torch.device, bytes: int | None = None) -> tuple[float, float]:
    """Bytes per second, read plus written, of a copy of ``bytes`` and of an in-place update of as many.

    By default as many that caches play no part.
    """
    clock = clock_for(device)
    count = (bytes or max(BUFFER_BYTES[device.type], 4 * last_level_cache_bytes(device))) // 4
    # One buffer with a gap: sources and targets that lie a power of two apart share memory banks, at half the speed.
    both = torch.rand(GAP, generator=_own_generator(device), device=device).repeat(-(-2 * count // GAP) + 1)
    source, target = both[:count], both[count + GAP : 2 * count + GAP]
    copies = [_fastest(lambda: target.copy_(source), clock)]
    if device.type == "cpu":
        copies += [_fastest(copy, clock) for copy in _memory_moves(source, target)]
    update = _fastest(lambda: target.add_(source, alpha=1e-3), clock)
    return 2 * source.nbytes / min(copies), 3 * source.nbytes / update


def _own_generator(device: torch.device) -> torch.Generator:
    """Not the default one, which a failed capture of a CUDA graph may have left unusable."""
    return torch.Generator(device).manual_seed(0)


def _memory_moves(source: torch.Tensor, target: torch.Tensor) -> list[Callable[[], Any]]:
    """Copies by the C library, whose large moves bypass the cache: in one thread, and in as many as torch uses."""
    threads = torch.get_num_threads()
    chunk = -(-source.nbytes // threads)
    pool = ThreadPoolExecutor(threads)  # its threads end with the last reference to it

    def move(start: int, length: int) -> None:
        ctypes.memmove(target.data_ptr() + start, source.data_ptr() + start, length)  # ctypes releases the GIL

    def move_in_threads() -> None:
        starts = range(0, source.nbytes, chunk)
        list(pool.map(lambda start: move(start, min(chunk, source.nbytes - start)), starts))

    return [lambda: move(0, source.nbytes), move_in_threads]


def _fastest(call: Callable[[], Any], clock: Clock) -> float:
    """Least time of ``call``, over some runs after one of warm-up, in seconds."""
    clock.time(call)
    times: list[float] = []
    deadline = time.perf_counter() + SECONDS_PER_TRIAL
    while len(times) < MIN_RUNS or time.perf_counter() < deadline:
        times.append(clock.time(call))
    return min(times)

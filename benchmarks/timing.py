"""Timing of several variants in turn: A C B, B A C, ... so that a slow minute of the machine slows all of them."""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from .job import MIN_ROUNDS, Variant

MAX_ROUNDS = 1000
WARMUP_ROUNDS = 1  # the harness has called every variant once before


class Clock(Protocol):
    """Times one call, in seconds."""

    def time(self, call: Callable[[], Any]) -> float: ...


class CpuClock:
    """Wall-clock time of a call on the CPU."""

    def time(self, call: Callable[[], Any]) -> float:
        start = time.perf_counter()
        answer = call()
        seconds = time.perf_counter() - start
        del answer  # only now: freeing the answer is no part of the job
        return seconds


class CudaClock:
    """Time between CUDA events around a call, with the L2 cache flushed before it.

    The flush keeps the GPU busy while the host enqueues the call, so that the launch latency of one kernel stays out
    of the figure; gaps between many small kernels stay in. A graph replay has no such gaps.
    """

    def __init__(self, device: torch.device) -> None:
        l2_bytes = torch.cuda.get_device_properties(device).L2_cache_size
        self._flush = torch.empty(max(4 * l2_bytes, 256 << 20), dtype=torch.int8, device=device)
        self._start = torch.cuda.Event(enable_timing=True)
        self._end = torch.cuda.Event(enable_timing=True)

    def time(self, call: Callable[[], Any]) -> float:
        self._flush.zero_()
        self._start.record()
        answer = call()
        self._end.record()
        self._end.synchronize()
        del answer
        return self._start.elapsed_time(self._end) / 1e3


def clock_for(device: torch.device) -> Clock:
    """The clock that fits ``device``."""
    return CudaClock(device) if device.type == "cuda" else CpuClock()


def time_interleaved(
    variants: Sequence[Variant],
    input_sets: Sequence[tuple[Any, ...]],
    clock: Clock,
    seconds: float,
    min_rounds: int = MIN_ROUNDS,
    max_rounds: int = MAX_ROUNDS,
) -> NDArray[np.float64]:
    """Time every variant once per round until ``seconds`` have passed. Returns (variants, rounds), in seconds.

    The order within a round is drawn anew (fixed seed); each call takes the next input set. One round of
    warm-up comes first and counts for nothing; at least ``min_rounds`` rounds are timed however long they take.
    """
    draw = random.Random(0)
    order = list(range(len(variants)))
    rounds: list[list[float]] = []
    calls = 0
    gc.collect()
    collector_was_on = gc.isenabled()
    gc.disable()  # a collection inside one variant's call would be charged to it
    try:
        deadline = time.perf_counter() + seconds
        while len(rounds) < WARMUP_ROUNDS + min_rounds or time.perf_counter() < deadline:
            draw.shuffle(order)
            times = [0.0] * len(variants)
            for index in order:
                inputs = input_sets[calls % len(input_sets)]
                calls += 1
                times[index] = _time_call(variants[index], inputs, clock)
            rounds.append(times)
            if len(rounds) == WARMUP_ROUNDS + max_rounds:
                break
    finally:
        if collector_was_on:
            gc.enable()
    return np.array(rounds[WARMUP_ROUNDS:]).T


def _time_call(variant: Variant, inputs: tuple[Any, ...], clock: Clock) -> float:
    with variant.context():
        return clock.time(lambda: variant.run(*inputs))


def capture_cuda_graph(variant: Variant, inputs: tuple[Any, ...]) -> Variant:
    """A variant whose call replays a CUDA graph of ``variant`` on these ``inputs``."""
    side_stream = torch.cuda.Stream()
    side_stream.wait_stream(torch.cuda.current_stream())
    graph = torch.cuda.CUDAGraph()
    with variant.context():
        with torch.cuda.stream(side_stream):  # capture requires a warmed-up side stream
            for _ in range(3):
                variant.run(*inputs)
        torch.cuda.current_stream().wait_stream(side_stream)
        try:
            with torch.cuda.graph(graph):
                variant.run(*inputs)
        except RuntimeError:
            _clean_up_after_capture()
            raise
    return Variant(variant.name, lambda *_: graph.replay(), variant.role)


def _clean_up_after_capture() -> None:
    """A capture that fails leaves its stream the current one, and the generator in the state of a capture: end both."""
    torch.cuda.set_stream(torch.cuda.default_stream())
    with torch.cuda.graph(torch.cuda.CUDAGraph()):
        torch.zeros(1, device="cuda")

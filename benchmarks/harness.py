"""The measuring core: times, weighs and checks the variants of a case. README.md beside this file tells the method."""

from __future__ import annotations

import dataclasses
import gc
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils._pytree import tree_leaves

from . import environment
from .check import check_variants, start_variants
from .job import Aim, Case, Setting, Variant
from .limits import Limits, MachineLimits
from .memory import peak_extra_bytes
from .results import AimResult, CaseResult, Row, Verdict
from .stats import Interval, median_interval, ratio_interval, summarize
from .timing import capture_cuda_graph, clock_for, time_interleaved

CACHES_OF_INPUT = 4  # input sets together are this many times the last-level cache
MAX_INPUT_SETS = 64


@dataclasses.dataclass(frozen=True)
class Measurement:
    """What was measured of one variant: times (rounds,) of calls and of graph replays in seconds, peak extra memory."""

    times: NDArray[np.float64]
    peak_extra_bytes: int | None = None
    replays: NDArray[np.float64] | None = None
    graph_failure: str | None = None

    @property
    def of_machine(self) -> NDArray[np.float64]:
        """Times to hold against the machine's limits: of replays where there are any, as the host has no part in them."""
        return self.times if self.replays is None else self.replays


def run_case(benchmark: str, case: Case, setting: Setting, machine: MachineLimits) -> CaseResult:
    """Measure one case: time the variants that run in turn, weigh their memory, then check every answer.

    The check comes last because the copies it makes leave the heap full of holes, in which the variants' temporaries
    would be free of charge.
    """
    before = machine.measure(case.dtype, case.flops, case.bytes)
    input_sets = make_input_sets(case, setting.device)
    failures = start_variants(case.variants, input_sets[0])
    running = [variant for variant in case.variants if variant.unavailable is None and variant.name not in failures]
    measured = _measure(running, input_sets, setting) if running else {}
    del input_sets
    gc.collect()
    limits = before.best(machine.measure(case.dtype, case.flops, case.bytes))
    checks = check_variants(case, running)
    right = {name: measured[name] for name, check in checks.items() if check.status == "ok"}
    rows = []
    for variant in case.variants:
        row = checks.get(variant.name) or _idle_row(variant, failures)
        rows.append(_with_times(row, right, case, limits) if row.status == "ok" else row)
    return CaseResult(
        benchmark=benchmark,
        case=case.name,
        dtype=str(case.dtype).removeprefix("torch."),
        flops=float(case.flops),
        bytes=float(case.bytes),
        tolerance=case.tolerance,
        limits=limits,
        bound=limits.bound(case.flops, case.bytes),
        rows=rows,
        items=case.items,
        size=case.size,
        aims=[judge_aim(aim, case, right, limits) for aim in case.aims],
        date=environment.now(),
        commit=environment.commit()[0],
    )


def make_input_sets(case: Case, device: torch.device) -> list[tuple[Any, ...]]:
    """Input sets of a case, enough of them that a call finds none of its inputs in the cache."""
    first = case.inputs(0)
    count = case.input_sets
    if count is None:
        size = sum(leaf.nbytes for leaf in tree_leaves(first) if isinstance(leaf, torch.Tensor))
        count = math.ceil(CACHES_OF_INPUT * environment.last_level_cache_bytes(device) / max(size, 1))
    return [first, *(case.inputs(seed) for seed in range(1, min(count, MAX_INPUT_SETS)))]


def judge_aim(aim: Aim, case: Case, right: dict[str, Measurement], limits: Limits) -> AimResult:
    """Whether the fastest of our variants reaches ``aim``, given what was measured of the variants that were right."""
    ours = [variant.name for variant in case.variants if variant.role == "ours" and variant.name in right]
    if not ours or (aim.over is not None and aim.over not in right):
        return AimResult(aim.at_least, aim.over, aim.of, "not measured")
    fastest = min(
        ours, key=lambda name: float(np.median(right[name].of_machine if aim.of_limit else right[name].times))
    )
    reached = _reached(aim, case, right[fastest], right.get(aim.over or ""), limits)
    if reached is None:
        return AimResult(aim.at_least, aim.over, aim.of, "not measured")
    verdict: Verdict = "within noise"
    if reached.low >= aim.at_least:
        verdict = "met"
    elif reached.high < aim.at_least:
        verdict = "missed"
    return AimResult(aim.at_least, aim.over, aim.of, verdict, fastest, reached)


def _reached(aim: Aim, case: Case, ours: Measurement, other: Measurement | None, limits: Limits) -> Interval | None:
    """Where we stand, in the aim's own measure; None where the system keeps no count of memory."""
    if aim.of == "memory":
        if other is None or not ours.peak_extra_bytes or other.peak_extra_bytes is None:
            return None
        ratio = other.peak_extra_bytes / ours.peak_extra_bytes
        return Interval(ratio, ratio, ratio)
    if other is not None:
        return ratio_interval(other.times, ours.times)
    median = median_interval(ours.of_machine if aim.of_limit else ours.times)
    done = limits.floor_s(case.flops, case.bytes) if case.items is None or aim.of_limit else case.items[0]
    return Interval(done / median.value, done / median.high, done / median.low)


def _measure(
    variants: Sequence[Variant], input_sets: Sequence[tuple[Any, ...]], setting: Setting
) -> dict[str, Measurement]:
    clock = clock_for(setting.device)
    times = time_interleaved(variants, input_sets, clock, setting.seconds)
    peaks = [_peak(variant, input_sets[0], setting.device) for variant in variants]
    graphs, failures = _capture([v for v in variants if v.cuda_graph], input_sets[0], setting.device)
    graph_times: Iterable[NDArray[np.float64]] = ()
    if graphs:
        graph_times = time_interleaved(graphs, input_sets[:1], clock, setting.replay_seconds)
    replays = {graph.name: row for graph, row in zip(graphs, graph_times, strict=True)}
    return {
        variant.name: Measurement(row, peak, replays.get(variant.name), failures.get(variant.name))
        for variant, row, peak in zip(variants, times, peaks, strict=True)
    }


def _capture(
    variants: Sequence[Variant], inputs: tuple[Any, ...], device: torch.device
) -> tuple[list[Variant], dict[str, str]]:
    """Variants that replay CUDA graphs (none on a CPU), and why others could not be captured."""
    graphs, failures = [], {}
    for variant in variants if device.type == "cuda" else ():
        try:
            graphs.append(capture_cuda_graph(variant, inputs))
        except RuntimeError as error:  # its times without a graph still count
            failures[variant.name] = str(error).splitlines()[0]
    return graphs, failures


def _peak(variant: Variant, inputs: tuple[Any, ...], device: torch.device) -> int | None:
    with variant.context():
        return peak_extra_bytes(lambda: (variant.weigh or variant.run)(*inputs), device)


def _idle_row(variant: Variant, failures: dict[str, str]) -> Row:
    if variant.unavailable is not None:
        return Row(variant.name, variant.role, "unavailable", variant.unavailable)
    return Row(variant.name, variant.role, "failed", failures[variant.name])


def _with_times(row: Row, right: dict[str, Measurement], case: Case, limits: Limits) -> Row:
    measured, baseline = right[row.variant], right.get(case.baseline.name)
    time = summarize(measured.times)
    floor = limits.floor_s(case.flops, case.bytes)
    return dataclasses.replace(
        row,
        reason=None if measured.graph_failure is None else f"it has no CUDA graph: {measured.graph_failure}",
        time=time,
        speedup=None if baseline is None else ratio_interval(baseline.times, measured.times),
        graph_median_s=None if measured.replays is None else float(np.median(measured.replays)),
        peak_extra_bytes=measured.peak_extra_bytes,
        flop_rate=case.flops / time.median_s if case.flops else None,
        bandwidth=case.bytes / time.median_s if case.bytes else None,
        limit_share=floor / float(np.median(measured.of_machine)) if floor else None,
    )

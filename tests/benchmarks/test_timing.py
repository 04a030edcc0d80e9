"""The order of calls, the rotation of inputs, and the number of rounds."""

from __future__ import annotations

import contextlib
import gc
import time
from unittest import mock

import numpy as np
import pytest
import torch

from blip_fast.benchmarks.job import Variant
from blip_fast.benchmarks.timing import WARMUP_ROUNDS, CpuClock, capture_cuda_graph, time_interleaved


class CountingClock:
    """Gives 1, 2, 3, ... as times, so that each time tells which call it was."""

    def __init__(self) -> None:
        self.calls = 0

    def time(self, call) -> float:
        call()
        self.calls += 1
        return float(self.calls)


def recording_variants(names: str) -> tuple[list[Variant], list[tuple[str, int]]]:
    log: list[tuple[str, int]] = []
    return [Variant(name, lambda inputs, name=name: log.append((name, inputs))) for name in names], log


def test_every_round_has_every_variant_in_changing_order():
    variants, log = recording_variants("ABC")
    times = time_interleaved(variants, [(0,)], CountingClock(), seconds=0, min_rounds=20)
    assert times.shape == (3, 20)
    rounds = [tuple(name for name, _ in log[i : i + 3]) for i in range(0, len(log), 3)]
    assert len(rounds) == 20 + WARMUP_ROUNDS
    assert {tuple(sorted(names)) for names in rounds} == {("A", "B", "C")}
    assert len(set(rounds)) == 6  # all orders come up


def test_warm_up_rounds_do_not_count_and_times_belong_to_their_variant():
    variants, log = recording_variants("AB")
    times = time_interleaved(variants, [(0,)], CountingClock(), seconds=0, min_rounds=5)
    assert sorted(times.ravel()) == list(range(2 * WARMUP_ROUNDS + 1, len(log) + 1))
    for index, variant in enumerate(variants):
        assert [log[int(call) - 1][0] for call in times[index]] == [variant.name] * 5


def test_calls_take_turns_over_the_input_sets():
    variants, log = recording_variants("AB")
    time_interleaved(variants, [(0,), (1,), (2,)], CountingClock(), seconds=0, min_rounds=6)
    assert [inputs for _, inputs in log] == [call % 3 for call in range(len(log))]


def test_rounds_follow_the_time_budget():
    variants, _ = recording_variants("A")
    assert time_interleaved(variants, [(0,)], CpuClock(), seconds=0).shape[1] == 5
    assert time_interleaved(variants, [(0,)], CpuClock(), seconds=60, max_rounds=30).shape[1] == 30


def test_the_cpu_clock_measures_the_call():
    assert 0.01 <= CpuClock().time(lambda: time.sleep(0.01)) < 5


def test_contexts_are_entered_around_each_call():
    depth = [0]

    @contextlib.contextmanager
    def context():
        depth[0] += 1
        yield
        depth[0] -= 1

    seen: list[int] = []
    variant = Variant("A", lambda: seen.append(depth[0]), context=context)
    time_interleaved([variant], [()], CpuClock(), seconds=0)
    assert np.unique(seen).tolist() == [1]
    assert depth == [0]


def test_the_collector_is_switched_on_again_after_an_error():
    def broken():
        assert not gc.isenabled()
        raise KeyError("x")

    with contextlib.suppress(KeyError):
        time_interleaved([Variant("A", broken)], [()], CpuClock(), seconds=0)
    assert gc.isenabled()


def test_a_capture_that_fails_is_cleaned_up(monkeypatch):
    """torch leaves the stream of a capture that fails the current one, and its generator in the state of a capture."""
    log: list[str] = []

    @contextlib.contextmanager
    def capture(graph):
        log.append("capture")
        yield

    def reads_back():
        if "capture" in log:
            raise RuntimeError("operation not permitted when stream is capturing")

    cuda = mock.MagicMock(graph=capture, default_stream=lambda: "default", set_stream=log.append)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "cuda", cuda)
        patch.setattr(torch, "zeros", lambda *_, **__: log.append("zeros"))
        with pytest.raises(RuntimeError, match="not permitted"):
            capture_cuda_graph(Variant("A", reads_back), ())
    assert log == ["capture", "default", "capture", "zeros"]

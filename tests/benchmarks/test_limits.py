"""The machine's limits are positive and plausible, and bind as they should."""

from __future__ import annotations

import pytest
import torch

from blip_fast.benchmarks.limits import Limits, MachineLimits, bandwidths, gemm_rate

CPU = torch.device("cpu")


def test_rates_of_this_machine_are_plausible():
    assert 1e8 < gemm_rate(CPU, torch.float32, (256,)) < 1e15
    copy, update = bandwidths(CPU, bytes=16 << 20)
    assert 1e8 < copy < 1e13
    assert 1e8 < update < 1e13


def test_the_longer_of_arithmetic_and_traffic_binds():
    limits = Limits(gemm_rate=100.0, copy_bandwidth=10.0, update_bandwidth=20.0)
    assert limits.memory_bandwidth == 20.0
    assert limits.floor_s(flops=1000, bytes=40) == pytest.approx(10.0)
    assert limits.bound(flops=1000, bytes=40) == "arithmetic"
    assert limits.floor_s(flops=1000, bytes=400) == pytest.approx(20.0)
    assert limits.bound(flops=1000, bytes=400) == "memory"


def test_best_takes_the_higher_of_each_rate():
    assert Limits(1.0, 5.0, 3.0).best(Limits(2.0, 4.0, 3.5)) == Limits(2.0, 5.0, 3.5)


def test_only_the_binding_limit_is_measured_again(monkeypatch):
    measured = []

    def fake_rate(device, dtype, sizes):
        measured.append("gemm")
        return 100.0

    def fake_bandwidths(device):
        measured.append("bandwidths")
        return 10.0, 20.0

    monkeypatch.setattr("blip_fast.benchmarks.limits.gemm_rate", fake_rate)
    monkeypatch.setattr("blip_fast.benchmarks.limits.bandwidths", fake_bandwidths)
    machine = MachineLimits(CPU)
    for flops, bytes, expected in [(1, 1, ["gemm", "bandwidths"]), (0, 1, ["bandwidths"]), (9, 1, ["gemm"])]:
        measured.clear()
        assert machine.measure(torch.float32, flops, bytes) == Limits(100.0, 10.0, 20.0)
        assert measured == expected


def test_limits_do_not_touch_the_default_generator():
    """A failed capture of a CUDA graph may have left it unusable."""
    before = torch.get_rng_state()
    gemm_rate(CPU, torch.float32, (16,))
    bandwidths(CPU, bytes=1 << 16)
    assert torch.equal(torch.get_rng_state(), before)

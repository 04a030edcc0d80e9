"""momentum_update_: every backend against float64, dtypes mixed, ragged sizes, and what it refuses."""

from __future__ import annotations

import pytest
import torch

import blip_fast
from blip_fast.ops import momentum_update_
from tests.ops.common import backends_of, device_of, dtypes_of

SIZES = [(1,), (7, 3), (0,), (128, 257), (5,), (40_000,)]
BACKENDS = pytest.mark.parametrize("backend", backends_of("momentum_update_"))


def make(device: str, dtype_m: torch.dtype, dtype: torch.dtype, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    params_m = [torch.randn(size, generator=generator).to(device, dtype_m) for size in SIZES]
    params = [torch.randn(size, generator=generator).to(device, dtype) for size in SIZES]
    return params_m, params


def in_float64(params_m, params, momentum):
    return [m.double() * momentum + p.double() * (1 - momentum) for m, p in zip(params_m, params, strict=True)]


@BACKENDS
@pytest.mark.parametrize("momentum", [0.995, 0.0, 1.0])
def test_equals_float64(backend, momentum):
    for dtype_m in dtypes_of(backend):
        for dtype in dtypes_of(backend):
            params_m, params = make(device_of(backend), dtype_m, dtype)
            expected = in_float64(params_m, params, momentum)
            with blip_fast.backend(backend):
                momentum_update_(params_m, params, momentum)
            for got, want in zip(params_m, expected, strict=True):
                assert got.dtype == dtype_m
                # half a unit in the last place of the copy's dtype, and two roundings of fp32
                bound = torch.finfo(dtype_m).eps / 2 + 3 * torch.finfo(torch.float32).eps
                if dtype_m == torch.float64:
                    bound = 4 * torch.finfo(dtype_m).eps
                assert torch.all((got.double() - want).abs() <= bound * (want.abs() + 0.01))


@BACKENDS
def test_mixed_dtypes_in_one_list(backend):
    device = device_of(backend)
    low = torch.float16
    params_m = [torch.ones(3, device=device), torch.ones(3, device=device, dtype=low), torch.ones(9, device=device)]
    params = [torch.zeros(3, device=device, dtype=low), torch.zeros(3, device=device), torch.zeros(9, device=device)]
    with blip_fast.backend(backend):
        momentum_update_(params_m, params, 0.75)
    for tensor in params_m:
        assert torch.equal(tensor, torch.full_like(tensor, 0.75))


@BACKENDS
def test_unaligned_views(backend):
    device = device_of(backend)
    storage_m, storage = torch.ones(1000, device=device), torch.zeros(1000, device=device)
    with blip_fast.backend(backend):
        momentum_update_([storage_m[1:900]], [storage[3:902]], 0.5)
    assert torch.equal(storage_m[1:900], torch.full_like(storage_m[1:900], 0.5))
    assert storage_m[0] == 1
    assert torch.equal(storage_m[900:], torch.ones_like(storage_m[900:]))


@BACKENDS
def test_nan_and_inf_propagate(backend):
    device = device_of(backend)
    params_m = [torch.tensor([1.0, float("nan"), float("inf")], device=device)]
    params = [torch.tensor([float("inf"), 1.0, float("-inf")], device=device)]
    with blip_fast.backend(backend):
        momentum_update_(params_m, params, 0.5)
    assert params_m[0][0].isposinf()
    assert params_m[0][1:].isnan().all()


@BACKENDS
def test_repeats_bit_for_bit(backend):
    results = []
    for _ in range(2):
        params_m, params = make(device_of(backend), torch.float32, torch.float32)
        with blip_fast.backend(backend):
            momentum_update_(params_m, params, 0.995)
        results.append(torch.cat([t.flatten() for t in params_m]))
    assert torch.equal(results[0], results[1])


@BACKENDS
def test_opcheck(backend):
    params_m, params = make(device_of(backend), torch.float32, torch.float32)
    with blip_fast.backend(backend):
        torch.library.opcheck(torch.ops.blip_fast.momentum_update_.default, (params_m, params, 0.9))


def test_parameters_record_no_gradient():
    param = torch.nn.Parameter(torch.ones(4))
    copy = torch.zeros(4)
    momentum_update_([copy], [param], 0.0)
    assert not copy.requires_grad
    assert torch.equal(copy, param)


def test_compiles_without_a_graph_break():
    def step(copy, param):
        momentum_update_([copy], [param], 0.5)
        return copy * 2

    copy, param = torch.ones(8), torch.zeros(8)
    result = torch.compile(step, fullgraph=True, backend="aot_eager")(copy, param)
    assert torch.equal(copy, torch.full((8,), 0.5))
    assert torch.equal(result, torch.ones(8))


def test_empty_list_is_nothing():
    momentum_update_([], [], 0.5)


@pytest.mark.parametrize(
    ("params_m", "params", "momentum", "message"),
    [
        ([torch.ones(2)], [], 0.5, "params_m has 1 tensors and params has 0"),
        ([torch.ones(2)], [torch.ones(3)], 0.5, r"params\[0\] has shape \(3,\); expected \(2,\)"),
        ([torch.ones(2)], [torch.ones(2)], 1.5, r"momentum is 1.5; expected a number in \[0, 1\]"),
        ([torch.ones(2)], [torch.ones(2, dtype=torch.int64)], 0.5, "expected floating point"),
        ([torch.ones(2, dtype=torch.int64)], [torch.ones(2)], 0.5, "expected floating point"),
        ([torch.ones(3, 2).T], [torch.ones(2, 3)], 0.5, "not contiguous"),
        ([torch.ones(2, 3)], [torch.ones(3, 2).T], 0.5, "not contiguous"),
        ([torch.ones(2), torch.ones(2, device="meta")], [torch.ones(2), torch.ones(2, device="meta")], 0.5, "another"),
        ([torch.ones(2)], [torch.ones(2, device="meta")], 0.5, "another device"),
    ],
)
def test_refuses(params_m, params, momentum, message):
    with pytest.raises(ValueError, match=message):
        momentum_update_(params_m, params, momentum)

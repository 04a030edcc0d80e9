"""Choosing a backend: the context manager, the environment, what cannot be served."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys

import pytest
import torch
from torch.autograd import forward_ad

import blip_fast
import blip_fast.ops
from blip_fast.ops import registry

OPERATION = registry.OPERATIONS["momentum_update_"]


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | environment
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)


def test_backends_names_every_operation_and_backend():
    table = blip_fast.backends()
    assert {"enqueue_", "momentum_update_"} <= set(table)
    for reasons in table.values():
        assert set(reasons) == set(registry.BACKENDS)
        assert reasons["reference"] is None
        assert all(reason is None or reason for reason in reasons.values())


def test_context_manager_nests_and_restores():
    tensors = [torch.ones(1)]
    before = OPERATION.select(tensors)
    with blip_fast.backend("reference"):
        assert OPERATION.select(tensors) == "reference"
        with pytest.raises(RuntimeError, match="inner"), blip_fast.backend("reference", op="enqueue_"):
            raise RuntimeError("inner")
        assert OPERATION.select(tensors) == "reference"
    assert OPERATION.select(tensors) == before


def test_one_operation_only():
    tensors = [torch.ones(1)]
    before = OPERATION.select(tensors)
    with blip_fast.backend("reference", op="enqueue_"):
        assert registry.OPERATIONS["enqueue_"].select(tensors) == "reference"
        assert OPERATION.select(tensors) == before
        assert OPERATION.forced() == os.environ.get("BLIP_FAST_BACKEND")
        with blip_fast.backend("triton"):  # a block for all operations is for this one, too
            assert registry.OPERATIONS["enqueue_"].forced() == "triton"


def test_an_operation_brings_its_gradient():
    backward = registry.OPERATIONS["cross_attention_backward"]
    with blip_fast.backend("reference", op="cross_attention"):
        assert backward.forced() == "reference"
        with blip_fast.backend("cpu", op="cross_attention_backward"):
            assert backward.forced() == "cpu"
    assert backward.forced() == OPERATION.forced()


def test_unknown_names_are_refused():
    with (
        pytest.raises(ValueError, match="backend 'fast' is unknown; expected one of reference"),
        blip_fast.backend("fast"),
    ):
        pass
    with (
        pytest.raises(ValueError, match="operation 'warp' is unknown"),
        blip_fast.backend("reference", op="warp"),
    ):
        pass


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
def test_forced_backend_that_cannot_serve_says_why():
    with blip_fast.backend("cuda"), pytest.raises(RuntimeError, match="backend 'cuda' cannot run momentum_update_: "):
        blip_fast.ops.momentum_update_([torch.ones(1)], [torch.ones(1)], 0.5)


def test_forced_backend_refuses_dtypes_and_auto_takes_the_reference():
    pytest.importorskip("blip_fast._C")
    double = [torch.ones(2, dtype=torch.float64)]
    with blip_fast.backend("cpu"), pytest.raises(RuntimeError, match=r"got torch\.float64"):
        blip_fast.ops.momentum_update_(double, double, 0.5)
    assert OPERATION.select(double) == "reference"


def test_environment_forces_backends():
    code = "from blip_fast.ops import registry as r; import torch; t=[torch.ones(1)]; "
    code += "print(*(r.OPERATIONS[o].select(t) for o in ('momentum_update_', 'enqueue_')))"
    assert run_python("import blip_fast.ops;" + code, BLIP_FAST_BACKEND="reference").stdout.split() == ["reference"] * 2
    partly = run_python("import blip_fast.ops;" + code, BLIP_FAST_BACKEND="enqueue_=reference")
    assert partly.stdout.split()[1] == "reference"
    wrong = run_python("import blip_fast.ops", BLIP_FAST_BACKEND="quick")
    assert wrong.returncode != 0
    assert "backend 'quick' is unknown" in wrong.stderr
    wrong = run_python("import blip_fast.ops", BLIP_FAST_BACKEND="enqueue=reference")
    assert wrong.returncode != 0
    assert "BLIP_FAST_BACKEND: operation 'enqueue' is unknown; expected one of" in wrong.stderr


def test_reference_takes_any_device():
    copy = torch.ones(3, device="meta")
    with blip_fast.backend("reference"):
        blip_fast.ops.momentum_update_([copy], [copy.clone()], 0.5)
    assert OPERATION.select([copy]) == "reference"


@pytest.mark.parametrize("name", ["reference", "cpu"])
def test_autograd_sees_what_is_written(name):
    queue, pointer, copy = torch.zeros(2, 5), torch.tensor([0]), torch.zeros(3)
    if OPERATION.unavailable(name):
        pytest.skip("the native library is not built")
    with blip_fast.backend(name):
        blip_fast.ops.enqueue_(queue, torch.ones(1, 2), pointer)
        blip_fast.ops.momentum_update_([copy], [torch.ones(3)], 0.5)
    assert all(tensor._version for tensor in (queue, pointer, copy))


@pytest.mark.parametrize("recorded", [False, True])
def test_forward_mode_is_refused_and_not_taken_for_no_derivative(recorded):
    hidden, labels = torch.ones(2, 3, requires_grad=recorded), torch.tensor([0, 1])
    with forward_ad.dual_level():
        plain = blip_fast.ops.linear_cross_entropy(hidden, torch.ones(4, 3), None, labels)
        assert forward_ad.unpack_dual(plain).tangent is None
        dual = forward_ad.make_dual(hidden, torch.ones(2, 3))
        with pytest.raises(RuntimeError, match="linear_cross_entropy has no forward-mode derivative; expected reverse"):
            blip_fast.ops.linear_cross_entropy(dual, torch.ones(4, 3), None, labels)


def test_triton_launches_where_the_tensors_are(monkeypatch):
    entered = []
    monkeypatch.setattr(torch.cuda, "device_of", lambda tensor: entered.append(tensor) or contextlib.nullcontext())
    tensors = [torch.ones(1), torch.ones(2)]
    assert registry._on_their_device(lambda *args: args)([tensors[0]], tensors[1]) == ([tensors[0]], tensors[1])
    assert entered == [tensors[0]]

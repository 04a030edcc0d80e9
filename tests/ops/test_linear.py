"""linear: float64, gradients, rows that do not depend on each other, GELU, ragged sizes, opcheck, errors."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import blip_fast
from blip_fast import native
from blip_fast.ops import linear
from blip_fast.ops.linear import MANY_ROWS, _backward, _operation, linear_layer, linear_layers

BACKENDS = [name for name in ("reference", "cpu") if _operation.unavailable(name) is None]


def layer(rows: int, depth: int, columns: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(rows + depth + columns)
    return tuple(torch.randn(*shape, generator=generator) for shape in ((rows, depth), (columns, depth), (columns,)))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rows", [0, 1, 5, 6, 12, 13, 18, 19, 40, 601])
@pytest.mark.parametrize(("depth", "columns"), [(32, 64), (768, 131), (37, 7), (8, 3)])
def test_float64(backend, rows, depth, columns):
    x, weight, bias = layer(rows, depth, columns)
    tolerance = 5e-7 if backend == "reference" else 3e-7  # MKL adds 768 products in one chain on some processors
    with blip_fast.backend(backend, op="linear"):
        plain, curved = linear(x, weight, bias), linear(x, weight, gelu=True)
    expected = F.linear(x.double(), weight.double(), bias.double())
    assert plain.shape == (rows, columns)
    assert (plain - expected).norm() <= tolerance * expected.norm()
    expected = F.gelu(F.linear(x.double(), weight.double()))
    assert (curved - expected).norm() <= tolerance * expected.norm() + 1e-6 * curved.numel() ** 0.5  # 1 + erf rounds


@pytest.mark.skipif("cpu" not in BACKENDS, reason="the native library is not built")
def test_gelu_is_exact():
    x = torch.linspace(-9, 9, 30001)[:, None]
    error = (linear(x, torch.ones(1, 1), gelu=True) - F.gelu(x.double())).abs()
    assert error.max() < 1.5e-6
    small = x.abs() < 1
    assert (error[small] <= 6e-7 * F.gelu(x.double())[small].abs()).all()
    special = torch.tensor([[float("nan")], [float("inf")], [-50.0], [0.0]])
    result = linear(special, torch.ones(1, 1), gelu=True)
    assert result[0].isnan()
    assert result[1:].flatten().tolist() == [float("inf"), 0.0, 0.0]


@pytest.mark.skipif("cpu" not in BACKENDS, reason="the native library is not built")
@pytest.mark.parametrize("gelu", [False, True])
def test_a_row_depends_on_itself_alone(monkeypatch, gelu):
    monkeypatch.setattr(native, "mkl_at_full_rate", lambda: False)
    x, weight, bias = layer(700, 96, 75)
    whole = linear(x, weight, bias, gelu)
    for rows in (slice(0, 1), slice(3, 15), slice(100, 140), slice(650, 700)):
        assert torch.equal(linear(x[rows], weight, bias, gelu), whole[rows])
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert torch.equal(linear(x, weight, bias, gelu), whole)
    finally:
        torch.set_num_threads(threads)


def gradients(run, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    leaves = [tensor.clone().requires_grad_() for tensor in tensors]
    out = run(*leaves)
    generator = torch.Generator().manual_seed(1)
    return torch.autograd.grad(out, leaves, torch.randn(out.shape, generator=generator).to(out))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rows", [0, 1, 33, 130, 1000])
@pytest.mark.parametrize(("depth", "columns"), [(32, 64), (300, 131), (37, 7), (8, 1)])
def test_gradients(backend, rows, depth, columns):
    tensors = layer(rows, depth, columns)
    with blip_fast.backend(backend):
        ours = gradients(linear, *tensors)
    eager = gradients(F.linear, *tensors)
    exact = gradients(F.linear, *(tensor.double() for tensor in tensors))
    for found, peer, truth in zip(ours, eager, exact, strict=True):
        assert found.shape == truth.shape
        assert (found - truth).norm() <= 1.5 * (peer - truth).norm() + 1e-7 * truth.norm()


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_of_gelu_and_of_some_inputs(backend):
    x, weight, bias = layer(50, 40, 30)
    with blip_fast.backend(backend):
        ours = gradients(lambda *args: linear(*args, gelu=True), x, weight, bias)
        (alone,) = gradients(lambda weight: linear(x, weight), weight)
    torch.testing.assert_close(ours, gradients(lambda *args: F.gelu(F.linear(*args)), x, weight, bias))
    torch.testing.assert_close((alone,), gradients(lambda weight: F.linear(x, weight), weight))


@pytest.mark.skipif("cpu" not in BACKENDS, reason="the native library is not built")
def test_gradients_are_the_same_bits_with_any_number_of_threads():
    tensors = layer(300, 200, 150)
    threads = torch.get_num_threads()
    with blip_fast.backend("cpu"):
        expected = gradients(linear, *tensors)
        try:
            torch.set_num_threads(1)
            assert all(map(torch.equal, gradients(linear, *tensors), expected))
        finally:
            torch.set_num_threads(threads)


@pytest.mark.parametrize("ours", [False, True])
def test_a_backend_for_all_that_linear_has_not_leaves_training_to_torch(monkeypatch, ours):
    monkeypatch.setattr(native, "outruns_mkl", lambda: ours)
    x, weight, bias = (tensor.requires_grad_() for tensor in layer(5, 4, 3))
    with blip_fast.backend("triton"):
        assert torch.equal(linear(x, weight, bias), F.linear(x, weight, bias))
        with torch.no_grad(), pytest.raises(RuntimeError, match="linear has no triton implementation"):
            linear(x, weight, bias)


def test_gradcheck():
    tensors = [tensor.double().requires_grad_() for tensor in layer(5, 4, 3)]
    with blip_fast.backend("reference"):
        assert torch.autograd.gradcheck(linear, tensors)
        assert torch.autograd.gradgradcheck(linear, tensors)


@pytest.mark.parametrize("ours", [False, True])
def test_training_takes_the_faster_product(monkeypatch, ours):
    monkeypatch.setattr(native, "outruns_mkl", lambda: ours)
    x, weight, bias = (tensor.requires_grad_() for tensor in layer(5, 4, 3))
    assert ("blip_fast_linear" in linear(x, weight, bias).grad_fn.next_functions[0][0].name()) == ours
    assert "blip_fast" not in linear(x.double(), weight.double()).grad_fn.name()
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(x, weight, bias).dtype == torch.bfloat16


@pytest.mark.skipif("cpu" not in BACKENDS, reason="the native library is not built")
@pytest.mark.parametrize("theirs", [False, True])
@pytest.mark.parametrize("rows", [MANY_ROWS - 1, MANY_ROWS])
def test_many_rows_take_torchs_product_where_it_is_faster(monkeypatch, rows, theirs):
    monkeypatch.setattr(native, "mkl_at_full_rate", lambda: theirs)
    x, weight, bias = layer(rows, 40, 30)
    module = nn.Linear(40, 30, device="meta")
    module.weight, module.bias = nn.Parameter(weight), nn.Parameter(bias)
    with blip_fast.backend("cpu"):
        ours = linear(x, weight, bias)
    expected = F.linear(x, weight, bias) if theirs and rows == MANY_ROWS else ours
    assert torch.equal(linear(x[None], weight, bias)[0], expected)
    with torch.no_grad():
        assert torch.equal(linear_layers(x)(module, x, False), expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_compiles_without_a_graph_break(backend):
    tensors = layer(6, 5, 4)
    with blip_fast.backend(backend):
        compiled = torch.compile(lambda *args: linear(*args, gelu=True), fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(gradients(compiled, *tensors), gradients(linear_gelu, *tensors))


def linear_gelu(*tensors: torch.Tensor) -> torch.Tensor:
    return linear(*tensors, gelu=True)


def test_leading_dimensions_and_strides():
    x, weight, bias = layer(24, 16, 10)
    shaped = x.view(2, 3, 4, 16)
    torch.testing.assert_close(linear(shaped, weight, bias), F.linear(shaped, weight, bias))
    turned = x.t().contiguous().t()
    torch.testing.assert_close(linear(turned, weight, bias), F.linear(x, weight, bias))


def test_opcheck():
    x, weight, bias = layer(7, 16, 10)
    torch.library.opcheck(_operation.call, (x, weight, bias, True))
    torch.library.opcheck(_operation.call, (x, weight, None, False))
    leaves = [tensor.requires_grad_() for tensor in (x, weight, bias)]
    torch.library.opcheck(_operation.call, (*leaves, False))
    grad_output = torch.ones(7, 10)
    torch.library.opcheck(_backward.call, (grad_output, x.detach(), weight.detach(), True, False, True))


def test_layers():
    x, weight, bias = layer(7, 16, 10)
    module = nn.Linear(16, 10)
    module.weight.data, module.bias.data = weight, bias
    assert linear_layer(module, x, gelu=True).requires_grad
    with torch.no_grad():
        expected = linear(x, weight, bias, gelu=True)
        assert torch.equal(linear_layer(module, x, gelu=True), expected)
        assert torch.equal(linear_layers(x)(module, x, True), expected)
        other = nn.Sequential(module)  # computes as it does
        torch.testing.assert_close(linear_layers(x)(other, x, True), expected)
        with torch.autocast("cpu", torch.bfloat16):
            assert linear_layers(x)(module, x, False).dtype == torch.bfloat16


def test_refused():
    x, weight, bias = layer(7, 16, 10)
    with pytest.raises(ValueError, match=r"input has shape \(7, 16\) and weight \(16, 10\)"):
        linear(x, weight.t())
    with pytest.raises(ValueError, match=r"bias has shape \(9,\); expected \(10,\)"):
        linear(x, weight, bias[:9])
    with pytest.raises(ValueError, match=r"weight is torch\.float64; expected torch\.float32"):
        linear(x, weight.double())

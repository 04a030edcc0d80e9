"""linear: float64, gradients, rows that do not depend on each other, GELU, ragged sizes, opcheck, errors."""

from __future__ import annotations

import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

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
@pytest.mark.parametrize(
    ("rows", "parts"),
    [
        (MANY_ROWS - 1, [(0, 1), (3, 15), (20, 60)]),
        (700, [(0, MANY_ROWS), (100, 250), (700 - MANY_ROWS, 700)]),
        (2600, [(0, 700), (1900, 2600)]),
    ],
)
def test_a_row_depends_on_itself_alone(gelu, rows, parts):
    x, weight, bias = layer(rows, 96, 75)
    with blip_fast.backend("cpu"):
        whole = linear(x, weight, bias, gelu)
        for begin, end in parts:
            assert torch.equal(linear(x[begin:end], weight, bias, gelu), whole[begin:end])
        threads = torch.get_num_threads()
        try:
            torch.set_num_threads(1)
            assert torch.equal(linear(x, weight, bias, gelu), whole)
        finally:
            torch.set_num_threads(threads)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("depth", [1100, 3072, 5000])
def test_long_sums(backend, depth):
    across, along = layer(70, depth, 40), layer(depth, 40, 70)  # in the product, and in the gradient of the weight
    with blip_fast.backend(backend):
        ours = (linear(*across), *gradients(linear, *along))
    eager = (F.linear(*across), *gradients(F.linear, *along))
    exact = (F.linear(*doubles(across)), *gradients(F.linear, *doubles(along)))
    for found, peer, truth in zip(ours, eager, exact, strict=True):
        assert (found - truth).norm() <= 1.5 * (peer - truth).norm() + 1e-7 * truth.norm()


def doubles(tensors: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
    return [tensor.double() for tensor in tensors]


SPECIAL = {
    "NaN": float("nan"),
    "infinite": float("inf"),
    "minus infinite": float("-inf"),
    "rounded to infinity in bfloat16": 3.4e38,
    "whose products overflow": 1e30,
    "subnormal": 1e-40,
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("value", SPECIAL.values(), ids=SPECIAL)
@pytest.mark.parametrize("where", [0, 1])
def test_numbers_that_are_not_finite_or_hardly_so(backend, value, where):
    tensors = layer(80, 40, 30)
    tensors[where][3, 5] = value
    with blip_fast.backend(backend):
        ours = (linear(*tensors), *gradients(linear, *tensors))
    eager = (F.linear(*tensors), *gradients(F.linear, *tensors))
    for found, expected in zip(ours, eager, strict=True):
        torch.testing.assert_close(found, expected, equal_nan=True)


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
    exact = gradients(F.linear, *doubles(tensors))
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


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_forced_backend_trains_and_has_second_derivatives(backend):
    x, weight, bias = (tensor.requires_grad_() for tensor in layer(5, 4, 3))

    def second(run):
        (gradient,) = torch.autograd.grad(run(x, weight, bias).square().sum(), x, create_graph=True)
        return torch.autograd.grad(gradient.square().sum(), (x, weight))

    with blip_fast.backend(backend):
        assert is_ours(linear(x, weight, bias))
        got = second(linear)
    for mine, theirs in zip(got, second(F.linear), strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize(("learns", "products"), [("x", 2), ("weight", 2), ("both", 3)])
def test_flops(learns, products):
    x, weight, bias = layer(5, 4, 3)
    x.requires_grad_(learns != "weight")
    weight.requires_grad_(learns != "x")
    with blip_fast.backend("reference"), FlopCounterMode(display=False) as counter:
        linear(x, weight, bias).sum().backward()
    assert counter.get_total_flops() == products * 2 * 5 * 4 * 3


@pytest.mark.parametrize("ours", [False, True])
def test_training_takes_the_faster_product(monkeypatch, ours):
    monkeypatch.setattr(native, "outruns_mkl", lambda: ours)
    x, weight, bias = (tensor.requires_grad_() for tensor in layer(5, 4, 3))
    assert is_ours(linear(x, weight, bias)) == ours
    assert "blip_fast" not in linear(x.double(), weight.double()).grad_fn.name()
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(x, weight, bias).dtype == torch.bfloat16


def is_ours(output: torch.Tensor) -> bool:
    return "blip_fast_linear" in output.grad_fn.next_functions[0][0].name()


@pytest.mark.skipif("cpu" not in BACKENDS, reason="the native library is not built")
@pytest.mark.parametrize("theirs", [False, True])
@pytest.mark.parametrize("rows", [MANY_ROWS - 1, MANY_ROWS])
def test_many_rows_take_torchs_product_where_it_is_faster(monkeypatch, rows, theirs):
    monkeypatch.setattr(native, "mkl_at_full_rate", lambda: theirs)
    x, weight, bias = layer(rows, 40, 30)
    with blip_fast.backend("cpu"):
        ours = linear(x, weight, bias)
    expected = F.linear(x, weight, bias) if theirs and rows == MANY_ROWS else ours
    assert torch.equal(linear(x[None], weight, bias)[0], expected)
    with torch.no_grad():
        assert torch.equal(linear_layers(x)(module_of(weight, bias), x, False), expected)


def module_of(weight: torch.Tensor, bias: torch.Tensor) -> nn.Linear:
    module = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    module.weight, module.bias = nn.Parameter(weight), nn.Parameter(bias)
    return module


@pytest.mark.skipif("cpu" not in BACKENDS, reason="the native library is not built")
@pytest.mark.parametrize("rows", [MANY_ROWS, 2 * MANY_ROWS])
def test_large_products_are_ours_where_they_are_made_by_thirds(monkeypatch, rows):
    monkeypatch.setattr(native, "outruns_mkl", lambda: False)
    monkeypatch.setattr(native, "mkl_at_full_rate", lambda: True)
    monkeypatch.setattr(native, "multiplies_by_thirds", lambda: True)
    monkeypatch.setattr(sys.modules["blip_fast.ops.linear"], "MANY_PRODUCTS", 2 * MANY_ROWS * 40 * 30)
    x, weight, bias = layer(rows, 40, 30)
    assert is_ours(linear(*(tensor.requires_grad_() for tensor in (x, weight, bias)))) == (rows > MANY_ROWS)
    with torch.no_grad():
        with blip_fast.backend("cpu"):
            ours = linear(x, weight, bias)
        expected = ours if rows > MANY_ROWS else F.linear(x, weight, bias)
        assert torch.equal(linear(x, weight, bias), expected)
        assert torch.equal(linear_layers(x)(module_of(weight, bias), x, False), expected)


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
    torch.testing.assert_close(linear(x[0], weight, bias), F.linear(x[0], weight, bias))
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
    with pytest.raises(ValueError, match=r"input has shape \(7, 16\) and weight \(16,\)"):
        linear(x, weight[0])
    with pytest.raises(ValueError, match=r"input has shape \(\) and weight \(10, 16\)"):
        linear(x[0, 0], weight)
    with pytest.raises(ValueError, match=r"input is torch\.int64; expected floating point"):
        linear(torch.ones(2, 3).long(), torch.ones(4, 3).long())
    with pytest.raises(ValueError, match=r"bias has shape \(9,\); expected \(10,\)"):
        linear(x, weight, bias[:9])
    with pytest.raises(ValueError, match=r"weight is torch\.float64; expected torch\.float32"):
        linear(x, weight.double())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rows", [1, 19, 70])
def test_no_depth(backend, rows):
    x, weight, bias = torch.ones(rows, 0), torch.ones(5, 0), torch.arange(5.0)
    with blip_fast.backend(backend):
        for out in (linear(x, weight, bias), linear_layers(x)(with_parameters(weight, bias), x, False)):
            assert torch.equal(out, F.linear(x, weight, bias))


@pytest.mark.parametrize("backend", BACKENDS)
def test_weight_and_rows_of_any_layout(backend):
    x, weight, bias = layer(7, 16, 10)
    expected = F.linear(x, weight, bias)
    x, weight = x.t().contiguous().t(), weight.t().contiguous().t()
    with blip_fast.backend(backend):
        torch.testing.assert_close(linear(x, weight, bias), expected)
        torch.testing.assert_close(linear_layers(x)(with_parameters(weight, bias), x, False), expected)


def test_gelu_is_split_off_where_there_is_a_gradient():
    x, weight, bias = layer(7, 16, 10)
    with pytest.raises(RuntimeError, match="gelu=True has no gradient inside the operation"):
        _operation.call(x.requires_grad_(), weight, bias, True)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bias", [torch.arange(20.0)[::2], torch.ones(1).expand(10)], ids=["strided", "expanded"])
def test_bias_of_any_layout(backend, bias):
    x, weight, _ = layer(7, 16, 10)
    expected = F.linear(x, weight, bias)
    with blip_fast.backend(backend):
        torch.testing.assert_close(linear(x, weight, bias), expected)
        torch.testing.assert_close(linear_layers(x)(with_parameters(weight, bias), x, False), expected)


def with_parameters(weight: torch.Tensor, bias: torch.Tensor) -> nn.Linear:
    module = nn.Linear(1, 1).requires_grad_(False)
    module.weight.data, module.bias.data = weight, bias
    return module


def test_layers_of_another_dtype_are_refused():
    module = nn.Linear(16, 8).bfloat16()
    with (
        torch.no_grad(),
        pytest.raises(ValueError, match=r"weight is torch\.bfloat16; expected torch\.float32 as input"),
    ):
        linear_layers(torch.ones(1))(module, torch.ones(3, 16), False)


def test_hooks_are_called():
    x, (weight, bias) = torch.ones(3, 16), layer(1, 16, 10)[1:]
    module, seen = with_parameters(weight, bias), []
    module.register_forward_hook(lambda *call: seen.append(call[0]))
    for run in (linear_layer, linear_layers(x)):
        assert torch.equal(run(module, x, True), F.gelu(F.linear(x, weight, bias)))
    assert seen == [module, module]


@pytest.mark.parametrize(
    "register",
    [
        "register_forward_pre_hook",
        "register_forward_hook",
        "register_full_backward_pre_hook",
        "register_full_backward_hook",
    ],
)
def test_hooks_of_every_kind_are_called(register):
    module, seen = nn.Linear(16, 10), []
    getattr(module, register)(lambda *call: seen.append(register))
    linear_layer(module, torch.ones(3, 16, requires_grad=True)).sum().backward()
    assert seen == [register]


def test_a_subclass_is_called():
    class Doubled(nn.Linear):
        def forward(self, rows):
            return 2 * super().forward(rows)

    module, x = Doubled(16, 10).requires_grad_(False), torch.ones(3, 16)
    for run in (linear_layer, linear_layers(x)):
        assert torch.equal(run(module, x, False), 2 * F.linear(x, module.weight, module.bias))


def test_a_forward_method_of_its_own_is_called():
    x, (weight, bias) = torch.ones(3, 16), layer(1, 16, 10)[1:]
    module = with_parameters(weight, bias)
    module.forward = lambda rows: rows[:, :10] * 7.0
    assert torch.equal(linear_layer(module, x), torch.full((3, 10), 7.0))

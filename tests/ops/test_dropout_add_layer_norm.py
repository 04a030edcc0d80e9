"""dropout_add_layer_norm: every backend against float64, post-norm and pre-norm, dropout, mixed dtypes, and what it refuses."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import blip_fast
from blip_fast.ops import dropout_add_layer_norm
from blip_fast.reference import dropout_add_layer_norm as reference
from blip_fast.reference.dropout_add_layer_norm import keep_mask
from tests.ops.common import backends_of, device_of, dtypes_of, poisoned_memory

BACKENDS = pytest.mark.parametrize("backend", backends_of("dropout_add_layer_norm"))
SHAPES = [(7, 33), (3, 5, 768), (1, 5), (130, 20)]
FORWARD, BACKWARD = torch.ops.blip_fast.dropout_add_layer_norm, torch.ops.blip_fast.dropout_add_layer_norm_backward
SEED, OFFSET = 2**62 + 12345, 77


def make(shape, dtype=torch.float32, stream=torch.float32, device="cpu"):
    generator = torch.Generator().manual_seed(sum(shape))
    x, residual = (torch.randn(shape, generator=generator) for _ in range(2))
    weight, bias = (torch.randn(shape[-1], generator=generator) for _ in range(2))
    wide = torch.promote_types(dtype, torch.float32)
    tensors = (x.to(dtype), residual.to(stream), weight.to(wide), bias.to(wide))
    return [tensor.to(device).requires_grad_() for tensor in tensors]


def run(function, tensors, *args):
    """Results and gradients."""
    results = function(*tensors, *args)
    results = results if isinstance(results, tuple) else (results,)
    grads = [torch.linspace(-1, 1, r.numel(), device=r.device).reshape(r.shape).to(r.dtype) for r in results]
    return [*(r.detach() for r in results), *torch.autograd.grad(results, tensors, grads)]


def ours(eps, dropout_p, prenorm):
    return lambda *tensors: dropout_add_layer_norm(*tensors, eps, dropout_p, SEED, OFFSET, prenorm)


def eager(eps, dropout_p, prenorm):
    rng = (torch.tensor([SEED]), torch.tensor([OFFSET])) if dropout_p else (None, None)
    return lambda *tensors: reference(*tensors, eps, dropout_p, *rng, prenorm)


@BACKENDS
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("dropout_p", "prenorm", "eps"), [(0.0, True, 1e-6), (0.1, False, 1e-12), (0.3, True, 1e-5)])
def test_no_further_from_float64_than_eager(backend, shape, dropout_p, prenorm, eps):
    streams = [torch.float64] if backend == "reference" else [torch.float32, torch.float16]
    for dtype in dtypes_of(backend):
        for stream in [torch.float64] if dtype == torch.float64 else {dtype, torch.float32, *streams} - {torch.float64}:
            tensors = make(shape, dtype, stream, device_of(backend))
            with blip_fast.backend(backend):
                got = run(ours(eps, dropout_p, prenorm), tensors)
            on_cpu = [t.detach().cpu().requires_grad_() for t in tensors]
            plain = run(eager(eps, dropout_p, prenorm), on_cpu)
            exact = run(eager(eps, dropout_p, prenorm), [t.detach().double().requires_grad_() for t in on_cpu])
            for mine, theirs, want in zip(got, plain, exact, strict=True):
                assert mine.dtype == theirs.dtype
                slack = 8 * max(torch.finfo(dtype).eps, torch.finfo(stream).eps) if want.numel() < 300 else 1e-15
                error, allowed = ((t.cpu().double() - want).norm().item() for t in (mine, theirs))
                assert error <= 1.5 * allowed + slack * max(1.0, want.norm().item())


@BACKENDS
def test_all_backends_drop_the_same(backend):
    device = device_of(backend)
    x, zero = torch.ones(50, 100, device=device), torch.zeros(50, 100, device=device)
    weight, bias = torch.ones(100, device=device), torch.zeros(100, device=device)
    for offset in (0, 5):
        with blip_fast.backend(backend):
            _, total = dropout_add_layer_norm(x, zero, weight, bias, 1e-6, 0.25, SEED, offset, prenorm=True)
        keep = keep_mask(torch.tensor([SEED]), torch.tensor([offset]), 0.25, 50, 100)
        assert torch.equal(total.cpu(), keep.float() / 0.75)
        assert abs(keep.float().mean().item() - 0.75) < 0.02
        with blip_fast.backend(backend):  # rows shorter than the four words of a counter
            narrow = (t[..., :3].contiguous() for t in (x, zero, weight, bias))
            _, total = dropout_add_layer_norm(*narrow, 1e-6, 0.25, SEED, offset, prenorm=True)
        assert torch.equal(total.cpu(), keep[:, :3].float() / 0.75)


@BACKENDS
def test_no_rows_and_views(backend):
    device = device_of(backend)
    with blip_fast.backend(backend), poisoned_memory():
        for got in run(ours(1e-6, 0.1, True), make((0, 12), device=device)):
            assert not got.any()
        tensors = make((6, 12), device=device)
        turned = [t.detach().T.contiguous().T.requires_grad_() if t.dim() > 1 else t for t in tensors]
        for mine, want in zip(run(ours(1e-6, 0.1, True), turned), run(ours(1e-6, 0.1, True), tensors), strict=True):
            assert torch.equal(mine, want)


@BACKENDS
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_inf_stay_in_their_row(backend, value):
    tensors = make((9, 20), device=device_of(backend))
    with torch.no_grad():
        tensors[0][4, 3] = value
    with blip_fast.backend(backend):
        out, _, grad_x, grad_residual, _, _ = run(ours(1e-6, 0.0, True), tensors)
    for rows in (out, grad_x, grad_residual):
        assert rows.isnan().any(1).nonzero().tolist() == [[4]]


@BACKENDS
def test_only_one_result_is_used(backend):
    tensors = make((9, 20), device=device_of(backend))
    for index in (0, 1):
        with blip_fast.backend(backend):
            got = torch.autograd.grad(ours(1e-6, 0.2, True)(*tensors)[index].square().sum(), tensors)
        on_cpu = [t.detach().cpu().requires_grad_() for t in tensors]
        result = eager(1e-6, 0.2, True)(*on_cpu)[index]
        want = torch.autograd.grad(result.square().sum(), on_cpu, allow_unused=True)
        for mine, theirs in zip(got, want, strict=True):
            torch.testing.assert_close(mine.cpu(), torch.zeros_like(mine.cpu()) if theirs is None else theirs)


@BACKENDS
def test_the_norm_is_that_of_the_sum_as_it_is_stored(backend):
    for dtype in dtypes_of(backend):
        x, residual, weight, bias = (t.detach() for t in make((9, 20), dtype, dtype, device_of(backend)))
        with blip_fast.backend(backend):
            out, total = dropout_add_layer_norm(x, residual + 300, weight, bias, 1e-6, prenorm=True)
        exact = F.layer_norm(total.double(), (20,), weight.double(), bias.double(), 1e-6)
        torch.testing.assert_close(out.double(), exact, rtol=0, atol=max(4 * torch.finfo(dtype).eps, 1e-4) * 4)


@BACKENDS
def test_only_the_sum_is_used_beside_layers_of_another_dtype(backend):
    for dtype in dtypes_of(backend)[1:]:
        tensors = make((9, 20), dtype, device=device_of(backend))
        with blip_fast.backend(backend):
            total = ours(1e-6, 0.0, True)(*tensors)[1]
            got = torch.autograd.grad(total, tensors, torch.ones_like(total))
        for gradient, expected in zip(got, (1.0, 1.0, 0.0, 0.0), strict=True):
            assert torch.equal(gradient, torch.full_like(gradient, expected))


@BACKENDS
def test_repeats_bit_for_bit(backend):
    tensors = make((130, 20), device=device_of(backend))
    with blip_fast.backend(backend):
        first, second = (run(ours(1e-6, 0.1, True), tensors) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_more_threads_change_nothing():
    tensors, threads, results = make((300, 20)), torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(run(ours(1e-6, 0.1, True), tensors))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("prenorm", [False, True])
@pytest.mark.parametrize("dropout_p", [0.0, 0.3])
def test_gradcheck(dropout_p, prenorm):
    assert torch.autograd.gradcheck(ours(1e-6, dropout_p, prenorm), make((4, 6), torch.float64, torch.float64))


@BACKENDS
@pytest.mark.parametrize("dropout_p", [0.0, 0.3])
def test_opcheck(backend, dropout_p):
    device = device_of(backend)
    tensors = make((6, 20), device=device)
    rng = [torch.tensor([n], device=device) for n in (SEED, OFFSET)] if dropout_p else [None, None]
    with blip_fast.backend(backend):
        for prenorm in (True, False):
            torch.library.opcheck(FORWARD.default, (*tensors, 1e-6, dropout_p, *rng, prenorm, True))
            plain = [t.detach() for t in tensors]
            out, total, mean, inverse = FORWARD(*plain, 1e-6, dropout_p, *rng, prenorm, True)
            grad_sum = torch.ones_like(total) if prenorm else None
            args = (
                torch.ones_like(out),
                grad_sum,
                total,
                mean,
                inverse,
                plain[2],
                torch.float32,
                dropout_p,
                *rng,
                prenorm,
            )
            torch.library.opcheck(BACKWARD.default, args)


@BACKENDS
def test_compiles_without_a_graph_break(backend):
    tensors = make((12, 20), device=device_of(backend))

    def step(*args):
        out, total = dropout_add_layer_norm(*args, 1e-6, 0.3, SEED, OFFSET, True)
        return out * 2, total + 1

    with blip_fast.backend(backend):
        want = run(step, tensors)
        got = run(torch.compile(step, fullgraph=True, backend="aot_eager"), tensors)
    for mine, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_seed_is_drawn_from_the_generator():
    tensors = make((40, 20))
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append(dropout_add_layer_norm(*tensors, 1e-6, 0.5))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_without_gradients_the_sum_is_not_kept():
    tensors = [t.detach() for t in make((4, 6))]
    _, total, _, _ = FORWARD(*tensors, 1e-6, 0.0, None, None, False, False)
    assert total.numel() == 0
    with torch.autocast("cpu", torch.bfloat16):  # changes nothing
        assert torch.equal(dropout_add_layer_norm(*tensors, 1e-6), ours(1e-6, 0.0, False)(*tensors))


@BACKENDS
def test_a_probability_that_drops_nothing(backend):
    tensors = [tensor.to(device_of(backend)) for tensor in make((4, 6))]
    with blip_fast.backend(backend):
        for a, b in zip(run(ours(1e-6, 1e-8, False), tensors), run(ours(1e-6, 0.0, False), tensors), strict=True):
            torch.testing.assert_close(a, b)


def test_no_second_derivative():
    tensors = make((4, 6))
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(dropout_add_layer_norm(*tensors, 1e-6, 0.1).sum(), tensors, create_graph=True)


X, WEIGHT = torch.ones(3, 4), torch.ones(4)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((X.long(), X, WEIGHT, WEIGHT, 1e-6), r"x is torch.int64 of shape \(3, 4\); expected floating point"),
        ((X[:, :0], X[:, :0], WEIGHT[:0], WEIGHT[:0], 1e-6), r"expected floating point \(..., C\), C > 0"),
        ((X[0, 0], X[0, 0], WEIGHT, WEIGHT, 1e-6), r"x is torch.float32 of shape \(\); expected floating point"),
        ((X, X.long(), WEIGHT, WEIGHT, 1e-6), r"residual is torch.int64 of shape \(3, 4\)"),
        ((X, X, WEIGHT.long(), WEIGHT.long(), 1e-6), r"weight is torch.int64 of shape \(4,\)"),
        ((X, X[:2], WEIGHT, WEIGHT, 1e-6), r"residual is torch.float32 of shape \(2, 4\); expected \(3, 4\) as x"),
        ((X, X, WEIGHT[:3], WEIGHT, 1e-6), r"weight is torch.float32 of shape \(3,\); expected \(4,\)"),
        ((X, X, WEIGHT, WEIGHT.half(), 1e-6), r"bias is torch.float16 of shape \(4,\); expected \(4,\), of one dtype"),
        ((X, X.to("meta"), WEIGHT, WEIGHT, 1e-6), "residual is on meta; expected cpu"),
        (
            (X, X, WEIGHT, WEIGHT, 1e-6, 0.1, torch.tensor(5.0)),
            "seed is torch.float32 of 1 elements on cpu; expected an int",
        ),
        ((X, X, WEIGHT, WEIGHT, 1e-6, 1.0), r"dropout_p is 1.0; expected a number in \[0, 1\)"),
    ],
)
def test_refuses(args, message):
    with pytest.raises(ValueError, match=message):
        dropout_add_layer_norm(*args)


class Called(TorchDispatchMode):
    """Names of the operations that run."""

    def __enter__(self):
        self.names = []
        return super().__enter__()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(function.name())
        return function(*args, **kwargs or {})


@pytest.mark.parametrize("prenorm", [False, True])
def test_torch_runs_where_it_is_faster(prenorm):
    tensors = make((4, 6))
    with Called() as plain:
        by_torch = dropout_add_layer_norm(*tensors, 1e-6, prenorm=prenorm)
    assert plain.names == ["aten::add.Tensor", "aten::native_layer_norm"]
    with Called() as forced, blip_fast.backend("cpu"):
        fused = dropout_add_layer_norm(*tensors, 1e-6, prenorm=prenorm)
    assert "blip_fast::dropout_add_layer_norm" in forced.names
    torch.testing.assert_close(by_torch, fused)
    with Called() as dropping:
        dropout_add_layer_norm(*tensors, 1e-6, 0.1, SEED, prenorm=prenorm)
    assert "blip_fast::dropout_add_layer_norm" in dropping.names

"""adamw_momentum_step_: every backend against torch.optim.AdamW and float64, skipped steps, scaling, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import blip_fast
from blip_fast.ops import adamw_momentum_step_, momentum_update_
from tests.ops.common import backends_of, device_of, dtypes_of

SIZES = [(7, 3), (1,), (0,), (64, 65), (5,), (2048,)]
WITH_COPY = [True, False, True, True, False, True]
NUMBERS = {"lr": 1e-2, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.05, "momentum": 0.9}
BACKENDS = pytest.mark.parametrize("backend", backends_of("adamw_momentum_step_"))
EPS = torch.finfo(torch.float32).eps


class Tensors:
    """Arguments of a step, made from a seed."""

    def __init__(self, device="cpu", dtype=torch.float32, grad_dtype=None, seed=0):
        generator = torch.Generator().manual_seed(seed)

        def draw(scale):
            return [(torch.randn(size, generator=generator) * scale).to(device, dtype) for size in SIZES]

        self.params, self.exp_avgs, copies = draw(1.0), draw(0.1), draw(1.0)
        self.exp_avg_sqs = [tensor.square() for tensor in draw(0.1)]
        self.grads = [grad.to(grad_dtype or dtype) for grad in draw(0.3)]
        self.params_m = [copy if kept else None for copy, kept in zip(copies, WITH_COPY, strict=True)]
        self.steps = [torch.tensor(float(10 * i), device=device) for i in range(len(SIZES))]

    @property
    def lists(self):
        return self.params, self.grads, self.exp_avgs, self.exp_avg_sqs, self.steps, self.params_m

    @property
    def written(self):
        copies = [copy for copy in self.params_m if copy is not None]
        return [*self.params, *self.exp_avgs, *self.exp_avg_sqs, *self.steps, *copies]

    def step(self, backend, **changes):
        with blip_fast.backend(backend):
            adamw_momentum_step_(*self.lists, **(NUMBERS | changes))
        return self


def in_float64(grad_dtype=None, **changes):
    """The step of the same numbers in float64, with `torch.optim.AdamW`."""
    single, double = Tensors(grad_dtype=grad_dtype), Tensors(dtype=torch.float64)
    for wide, narrow in zip(double.params + double.exp_avgs, single.params + single.exp_avgs, strict=True):
        wide.copy_(narrow)
    for wide, narrow in zip(double.exp_avg_sqs, single.exp_avg_sqs, strict=True):
        wide.copy_(narrow)
    numbers = NUMBERS | changes
    factor = numbers.pop("grad_factor", 1.0)
    momentum = numbers.pop("momentum")
    params = [torch.nn.Parameter(param) for param in double.params]
    optimizer = torch.optim.AdamW(params, **numbers)
    for i, param in enumerate(params):
        param.grad = single.grads[i].double() * factor
        optimizer.state[param] = {
            "step": double.steps[i],
            "exp_avg": double.exp_avgs[i],
            "exp_avg_sq": double.exp_avg_sqs[i],
        }
    optimizer.step()
    for copy, narrow, param in zip(double.params_m, single.params_m, params, strict=True):
        if copy is not None:
            copy.copy_(narrow * momentum + param.detach() * (1 - momentum))
    return double


def assert_close(got, expected, bound=16 * EPS):
    for result, wanted in zip(got.written, expected.written, strict=True):
        error = (result.double().cpu() - wanted.double()).abs()
        assert (error <= bound * (wanted.abs().double() + 0.1)).all(), error.max()


@BACKENDS
def test_equals_torch_adamw_in_float64(backend):
    for grad_dtype in dtypes_of(backend):
        dtype = torch.float64 if grad_dtype == torch.float64 else torch.float32
        got = Tensors(device_of(backend), dtype, grad_dtype).step(backend)
        expected = in_float64(grad_dtype if dtype == torch.float32 else None)
        assert_close(got, expected)


@BACKENDS
@pytest.mark.parametrize(
    "changes", [{"betas": (0.0, 0.0)}, {"betas": (0.5, 0.99999)}, {"eps": 1e-2, "weight_decay": 0.0}, {"momentum": 1.0}]
)
def test_other_numbers(backend, changes):
    assert_close(Tensors(device_of(backend)).step(backend, **changes), in_float64(**changes))


@BACKENDS
def test_error_is_that_of_torch_in_float32(backend):
    exact, device = in_float64(), device_of(backend)
    ours, torchs = Tensors(device).step(backend), Tensors(device)
    numbers = {"lr": 1e-2, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.05}
    torch._foreach_add_(torchs.steps, 1)
    torch._fused_adamw_(
        torchs.params, torchs.grads, torchs.exp_avgs, torchs.exp_avg_sqs, [], torchs.steps,
        amsgrad=False, maximize=False, **numbers,
    )  # fmt: skip

    def error(tensors, name):
        pairs = zip(getattr(tensors, name), getattr(exact, name), strict=True)
        return torch.cat([(got.cpu().double() - want).flatten() for got, want in pairs]).square().mean().sqrt()

    for name in ("params", "exp_avgs", "exp_avg_sqs"):
        assert error(ours, name) <= 1.5 * error(torchs, name)


@BACKENDS
@pytest.mark.parametrize("step", [0, 1, 9, 500, 100_000])
def test_bias_correction_at_any_step(backend, step):
    device = device_of(backend)
    param, grad, average, square = (torch.tensor([x], device=device) for x in (0.0, 0.5, 0.02, 1e-3))
    steps = [torch.tensor(float(step), device=device)]
    with blip_fast.backend(backend):
        adamw_momentum_step_([param], [grad], [average], [square], steps, [None], lr=1.0, eps=0.0)
    corrected = (0.02 * 0.9 + 0.05) / (1 - 0.9 ** (step + 1))
    root = ((1e-3 * 0.999 + 0.25e-3) / (1 - 0.999 ** (step + 1))) ** 0.5
    assert steps[0].item() == step + 1
    assert param.item() == pytest.approx(-corrected / root, rel=1e-6)


@BACKENDS
def test_scaled_gradients(backend):
    device = device_of(backend)
    factor = torch.tensor(0.125, device=device)
    got = Tensors(device).step(backend, grad_factor=factor)
    assert_close(got, in_float64(grad_factor=0.125))
    assert all(torch.equal(a.cpu(), b) for a, b in zip(got.grads, Tensors().grads, strict=True))


@BACKENDS
def test_learning_rate_on_the_device(backend):
    device = device_of(backend)
    plain = Tensors(device).step(backend)
    for lr in (torch.tensor(1e-2, device=device), torch.tensor([1e-2], device=device, dtype=torch.float64)):
        for got, expected in zip(Tensors(device).step(backend, lr=lr).written, plain.written, strict=True):
            assert torch.equal(got, expected)


@BACKENDS
def test_found_inf_skips_the_step_but_not_the_copies(backend):
    device = device_of(backend)
    got, before = Tensors(device), Tensors(device)
    got.grads[0][0, 0] = float("inf")
    got.step(backend, found_inf=torch.ones(1, device=device))
    for name in ("params", "exp_avgs", "exp_avg_sqs", "steps"):
        assert all(torch.equal(a, b) for a, b in zip(getattr(got, name), getattr(before, name), strict=True))
    kept = [i for i, copy in enumerate(got.params_m) if copy is not None]
    with blip_fast.backend("reference"):
        momentum_update_([before.params_m[i] for i in kept], [before.params[i] for i in kept], 0.9)
    for i in kept:
        torch.testing.assert_close(got.params_m[i], before.params_m[i], rtol=2 * EPS, atol=EPS)

    went = Tensors(device).step(backend, found_inf=torch.zeros(1, device=device))
    for a, b in zip(went.written, Tensors(device).step(backend).written, strict=True):
        assert torch.equal(a, b)


@BACKENDS
def test_unaligned_views(backend):
    device = device_of(backend)
    whole = [torch.randn(5, 301, generator=torch.Generator().manual_seed(3)).abs().to(device) for _ in range(2)]
    views, clones = ([row[1:] for row in whole[0]], [row[1:].clone() for row in whole[1]])
    steps = [torch.zeros((), device=device) for _ in range(2)]
    with blip_fast.backend(backend):
        for step, rows in zip(steps, (views, clones), strict=True):
            adamw_momentum_step_(*([row] for row in rows[:4]), [step], [rows[4]], **NUMBERS)
    for view, clone in zip(views, clones, strict=True):
        torch.testing.assert_close(
            view, clone, rtol=4 * EPS, atol=4 * EPS
        )  # the compiler may fuse one and not the other
    assert torch.equal(
        whole[0][:, 0].cpu(), torch.randn(5, 301, generator=torch.Generator().manual_seed(3)).abs()[:, 0]
    )


@BACKENDS
def test_nan_and_inf_propagate_as_in_torch(backend):
    device = device_of(backend)
    values = [float("nan"), float("inf"), -float("inf"), 0.0]
    grads = torch.tensor(values, device=device)
    ours, eager = torch.ones(4, device=device), torch.nn.Parameter(torch.ones(4, device=device))
    average, square, step = torch.zeros(4, device=device), torch.zeros(4, device=device), torch.zeros((), device=device)
    copy = torch.ones(4, device=device)
    with blip_fast.backend(backend):
        adamw_momentum_step_([ours], [grads], [average], [square], [step], [copy], **NUMBERS)
    eager.grad = grads
    torch.optim.AdamW([eager], lr=1e-2, weight_decay=0.05).step()
    assert torch.equal(ours.isnan(), eager.detach().isnan())
    assert torch.equal(copy.isnan(), ours.isnan())
    assert ours[3].item() == pytest.approx(eager[3].item(), rel=1e-6)


@BACKENDS
def test_a_copy_changes_nothing_of_its_parameter(backend):
    with_copies, without = Tensors(device_of(backend)), Tensors(device_of(backend))
    without.params_m = [None] * len(SIZES)
    with_copies.step(backend)
    without.step(backend)
    assert all(torch.equal(a, b) for a, b in zip(with_copies.params, without.params, strict=True))


@BACKENDS
def test_more_tensors_than_a_block_of_steps(backend):
    device, count = device_of(backend), 300
    params, grads, averages = (list(torch.full((count, 2), x, device=device)) for x in (1.0, 0.5, 0.0))
    squares, steps = list(torch.zeros(count, 2, device=device)), list(torch.zeros(count, device=device))
    with blip_fast.backend(backend):
        adamw_momentum_step_(params, grads, averages, squares, steps, [None] * count, lr=0.1, weight_decay=0.0)
    assert torch.equal(torch.stack(steps), torch.ones(count, device=device))
    torch.testing.assert_close(torch.stack(params), torch.full((count, 2), 0.9, device=device))


@BACKENDS
def test_repeats_bit_for_bit(backend):
    first, second = (Tensors(device_of(backend)).step(backend).written for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def flat_arguments(device):
    tensors = Tensors(device)
    order = sorted(range(len(SIZES)), key=lambda i: not WITH_COPY[i])
    lists = [[column[i] for i in order if column[i] is not None] for column in tensors.lists]
    scalar = torch.tensor(1e-2, device=device)
    return *lists, scalar, 0.9, 0.999, 1e-8, 0.05, 0.995


@BACKENDS
def test_opcheck(backend):
    device = device_of(backend)
    factor, found_inf = torch.ones((), device=device), torch.zeros((), device=device)
    with blip_fast.backend(backend):
        for scalars in ((None, None), (factor, found_inf)):
            torch.library.opcheck(torch.ops.blip_fast.adamw_momentum_step_.default, (*flat_arguments(device), *scalars))


def test_parameters_record_no_gradient():
    param, copy = torch.nn.Parameter(torch.ones(4)), torch.ones(4)
    state = [torch.zeros(4)], [torch.zeros(4)], [torch.zeros(())]
    adamw_momentum_step_([param], [torch.ones(4)], *state, [copy], lr=0.1)
    assert not copy.requires_grad
    assert param.requires_grad
    assert (param < 1).all()


def test_compiles_without_a_graph_break():
    def step(param, grad, average, square, count, copy):
        adamw_momentum_step_([param], [grad], [average], [square], [count], [copy], lr=0.1)
        return copy * 2

    def arguments():
        return [torch.full((8,), x) for x in (1.0, 0.5, 0.0, 0.0)] + [torch.zeros(()), torch.zeros(8)]

    eager, compiled = arguments(), arguments()
    expected = step(*eager)
    result = torch.compile(step, fullgraph=True, backend="aot_eager")(*compiled)
    assert torch.equal(result, expected)
    assert all(torch.equal(a, b) for a, b in zip(eager, compiled, strict=True))


def test_counts_no_matrix_product_and_takes_an_empty_list():
    with FlopCounterMode(display=False) as counter:
        Tensors().step("reference")
        adamw_momentum_step_([], [], [], [], [], [], lr=0.1)
    assert counter.get_total_flops() == 0


ONE = torch.ones(2, 3)
STEP = torch.zeros(())
GOOD = {"params": [ONE], "grads": [ONE], "exp_avgs": [ONE], "exp_avg_sqs": [ONE], "steps": [STEP], "params_m": [ONE]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"grads": []}, "grads has 0 tensors; expected 1 as params"),
        ({"params_m": [ONE, None]}, "params_m has 2 tensors; expected 1"),
        ({"exp_avgs": [ONE.T.contiguous()]}, r"exp_avgs\[0\] has shape \(3, 2\); expected \(2, 3\)"),
        ({"steps": [ONE]}, r"steps\[0\] has shape \(2, 3\); expected one element"),
        ({"params": [ONE.half()]}, r"params\[0\] is contiguous torch.float16; expected contiguous torch.float32"),
        ({"exp_avg_sqs": [ONE.double()]}, r"exp_avg_sqs\[0\] is torch.float64; expected torch.float32"),
        ({"grads": [ONE.long()]}, r"grads\[0\] is torch.int64"),
        ({"steps": [STEP.long()]}, r"steps\[0\] is torch.int64; expected torch.float32"),
        ({"params_m": [ONE.to("meta")]}, "the tensors are on cpu, meta; expected one device"),
        ({"params_m": [torch.ones(3, 2).T]}, r"params_m\[0\] is not contiguous"),
        ({"betas": (0.9,)}, r"betas is \(0.9,\); expected two numbers in \[0, 1\)"),
        ({"betas": (0.9, 1.0)}, r"betas is \(0.9, 1.0\); expected two numbers in \[0, 1\)"),
        ({"params": [torch.ones(3, 2).T]}, r"params\[0\] is strided torch.float32; expected contiguous"),
        ({"lr": -0.1}, "lr is -0.1; expected a number >= 0"),
        ({"eps": -1.0}, "eps is -1.0"),
        ({"weight_decay": float("nan")}, "weight_decay is nan"),
        ({"momentum": 1.1}, "momentum is 1.1"),
        ({"lr": torch.ones(2)}, "lr is torch.float32 of 2 elements on cpu; expected one"),
        ({"grad_factor": torch.ones(1, dtype=torch.int64)}, "grad_factor is torch.int64"),
        ({"found_inf": torch.ones(1, device="meta")}, "found_inf is torch.float32 of 1 elements on meta"),
    ],
)
def test_refuses(changes, message):
    with pytest.raises(ValueError, match=message):
        adamw_momentum_step_(**(GOOD | {"lr": 0.1} | changes))

"""linear_cross_entropy: every backend against float64, ignored rows, reductions, edges, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import blip_fast
from blip_fast.ops import linear_cross_entropy
from blip_fast.reference import linear_cross_entropy as eager
from tests.ops.common import backends_of, device_of, dtypes_of, poisoned_memory

BACKENDS = pytest.mark.parametrize("backend", backends_of("linear_cross_entropy"))
# T, C, V: fewer and more rows than C; ragged in every direction; many words.
SHAPES = [(33, 40, 129), (85, 70, 300), (1, 1, 1), (9, 24, 1100)]
CHECKS = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
needs_triton = pytest.mark.skipif(
    "triton" not in [backend.values[0] for backend in backends_of("linear_cross_entropy")], reason="needs Triton"
)
FORWARD, BACKWARD = torch.ops.blip_fast.linear_cross_entropy, torch.ops.blip_fast.linear_cross_entropy_backward


def make(shape, dtype=torch.float32, device="cpu", seed=0):
    T, C, V = shape
    generator = torch.Generator().manual_seed(seed)
    hidden, weight, bias = (torch.randn(size, generator=generator) for size in ((T, C), (V, C), (V,)))
    labels = torch.randint(0, V, (T,), generator=generator)
    labels[3::7] = -100
    return [t.to(device, dtype).requires_grad_() for t in (hidden, weight / C**0.5, bias)], labels.to(device)


def run(function, tensors, labels, *args):
    """Loss and its gradients; the rows of many losses have weights."""
    loss = function(*tensors, labels, *args)
    scale = torch.linspace(0.5, 1.5, loss.numel(), device=loss.device).reshape(loss.shape)
    return [loss.detach(), *torch.autograd.grad(loss, tensors, scale.to(loss.dtype))]


def distance(got, want):
    return (got.double() - want).norm().item()


@BACKENDS
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("smoothing", "reduction"), [(0.1, "mean"), (0.1, "none"), (0.0, "sum"), (1.0, "mean")])
def test_no_further_from_float64_than_eager(backend, shape, smoothing, reduction):
    for dtype in dtypes_of(backend):
        tensors, labels = make(shape, dtype, device_of(backend))
        with blip_fast.backend(backend):
            got = run(linear_cross_entropy, tensors, labels, smoothing, -100, reduction)
        assert got[0].dtype == torch.promote_types(dtype, torch.float32)
        plain = run(eager, tensors, labels, smoothing, -100, reduction)
        exact = run(eager, [t.detach().double().requires_grad_() for t in tensors], labels, smoothing, -100, reduction)
        for mine, theirs, want in zip(got, plain, exact, strict=True):
            # Luck does not average out over a few numbers; and float64 is not exact itself.
            slack = 16 * torch.finfo(dtype).eps if want.numel() < 300 or dtype == torch.float64 else 0.0
            assert distance(mine, want) <= 1.5 * distance(theirs, want) + slack * max(1.0, want.norm().item())


@BACKENDS
@pytest.mark.parametrize("shape", [(1100, 8, 20), (6, 1100, 20)])
def test_more_rows_or_columns_than_a_block(backend, shape):
    tensors, labels = make(shape, device=device_of(backend))
    with blip_fast.backend(backend):
        got = run(linear_cross_entropy, tensors, labels, 0.1)
    for mine, theirs in zip(got, run(eager, tensors, labels, 0.1), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-4)


@pytest.mark.triton
@needs_triton
def test_more_than_one_chunk_of_the_vocabulary(monkeypatch):
    from blip_fast.kernels import linear_cross_entropy as kernel

    monkeypatch.setattr(kernel, "D_BYTES", 0)
    for shape in ((9, 24, 1100), (85, 70, 1030)):
        tensors, labels = make(shape, device=device_of("triton"))
        with blip_fast.backend("triton"):
            got = run(linear_cross_entropy, tensors, labels, 0.1)
        for mine, theirs in zip(got, run(eager, tensors, labels, 0.1), strict=True):
            torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-4)


@BACKENDS
def test_kept_logits_are_those_of_the_loss(backend):
    """Of large logits in half precision: the gradient of a row's logits sums to 0 only if both are rounded alike."""
    for dtype in dtypes_of(backend):
        (hidden, weight, bias), labels = make((85, 70, 300), dtype, device_of(backend))
        with blip_fast.backend(backend):
            losses = linear_cross_entropy(hidden * 16, weight, bias, labels, 0.0, -100, "none")
            (grad_bias,) = torch.autograd.grad(losses.sum(), bias)
        assert abs(grad_bias.double().sum().item()) < 16 * torch.finfo(dtype).eps + 1e-4  # exponents of 64 in fp32


@BACKENDS
def test_a_constant_in_all_logits_changes_nothing(backend):
    tensors, labels = make((33, 40, 129), device=device_of(backend))
    with blip_fast.backend(backend):
        want = run(linear_cross_entropy, tensors, labels, 0.1)
        with torch.no_grad():
            tensors[2].add_(128.0)
        got = run(linear_cross_entropy, tensors, labels, 0.1)
    for mine, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-3)


@BACKENDS
def test_words_that_are_ruled_out(backend):
    """By a bias of -inf, so that whole tiles of logits have no maximum."""
    tensors, labels = make((33, 40, 400), device=device_of(backend))
    labels[labels > 0] %= 50
    with torch.no_grad():
        tensors[2][50:390] = -float("inf")
    with blip_fast.backend(backend):
        got = run(linear_cross_entropy, tensors, labels)
    for mine, theirs in zip(got, run(eager, tensors, labels), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-4)


@BACKENDS
def test_strided_arguments(backend):
    tensors, labels = make((33, 40, 129), device=device_of(backend))
    strided = [t.detach().T.contiguous().T.requires_grad_() for t in tensors[:2]]
    strided.append(tensors[2].detach().repeat_interleave(2)[::2].requires_grad_())
    with blip_fast.backend(backend):
        want = run(linear_cross_entropy, tensors, labels, 0.1)
        got = run(linear_cross_entropy, strided, labels.repeat_interleave(2)[::2], 0.1)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@BACKENDS
def test_without_bias_and_with_another_ignored_label(backend):
    (hidden, weight, _), labels = make((20, 16, 50), device=device_of(backend))
    labels[labels == -100] = 7
    with blip_fast.backend(backend):
        loss = linear_cross_entropy(hidden, weight, None, labels, 0.2, 7)
    assert torch.allclose(loss, eager(hidden, weight, None, labels, 0.2, 7))


@BACKENDS
@pytest.mark.parametrize(
    "wanted", [(True, False, False), (False, True, False), (False, False, True), (True, True, False)]
)
def test_only_some_gradients(backend, wanted):
    tensors, labels = make((40, 24, 60), device=device_of(backend))
    for tensor, learns in zip(tensors, wanted, strict=True):
        tensor.requires_grad_(learns)
    learning = [t for t in tensors if t.requires_grad]
    with blip_fast.backend(backend):
        got = torch.autograd.grad(linear_cross_entropy(*tensors, labels, 0.1), learning)
    want = torch.autograd.grad(eager(*tensors, labels, 0.1), learning)
    for mine, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-5)


@BACKENDS
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("rows", [0, 5])
def test_nothing_counts(backend, reduction, rows):
    tensors, labels = make((rows, 8, 30), device=device_of(backend))
    labels.fill_(-100)
    with blip_fast.backend(backend):
        got = run(linear_cross_entropy, tensors, labels, 0.1, -100, reduction)
    for mine, theirs in zip(got, run(eager, tensors, labels, 0.1, -100, reduction), strict=True):
        assert torch.equal(mine.nan_to_num(77.0), theirs.nan_to_num(77.0))


@BACKENDS
def test_ignored_rows_are_never_read(backend):
    device = device_of(backend)
    tensors, labels = make((30, 16, 50), device=device)
    clean = run(linear_cross_entropy, tensors, labels, 0.1)
    with torch.no_grad():
        tensors[0][labels == -100] = float("nan")
    with blip_fast.backend(backend), poisoned_memory():
        got = run(linear_cross_entropy, tensors, labels, 0.1, -100, "mean")
    if backend == "reference":  # plain torch does read them
        return
    for mine, want in zip(got, clean, strict=True):
        torch.testing.assert_close(mine, want, atol=1e-6, rtol=1e-5)
    assert not got[1][labels == -100].any()


@BACKENDS
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_nan_and_inf_propagate(backend, value, smoothing):
    for place in ("hidden", "bias"):
        tensors, labels = make((12, 16, 50), device=device_of(backend))
        with torch.no_grad():
            tensors[0 if place == "hidden" else 2].view(-1)[5] = value
        with blip_fast.backend(backend):
            got = run(linear_cross_entropy, tensors, labels, smoothing, -100, "none")
        want = run(eager, tensors, labels, smoothing, -100, "none")
        want[1][labels == -100] = 0.0  # eager's ignored rows catch the bias's NaN
        for mine, theirs in zip(got, want, strict=True):
            assert torch.equal(mine.isnan(), theirs.isnan())
            assert torch.equal(mine.isinf(), theirs.isinf())


@BACKENDS
def test_repeats_bit_for_bit(backend):
    tensors, labels = make((150, 70, 300), device=device_of(backend))
    with blip_fast.backend(backend):
        first, second = (run(linear_cross_entropy, tensors, labels, 0.1) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_gradcheck(reduction):
    tensors, labels = make((6, 3, 7), torch.float64)
    assert torch.autograd.gradcheck(lambda *t: linear_cross_entropy(*t, labels, 0.1, -100, reduction), tensors)


@BACKENDS
def test_opcheck(backend):
    tensors, labels = make((40, 8, 30), device=device_of(backend))
    with blip_fast.backend(backend):
        for keep in (True, False):
            # Kept logits cannot leave a compiled graph, since backward writes on them; they do in that one check.
            checks = [check for check in CHECKS if not keep or check != "test_aot_dispatch_dynamic"]
            torch.library.opcheck(FORWARD.default, (*tensors, labels, 0.1, -100, keep), test_utils=checks)
            args = [t.detach() for t in tensors]
            _, lse, logits = FORWARD(*args, labels, 0.1, -100, keep)
            torch.library.opcheck(
                BACKWARD.default, (torch.ones_like(lse), *args, labels, lse, logits, 0.1, -100, True, True, True)
            )


@BACKENDS
def test_backward_runs_on_another_backend_than_forward(backend):
    if device_of(backend) != "cpu":
        pytest.skip("the other backend is on another device")
    for shape in SHAPES[:2]:
        tensors, labels = make(shape)
        want = torch.autograd.grad(eager(*tensors, labels, 0.1), tensors)
        for other in ("reference", "cpu"):
            for first, second in ((backend, other), (other, backend)):
                with blip_fast.backend(first):
                    loss = linear_cross_entropy(*tensors, labels, 0.1)
                with blip_fast.backend(second):
                    got = torch.autograd.grad(loss, tensors)
                for mine, theirs in zip(got, want, strict=True):
                    torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-4)


@BACKENDS
def test_compiles_without_a_graph_break(backend):
    tensors, labels = make((40, 24, 60), device=device_of(backend))

    def step(*args):
        return linear_cross_entropy(*args, 0.1) * 2

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    with blip_fast.backend(backend):
        got = run(compiled, tensors, labels)
    for mine, theirs in zip(got, run(lambda *args: eager(*args, 0.1) * 2, tensors, labels), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-5)


@BACKENDS
def test_retained_graph_runs_backward_twice(backend):
    tensors, labels = make((40, 24, 60), device=device_of(backend))
    with blip_fast.backend(backend):
        loss = linear_cross_entropy(*tensors, labels, 0.1)
        first = torch.autograd.grad(loss, tensors, retain_graph=True)
        before = [t.clone() for t in first]
        second, third = (torch.autograd.grad(loss, tensors, retain_graph=True) for _ in range(2))
    for a, b, c, d in zip(first, before, second, third, strict=True):
        assert torch.equal(a, b)
        torch.testing.assert_close(a, c)
        assert torch.equal(c, d)


def test_no_second_derivative():
    tensors, labels = make((6, 3, 7))
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(linear_cross_entropy(*tensors, labels), tensors, create_graph=True)


@pytest.mark.parametrize("learns", range(3))
def test_logits_are_kept_for_the_gradient_of_weight_alone(learns):
    tensors, labels = make((6, 8, 30))
    for i, tensor in enumerate(tensors):
        tensor.requires_grad_(i == learns)
    loss = linear_cross_entropy(*tensors, labels, reduction="none")
    assert (loss.grad_fn.saved_tensors[-1].numel() > 0) == (learns == 1)


def test_no_logits_are_kept_without_gradients():
    tensors, labels = make((6, 8, 30))
    calls = []

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            calls.append((function, args))
            return function(*args, **kwargs or {})

    with Recorder(), torch.no_grad():
        linear_cross_entropy(*tensors, labels)
    assert [args[-1] for function, args in calls if function is FORWARD.default] == [False]


def test_autocast_computes_in_its_dtype():
    tensors, labels = make((40, 24, 60))
    with torch.autocast("cpu", torch.bfloat16):
        got = run(linear_cross_entropy, tensors, labels, 0.1)
    low = [t.detach().bfloat16().requires_grad_() for t in tensors]
    for mine, theirs in zip(got, run(linear_cross_entropy, low, labels, 0.1), strict=True):
        assert mine.dtype == torch.float32
        assert torch.equal(mine, theirs.float())
    with (
        torch.autocast("cpu", torch.bfloat16),  # which leaves float64 alone
        pytest.raises(ValueError, match=r"weight is torch\.float64; expected torch\.float32"),
    ):
        linear_cross_entropy(tensors[0], tensors[1].double(), tensors[2], labels)


def test_flops():
    tensors, labels = make((40, 24, 60))
    T, C, V = 40, 24, 60
    with FlopCounterMode(display=False) as counter:
        loss = linear_cross_entropy(*tensors, labels)
    assert counter.get_total_flops() == 2 * T * C * V
    with FlopCounterMode(display=False) as counter:
        loss.backward()
    assert counter.get_total_flops() == 2 * (2 * T + (T - C)) * C * V  # the logits of T - C rows a second time


class Watch(TorchDispatchMode):
    """Notes operations that wait for the device, and the bytes of the largest tensor."""

    def __init__(self):
        super().__init__()
        self.waits, self.largest = [], 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if any(name in str(function) for name in ("_local_scalar_dense", "nonzero", "masked_select", "index.Tensor")):
            self.waits.append(str(function))
        self.largest = max(
            [self.largest, *(t.nbytes for t in torch.utils._pytree.tree_leaves(out) if hasattr(t, "nbytes"))]
        )
        return out


@pytest.mark.triton
@needs_triton
def test_device_path_never_waits_and_holds_no_logits(monkeypatch):
    from blip_fast.kernels import linear_cross_entropy as kernel

    monkeypatch.setattr(kernel, "D_BYTES", 0)
    tensors, labels = make((40, 8, 5000), device=device_of("triton"))
    hidden, weight, bias = (t.detach() for t in tensors)
    with Watch() as watch:  # the kernels themselves: what runs inside of an operation, no mode sees
        _, lse, logits = kernel.forward(hidden, weight, bias, labels, 0.1, -100, True)
        kernel.backward(torch.ones_like(lse), hidden, weight, bias, labels, lse, logits, 0.1, -100, True, True, True)
    assert watch.waits == []
    assert watch.largest < 40 * 5000 * 4 / 3


def test_more_threads_change_nothing():
    tensors, labels = make((150, 70, 300))
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(run(linear_cross_entropy, tensors, labels, 0.1, -100, "none"))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@BACKENDS
@pytest.mark.parametrize("label", [50, -1])
def test_label_outside_the_vocabulary(backend, label):
    tensors, labels = make((12, 16, 50), device=device_of(backend))
    labels[4] = label
    with blip_fast.backend(backend):
        if backend == "triton":
            loss, grad_hidden, *_ = run(linear_cross_entropy, tensors, labels, 0.1, -100, "none")
            assert loss.isnan().nonzero().tolist() == [[4]]
            assert grad_hidden.isnan().any(1).nonzero().tolist() == [[4]]
        else:
            with pytest.raises((RuntimeError, IndexError), match=r"labels\[4\] is|out of bounds"):
                linear_cross_entropy(*tensors, labels)


HIDDEN, WEIGHT, BIAS, LABELS = torch.ones(3, 4), torch.ones(5, 4), torch.ones(5), torch.zeros(3, dtype=torch.int64)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((HIDDEN[0], WEIGHT, BIAS, LABELS), r"hidden has shape \(4,\); expected \(T, C\)"),
        ((HIDDEN, WEIGHT[:, :3], BIAS, LABELS), r"weight has shape \(5, 3\); expected \(V, 4\)"),
        ((HIDDEN, WEIGHT[0], BIAS, LABELS), r"weight has shape \(4,\); expected \(V, 4\)"),
        ((HIDDEN, WEIGHT[:0], BIAS[:0], LABELS), r"weight has shape \(0, 4\); expected \(V, 4\), neither of them 0"),
        ((HIDDEN, WEIGHT, BIAS[:4], LABELS), r"bias has shape \(4,\); expected \(5,\)"),
        ((HIDDEN, WEIGHT, BIAS, LABELS[:2]), r"labels has shape \(2,\) and dtype torch.int64; expected \(3,\)"),
        ((HIDDEN, WEIGHT, BIAS, LABELS.int()), r"dtype torch.int32; expected \(3,\) and int64"),
        ((HIDDEN, WEIGHT.half(), BIAS, LABELS), "weight is torch.float16; expected torch.float32"),
        ((HIDDEN, WEIGHT, BIAS.double(), LABELS), "bias is torch.float64; expected torch.float32"),
        ((HIDDEN, WEIGHT.to("meta"), BIAS, LABELS), "weight is on meta; expected cpu"),
        ((HIDDEN, WEIGHT, BIAS, LABELS, 1.5), r"label_smoothing is 1.5; expected a number in \[0, 1\]"),
        ((HIDDEN, WEIGHT, BIAS, LABELS, 0.0, -100, "median"), "reduction is 'median'; expected one of mean, sum, none"),
    ],
)
def test_refuses(args, message):
    with pytest.raises(ValueError, match=message):
        linear_cross_entropy(*args)
